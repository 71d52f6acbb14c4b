//! Section 8: what a session tells of its leases. A risk is told once between two renewals and before a loss, a loss before the
//! validity ends, nothing after it; and nobody is promised more than the longest hold.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{At, History, LeaseId, Said, Word};

/// A word that came in time may be read a moment later.
const READ_WITHIN: At = At::from_millis(1);

/// A proxy that was stopped for this part of a validity, or less, had the time left for all that it has to say.
const SHORT_STOP: u32 = 16;

/// What was told of one lease on one stream, so far.
struct Story<'a> {
    /// Since it was granted or renewed.
    risk_told: bool,
    /// From when on its client counts.
    counts_from: At,
    /// Its client missed something.
    unheard: bool,
    over: Option<&'a Word>,
}

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut stories: BTreeMap<(usize, LeaseId), Story<'_>> = BTreeMap::new();
    let mut found = Vec::new();
    for word in &history.words {
        let fresh = Story { risk_told: false, counts_from: word.counts_from, unheard: false, over: None };
        let story = stories.entry((word.stream, word.lease)).or_insert(fresh);
        if let Some(what) = story.breaks_with(word, history) {
            let lease = &history.leases[word.lease];
            let what = format!("{}: {} at {:?} by {}: {what}", lease.name, lease.client, word.at, word.proxy);
            found.push(Violation { invariant: "words", what });
        }
        story.goes_on(word);
    }
    found
}

impl<'a> Story<'a> {
    /// What is wrong with the next word.
    fn breaks_with(&self, word: &Word, history: &History) -> Option<String> {
        if let Some(over) = self.over.filter(|_| word.said != Said::Unheard) {
            return Some(format!("was told {:?} after {:?}", word.said, over.said));
        }
        if let Some(hold_ends) = word.hold_ends.filter(|hold_ends| word.until > *hold_ends) {
            return Some(format!("may rely on it until {:?}, and is to hold it until {hold_ends:?} at most", word.until));
        }
        let excused = self.unheard || self.was_stopped(word, history);
        match word.said {
            Said::AtRisk if self.risk_told => Some("was told of a risk twice, and of no renewal in between".to_owned()),
            Said::Lost { not_held: false } if !self.risk_told && !excused => {
                Some("was told of a loss, and of no risk before".to_owned())
            }
            Said::Lost { not_held: false } if word.at > word.until + READ_WITHIN && !excused => {
                Some(format!("was told of a loss after its validity had ended at {:?}", word.until))
            }
            Said::Nothing if !excused => Some(format!("its validity ended at {:?}, and it was not told before", word.until)),
            _ => None,
        }
    }

    /// A proxy that is stopped tells nothing, and hears late from when its client counts.
    fn was_stopped(&self, word: &Word, history: &History) -> bool {
        let overlap = |from: At, until: At| until.min(word.at).saturating_sub(from.max(self.counts_from));
        let of_its = history.faults.iter().filter(|fault| fault.to == word.proxy);
        let stopped: At = of_its.map(|fault| overlap(fault.from, fault.until)).sum();
        stopped > word.until.saturating_sub(self.counts_from) / SHORT_STOP
    }

    fn goes_on(&mut self, word: &'a Word) {
        match word.said {
            Said::Granted | Said::Adopted | Said::Renewed => {
                (self.risk_told, self.unheard, self.counts_from) = (false, false, word.counts_from);
            }
            Said::AtRisk => self.risk_told = true,
            Said::Unheard => self.unheard = true,
            Said::Lost { .. } | Said::Released | Said::Nothing => self.over = Some(word),
        }
    }
}
