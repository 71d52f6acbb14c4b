//! Which lock a client wants next.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand_distr::{Distribution, Zipf};

/// More names than that are not told apart by anything that is measured here.
const MOST: u32 = 1_000_000;

/// How names are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Names {
    /// Every client has a name of its own: nobody is in the way.
    Distinct,
    /// All want the same one.
    One,
    /// One of so many, each as likely as the others.
    Uniform(u32),
    /// One of so many, the first the likeliest: the n-th is asked for 1/n^exponent times as often.
    Zipf(u32, f64),
}

impl Names {
    /// How many there are for so many clients.
    pub fn count(self, clients: usize) -> usize {
        match self {
            Self::Distinct => clients,
            Self::One => 1,
            Self::Uniform(count) | Self::Zipf(count, _) => count as usize,
        }
    }

    /// Whether two clients may want the same one at a time.
    pub fn contended(self) -> bool {
        self != Self::Distinct
    }

    /// A way to choose them.
    pub fn chooser(self) -> Chooser {
        match self {
            // Both numbers were checked when they were read.
            Self::Zipf(count, exponent) => Chooser::Zipf(Zipf::new(count.into(), exponent).expect("a checked exponent")),
            other => Chooser::Plain(other),
        }
    }
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?}: distinct, one, uniform:COUNT, zipf:COUNT or zipf:COUNT:EXPONENT is expected");
        let count = |count: &str| count.parse().ok().filter(|count| (1..=MOST).contains(count)).ok_or_else(&expected);
        match text.split(':').collect::<Vec<_>>()[..] {
            ["distinct"] => Ok(Self::Distinct),
            ["one"] => Ok(Self::One),
            ["uniform", of] => Ok(Self::Uniform(count(of)?)),
            ["zipf", of] => Ok(Self::Zipf(count(of)?, 1.0)),
            ["zipf", of, exponent] => {
                let exponent = exponent.parse().ok().filter(|exponent| (0.0..=10.0).contains(exponent));
                Ok(Self::Zipf(count(of)?, exponent.ok_or_else(|| format!("{text:?}: an exponent is 0 to 10"))?))
            }
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Distinct => write!(f, "distinct"),
            Self::One => write!(f, "one"),
            Self::Uniform(count) => write!(f, "uniform over {count}"),
            Self::Zipf(count, exponent) => write!(f, "zipf over {count}, exponent {exponent}"),
        }
    }
}

/// Chooses.
#[derive(Clone, Copy, Debug)]
pub enum Chooser {
    Plain(Names),
    Zipf(Zipf<f64>),
}

impl Chooser {
    /// The number of the name that a client wants next, from 0.
    pub fn choose(&self, client: usize, random: &mut impl Rng) -> usize {
        match self {
            Self::Plain(Names::Distinct) => client,
            Self::Plain(Names::Uniform(count)) => random.random_range(0..*count) as usize,
            Self::Plain(_) => 0,
            // From 1.
            Self::Zipf(zipf) => zipf.sample(random) as usize - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn shares(names: &str, draws: u32) -> Vec<f64> {
        let names: Names = names.parse().unwrap();
        let (chooser, mut random) = (names.chooser(), SmallRng::seed_from_u64(7));
        let mut counts = vec![0_u32; names.count(4)];
        (0..draws).for_each(|i| counts[chooser.choose(i as usize % 4, &mut random)] += 1);
        counts.into_iter().map(|count| f64::from(count) / f64::from(draws)).collect()
    }

    #[test]
    fn a_name_of_ones_own_or_one_for_all() {
        assert_eq!(shares("distinct", 400), [0.25; 4]);
        assert_eq!(shares("one", 400), [1.0]);
    }

    #[test]
    fn every_name_is_as_likely_or_the_first_ones_are() {
        assert!(shares("uniform:10", 100_000).iter().all(|share| (share - 0.1).abs() < 0.01));
        let zipf = shares("zipf:100", 200_000);
        // The harmonic number of 100.
        let sum: f64 = (1..=100).map(|n| 1.0 / f64::from(n)).sum();
        for n in [1, 2, 10, 50] {
            let expected = 1.0 / n as f64 / sum;
            assert!((zipf[n - 1] / expected - 1.0).abs() < 0.1, "{n}: {} for {expected}", zipf[n - 1]);
        }
        assert!(zipf[99] > 0.0, "the last is a name too");
        assert!(shares("zipf:100:0", 100_000).iter().all(|share| (share - 0.01).abs() < 0.005), "exponent 0 is uniform");
        assert!(shares("zipf:100:3", 100_000)[0] > 0.8);
    }

    #[test]
    fn senseless_names_are_refused() {
        for text in
            ["", "two", "zipf", "zipf:0", "zipf:x", "zipf:9:-1", "zipf:9:nan", "uniform:0", "uniform:99999999999", "one:2"]
        {
            assert!(text.parse::<Names>().is_err(), "{text}");
        }
    }
}
