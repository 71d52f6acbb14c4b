//! A lease that the proxy keeps for a session (protocol section 8): when to renew it and for how long, when to say that it is at
//! risk, and when that it is lost. Instants are durations since the session began.

use std::num::NonZeroU64;
use std::time::Duration;

use super::lease::Ttl;
use super::validity::DriftFactor;

/// A lease is renewed when this part of its TTL is over.
const RENEWED_AFTER: u32 = 3;

/// Between tries to renew it: this part of its TTL.
const TRIED_AGAIN_AFTER: u32 = 12;

/// It is told as lost when only this part of its last validity is left: the word has a way to go.
const LAST_CALL: u32 = 8;

/// TTLs are whole milliseconds: up to a bound there is always less than one left to be won, and nothing would ever be the last
/// renewal. Each would be for less than the one before, and the loss told when next to nothing is left.
const LEAST_GAIN: Duration = Duration::from_millis(2);

/// What stands in the way of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// A quorum of the nodes does not hold it (any more).
    NotHeld,
    /// Too few nodes answered, or too late.
    NoQuorum,
    /// Nothing was heard of the client.
    NoKeepAlive,
    /// It has been held for as long as it may be.
    MaxHold,
}

/// What is to be done for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Renew it for that long; then call [`Tenure::renewed`] or [`Tenure::not_renewed`].
    Renew(Ttl),
    /// Tell that it is at risk.
    AtRisk(Hindrance),
    /// Tell that it is lost, and do no more for it.
    Lost(Hindrance),
}

/// An instant as it is kept: there are several for each of very many leases, and as [`Duration`]s they take twice the room.
/// It can tell 584 years from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// And one more, so that there is a number for none.
    ns: NonZeroU64,
}

impl Moment {
    /// So long after the beginning.
    pub fn at(since_beginning: Duration) -> Self {
        let ns = u64::try_from(since_beginning.as_nanos()).unwrap_or(u64::MAX);
        Self { ns: NonZeroU64::MIN.saturating_add(ns) }
    }

    /// How long after the beginning it is.
    pub fn since_beginning(self) -> Duration {
        Duration::from_nanos(self.ns.get() - 1)
    }
}

/// One lease in time.
///
/// The laws: it is never renewed beyond a TTL after its client was heard of, nor beyond its longest hold; between any two
/// successful renewals a risk is told at most once, and before a loss; a loss is told before the validity ends.
#[derive(Clone, Debug)]
pub struct Tenure {
    ttl: Ttl,
    hold_ends: Option<Moment>,
    drift: DriftFactor,
    /// When the operations began that it stands by, and for how long these made it last.
    started: Moment,
    lasts: Ttl,
    hindrance: Hindrance,
    is_being_renewed: bool,
    risk_told: bool,
    next_try: Moment,
}

impl Tenure {
    /// A lease of `ttl` whose operations began at `started`, to be kept for `max_hold` from then on at most.
    pub fn new(ttl: Ttl, started: Duration, max_hold: Option<Duration>, drift: DriftFactor) -> Self {
        Self {
            ttl,
            hold_ends: max_hold.filter(|_| !mutant!("max-hold-ignored")).map(|hold| Moment::at(started.saturating_add(hold))),
            drift,
            started: Moment::at(started),
            lasts: ttl,
            hindrance: Hindrance::NoQuorum,
            is_being_renewed: false,
            risk_told: false,
            next_try: Moment::at(started + ttl.as_duration() / RENEWED_AFTER),
        }
    }

    /// For how long a renewal shall make it last.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// When the operations began that it stands by.
    pub fn started(&self) -> Duration {
        self.started.since_beginning()
    }

    /// For how long these made it last.
    pub fn lasts(&self) -> Ttl {
        self.lasts
    }

    /// What is to be done now. `heard`: when its client was last heard of. To be called again until nothing is.
    pub fn due(&mut self, now: Duration, heard: Duration) -> Option<Due> {
        if now >= self.last_call() {
            return Some(Due::Lost(self.hindrance));
        }
        if !self.is_being_renewed && now >= self.next_try.since_beginning() {
            match self.useful(now, heard) {
                Ok(ttl) => {
                    self.is_being_renewed = true;
                    return Some(Due::Renew(ttl));
                }
                Err(hindrance) => self.not_renewed(now, hindrance),
            }
        }
        if !self.risk_told && now >= self.risk() {
            self.risk_told = true;
            return Some(Due::AtRisk(self.hindrance));
        }
        None
    }

