//! The ratios that the project has set itself, in the order in which they are told. Those that a run does not measure stay
//! without a value.

use crate::results::{Aim, Better};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    StreamRslock64,
    StreamRslock256,
    StreamRslockCpu64,
    StreamTonic64,
    StreamTonicCpu64,
    UnaryRslock64,
    UnaryRslock256,
    UnaryEtcd64,
    StreamEtcd64,
    HungRate,
    HungP99,
    HungStreamRate,
    HungStreamP99,
    HeldUnary,
    HeldStream,
    HeldMemory,
    LeaseMemory,
    IdleMemory,
    HungMemory,
    NodesUnary,
    NodesStream,
    ProxiesRate,
    ProxiesCpu,
    Rate5000,
}

use Better::{Higher, Lower};
use Key::*;

/// What it is, its unit, which side is the good one, the floor and the aim.
type Line = (Key, &'static str, &'static str, Better, Option<f64>, Option<f64>);

const LINES: [Line; 24] = [
    (StreamRslock64, "stream over rslock, 64 in flight: pairs/s", "", Higher, Some(1.3), Some(2.0)),
    (StreamRslock256, "stream over rslock, 256 in flight: pairs/s", "", Higher, Some(2.0), Some(3.0)),
    (StreamRslockCpu64, "stream over rslock, 64 in flight: CPU per pair", "", Lower, Some(0.7), Some(0.45)),
    (StreamTonic64, "stream over unary, both by tonic's client, 64 in flight: pairs/s", "", Higher, Some(2.0), None),
    (StreamTonicCpu64, "stream over unary, both by tonic's client, 64 in flight: CPU per pair", "", Lower, Some(0.5), None),
    (UnaryRslock64, "unary over rslock, 64 clients: pairs/s", "", Higher, Some(0.7), Some(1.0)),
    (UnaryRslock256, "unary over rslock, 256 clients: pairs/s", "", Higher, Some(0.8), Some(1.0)),
    (UnaryEtcd64, "unary over etcd, 64 clients: pairs/s", "", Higher, Some(2.0), Some(2.5)),
    (StreamEtcd64, "stream over etcd, 64 in flight: pairs/s", "", Higher, Some(5.0), Some(6.0)),
    (HungRate, "one hung node of five, unary, 64 clients: pairs/s", "", Higher, Some(0.9), Some(0.95)),
    (HungP99, "one hung node of five, unary, 64 clients: p99 of the acquire", "", Lower, Some(1.5), Some(1.2)),
    (HungStreamRate, "one hung node of five, stream, 64 in flight: pairs/s", "", Higher, Some(0.9), Some(0.95)),
    (HungStreamP99, "one hung node of five, stream, 64 in flight: p99 of the acquire", "", Lower, Some(1.5), Some(1.2)),
    (HeldUnary, "a million held locks over ten, unary, 64 clients: pairs/s", "", Higher, Some(0.7), Some(0.85)),
    (HeldStream, "a million held locks over ten, stream, 64 in flight: pairs/s", "", Higher, Some(0.7), Some(0.85)),
    (HeldMemory, "memory of the proxy with a million unary locks held, beyond that with ten", "MB", Lower, None, Some(1.0)),
    (LeaseMemory, "memory of the proxy for a lease of a session, with 50,000 in 4 of them", "bytes", Lower, Some(400.0), None),
    (IdleMemory, "memory of the idle proxy", "MB", Lower, Some(25.0), None),
    (HungMemory, "growth of the proxy under load with a hung node, from its second minute on", "MB", Lower, None, Some(1.0)),
    (NodesUnary, "CPU of the proxy per unary pair, for each more node", "us", Lower, Some(2.0), None),
    (NodesStream, "CPU of the proxy per pair of a stream, for each more node", "us", Lower, Some(2.0), None),
    (
        ProxiesRate,
        "3 proxies, with over without somebody who waits at the 2 others, unary: pairs/s",
        "",
        Higher,
        None,
        Some(0.95),
    ),
    (
        ProxiesCpu,
        "3 proxies, with over without somebody who waits at the 2 others, unary: CPU per pair",
        "",
        Lower,
        None,
        Some(1.05),
    ),
    (Rate5000, "p99 of the acquire from the due time, unary, 5000 pairs/s due", "ms", Lower, Some(20.0), None),
];

/// All of them, and what is known of them.
#[derive(Debug)]
pub struct Aims(Vec<(Key, Aim)>);

impl Default for Aims {
    fn default() -> Self {
        let aim = |(key, what, unit, better, floor, aim): Line| {
            let (what, unit) = (what.to_owned(), unit.to_owned());
            (key, Aim { what, unit, better, floor, aim, ..Aim::default() })
        };
        Self(LINES.into_iter().map(aim).collect())
    }
}

impl Aims {
    /// The figure, its least and its most.
    pub fn set(&mut self, key: Key, figures: Option<[f64; 3]>) {
        let Some([measured, least, most]) = figures else { return };
        if let Some((_, aim)) = self.0.iter_mut().find(|(known, _)| *known == key) {
            (aim.measured, aim.least, aim.most) = (Some(measured), Some(least), Some(most));
        }
    }

    /// A single figure.
    pub fn set_one(&mut self, key: Key, figure: Option<f64>) {
        if let Some((_, aim)) = self.0.iter_mut().find(|(known, _)| *known == key) {
            aim.measured = figure;
        }
    }

    /// For results.
    pub fn list(self) -> Vec<Aim> {
        self.0.into_iter().map(|(_, aim)| aim).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aim_can_be_set_and_the_others_stay_unknown() {
        let mut aims = Aims::default();
        aims.set(UnaryEtcd64, Some([2.2, 2.0, 2.4]));
        aims.set(StreamEtcd64, None);
        aims.set_one(IdleMemory, Some(12.0));
        let list = aims.list();
        let measured: Vec<(&str, Option<f64>)> =
            list.iter().filter(|aim| aim.measured.is_some()).map(|aim| (aim.unit.as_str(), aim.measured)).collect();
        assert_eq!(measured, [("", Some(2.2)), ("MB", Some(12.0))]);
        assert!(list.iter().all(|aim| aim.floor.or(aim.aim).is_some()));
        for (key, ..) in LINES {
            let mut aims = Aims::default();
            aims.set_one(key, Some(1.0));
            assert_eq!(aims.list().iter().filter(|aim| aim.measured.is_some()).count(), 1, "{key:?}");
        }
    }
}