    /// When something may be due next.
    pub fn next(&self) -> Duration {
        let mut next = self.last_call();
        if !self.is_being_renewed {
            next = next.min(self.next_try.since_beginning());
        }
        if self.risk_told { next } else { next.min(self.risk()) }
    }

    /// A renewal for `lasts` that began at `started` has succeeded.
    pub fn renewed(&mut self, started: Duration, lasts: Ttl) {
        (self.started, self.lasts) = (Moment::at(started), lasts);
        (self.is_being_renewed, self.risk_told, self.hindrance) = (false, false, Hindrance::NoQuorum);
        self.next_try = Moment::at(started + self.ttl.min(lasts).as_duration() / RENEWED_AFTER);
    }

    /// One has not, or was of no use.
    pub fn not_renewed(&mut self, now: Duration, hindrance: Hindrance) {
        (self.is_being_renewed, self.hindrance) = (false, hindrance);
        self.next_try = Moment::at(now + (self.ttl.as_duration() / TRIED_AGAIN_AFTER).max(Duration::from_millis(1)));
    }

    /// Whether its client has been told so since it was last renewed.
    pub fn is_at_risk(&self) -> bool {
        self.risk_told
    }

    /// Somebody else goes on with it, who does not know what is under way: to be renewed at once.
    pub fn begin_again(&mut self, now: Duration) {
        (self.is_being_renewed, self.next_try) = (false, Moment::at(now));
    }

    /// The client wants it renewed, from now on for `ttl`: for how long that may be, and whether it is already under way.
    pub fn asked(&mut self, ttl: Option<Ttl>, now: Duration, heard: Duration) -> Result<Ttl, Hindrance> {
        let before = self.ttl;
        self.ttl = ttl.unwrap_or(before);
        let longest = self.longest(now, heard);
        match longest {
            Ok(_) => self.is_being_renewed = true,
            Err(_) => self.ttl = before,
        }
        longest
    }

    /// For how long a renewal may make it last, if that is more than it has.
    fn useful(&self, now: Duration, heard: Duration) -> Result<Ttl, Hindrance> {
        let end = self.started() + self.lasts.as_duration();
        // Whatever its client does.
        if self.hold_ends().is_some_and(|hold_ends| hold_ends <= end) {
            return Err(Hindrance::MaxHold);
        }
        let ttl = self.longest(now, heard)?;
        if now + ttl.as_duration() >= end + LEAST_GAIN { Ok(ttl) } else { Err(self.bound(heard).1) }
    }

    fn hold_ends(&self) -> Option<Duration> {
        self.hold_ends.map(Moment::since_beginning)
    }

    fn longest(&self, now: Duration, heard: Duration) -> Result<Ttl, Hindrance> {
        let (end, hindrance) = self.bound(heard);
        let left = end.saturating_sub(now).min(self.ttl.as_duration());
        // At most the TTL: it fits.
        Ttl::from_millis(left.as_millis() as u64, self.ttl).ok_or(hindrance)
    }

    /// Until when it may last at most, and why not for longer.
    fn bound(&self, heard: Duration) -> (Duration, Hindrance) {
        let unheard = heard + self.ttl.as_duration();
        match self.hold_ends() {
            Some(end) if end < unheard => (end, Hindrance::MaxHold),
            _ => (unheard, Hindrance::NoKeepAlive),
        }
    }

    /// When the validity ends that its client knows of. The drift is that of a client that counts from one TTL before.
    fn ends(&self) -> Duration {
        let ms = self.lasts.as_millis();
        self.started() + Duration::from_millis(ms.saturating_sub(self.drift.drift_ms(2 * ms)))
    }

    fn validity(&self) -> Duration {
        self.ends() - self.started()
    }

    /// Half of the validity is over.
    fn risk(&self) -> Duration {
        if mutant!("risk-is-not-told") {
            return self.ends();
        }
        self.ends() - self.validity() / 2
    }

    fn last_call(&self) -> Duration {
        if mutant!("loss-is-told-too-late") {
            return self.ends();
        }
        self.ends() - self.validity() / LAST_CALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ttl(ms: u64) -> Ttl {
        Ttl::from_millis(ms, Ttl::LONGEST).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tenure(max_hold: Option<Duration>) -> Tenure {
        Tenure::new(ttl(9_000), ms(1_000), max_hold, DriftFactor::DEFAULT)
    }

    #[test]
    fn it_is_renewed_when_a_third_of_its_ttl_is_over() {
        let mut lease = tenure(None);
        assert_eq!((lease.due(ms(3_999), ms(3_999)), lease.next()), (None, ms(4_000)));
        assert_eq!(lease.due(ms(4_000), ms(4_000)), Some(Due::Renew(ttl(9_000))));
        assert_eq!(lease.due(ms(4_001), ms(4_001)), None, "it is under way");
        lease.renewed(ms(4_000), ttl(9_000));
        assert_eq!(lease.next(), ms(7_000));
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_until_the_lease_is_lost() {
        let mut lease = tenure(None);
        let mut told = Vec::new();
        let mut now;
        while told.last().is_none_or(|(_, due)| !matches!(due, Due::Lost(_))) {
            now = lease.next();
            while let Some(due) = lease.due(now, now) {
                told.push((now, due));
                match due {
                    Due::Renew(_) => lease.not_renewed(now, Hindrance::NoQuorum),
                    Due::AtRisk(_) => {}
                    Due::Lost(_) => break,
                }
            }
        }
        // 9,000 - (ceil(18,000 * 0.002) + 2)
        let (started, validity) = (1_000, 8_962);
        let renewals = told.iter().filter(|(_, due)| matches!(due, Due::Renew(_))).count();
        assert_eq!(renewals, 7, "{told:?}");
        let others: Vec<_> = told.into_iter().filter(|(_, due)| !matches!(due, Due::Renew(_))).collect();
        let at_risk = (ms(started + validity / 2), Due::AtRisk(Hindrance::NoQuorum));
        assert_eq!(others[0], at_risk);
        assert_eq!(others[1].1, Due::Lost(Hindrance::NoQuorum));
        assert!(others[1].0 < ms(started + validity) && others.len() == 2);
    }

    #[test]
    fn nothing_is_renewed_beyond_a_ttl_after_the_client_was_heard_of() {
        let mut lease = tenure(None);
        // Heard of two seconds ago: two seconds less.
        assert_eq!(lease.due(ms(4_000), ms(2_000)), Some(Due::Renew(ttl(7_000))));
        lease.renewed(ms(4_000), ttl(7_000));
        // Not heard of since: there is nothing to be won.
        assert_eq!(lease.due(ms(7_000), ms(2_000)), None);
        assert_eq!(lease.due(ms(7_500), ms(2_000)), Some(Due::AtRisk(Hindrance::NoKeepAlive)));
        assert_eq!(lease.due(ms(10_500), ms(2_000)), Some(Due::Lost(Hindrance::NoKeepAlive)));
        assert_eq!(lease.due(ms(7_900), ms(7_900)), Some(Due::Renew(ttl(9_000))), "there it is again");
    }

    #[test]
    fn nothing_is_renewed_beyond_its_longest_hold() {
        let mut lease = tenure(Some(ms(10_000)));
        assert_eq!(lease.due(ms(4_000), ms(4_000)), Some(Due::Renew(ttl(7_000))));
        lease.renewed(ms(4_000), ttl(7_000));
        assert_eq!(lease.due(ms(8_000), ms(8_000)), Some(Due::AtRisk(Hindrance::MaxHold)));
        assert_eq!(lease.due(ms(10_900), ms(10_900)), Some(Due::Lost(Hindrance::MaxHold)));
    }

    #[test]
    fn a_hold_that_ends_with_the_first_ttl_does_not_wait_for_its_client() {
        let mut lease = tenure(Some(ms(9_000)));
        assert_eq!(lease.due(ms(4_000), ms(900)), None);
        assert_eq!(lease.due(ms(9_990), ms(900)), Some(Due::Lost(Hindrance::MaxHold)));
    }

    /// A hold, or a silence, that does not end with a whole millisecond of the clock.
    #[test]
    fn a_lease_is_renewed_once_up_to_its_bound_and_its_loss_is_told_in_time() {
        for (max_hold, heard) in
            [(Some(Duration::from_micros(10_000_700)), None), (None, Some(Duration::from_micros(1_999_300)))]
        {
            let mut lease = tenure(max_hold);
            let (mut renewals, mut lost) = (0, None);
            while lost.is_none() {
                let now = lease.next() + Duration::from_micros(137);
                while let Some(due) = lease.due(now, heard.unwrap_or(now)) {
                    match due {
                        Due::Renew(lasts) => {
                            renewals += 1;
                            lease.renewed(now, lasts);
                        }
                        Due::AtRisk(_) => {}
                        Due::Lost(_) => {
                            lost = Some(now);
                            break;
                        }
                    }
                }
            }
            assert!(renewals <= 3, "{renewals} renewals");
            let end = max_hold.map_or_else(|| heard.unwrap_or_default() + ms(9_000), |hold| ms(1_000) + hold);
            assert!(lost.unwrap() + ms(500) < end, "told {:?} before its end", end - lost.unwrap());
        }
    }

    #[test]
    fn a_moment_is_exact_and_in_order() {
        for at in [Duration::ZERO, Duration::from_nanos(1), Duration::new(3_600, 999_999_999), Duration::from_secs(1 << 34)] {
            assert_eq!(Moment::at(at).since_beginning(), at);
            assert!(Moment::at(at) < Moment::at(at + Duration::from_nanos(1)));
        }
        assert!(Moment::at(Duration::MAX).since_beginning() > Duration::from_secs(584 * 365 * 86_400));
        assert_eq!((size_of::<Option<Moment>>(), size_of::<Tenure>()), (8, 40));
    }

    #[test]
    fn one_that_asks_is_not_told_of_a_shorter_bound_than_its_own() {
        let mut lease = tenure(None);
        assert_eq!(lease.asked(Some(ttl(20_000)), ms(1_500), ms(1_400)), Ok(ttl(19_900)));
        assert_eq!(lease.ttl(), ttl(20_000));
        assert_eq!(tenure(Some(ms(9_000))).asked(None, ms(9_995), ms(9_995)), Err(Hindrance::MaxHold));
    }

    proptest! {
        /// Whatever becomes of the renewals and of the client.
        #[test]
        fn the_laws_hold(
            ttl_ms in 10_u64..100_000, max_hold in proptest::option::of(10_u64..1_000_000),
            steps in proptest::collection::vec((0_u64..5_000, any::<bool>(), any::<bool>(), 0_u64..200), 1..200),
        ) {
            let mut lease = Tenure::new(ttl(ttl_ms), ms(0), max_hold.map(ms), DriftFactor::DEFAULT);
            let (mut now, mut heard, mut risks, mut renewed) = (ms(0), ms(0), 0, 0);
            'life: for (jitter_us, hears, succeeds, takes) in steps {
                now = lease.next().max(now) + Duration::from_micros(jitter_us.min(ttl_ms * 10));
                heard = if hears { now } else { heard };
                while let Some(due) = lease.due(now, heard) {
                    match due {
                        Due::Renew(lasts) => {
                            prop_assert!(now + lasts.as_duration() <= heard + ms(ttl_ms), "beyond what was heard");
                            prop_assert!(max_hold.is_none_or(|hold| now + lasts.as_duration() <= ms(hold)), "beyond its hold");
                            let end = lease.ends();
                            if succeeds {
                                lease.renewed(now, lasts);
                                prop_assert!(lease.ends() >= end.saturating_sub(ms(1)) || lease.lasts < ttl(ttl_ms));
                                (risks, renewed) = (0, renewed + 1);
                            } else {
                                lease.not_renewed(now + ms(takes), Hindrance::NoQuorum);
                            }
                        }
                        Due::AtRisk(_) => {
                            risks += 1;
                            prop_assert_eq!(risks, 1, "told twice");
                        }
                        Due::Lost(_) => {
                            // As far as it was asked in time.
                            prop_assert!(lease.last_call() < lease.ends() || ttl_ms < 16);
                            break 'life;
                        }
                    }
                }
                prop_assert!(lease.next() > now, "it is asked again at once, for ever");
            }
            prop_assert!(renewed < 1_000);
        }
    }
}
