//! The lines of those who wait for a lock at one proxy (protocol section 5): first in, first out, one for each name that
//! somebody waits for, and none for any other.
//!
//! A line is soft state: it says who may try next, never who holds a lock. Losing it loses places, nothing else.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::lease::LockName;

/// How many may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineBounds {
    /// For one name.
    pub per_name: usize,
    /// For all names together.
    pub in_all: usize,
}

/// Somebody who waits. Rises, so that it tells who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Why nobody more may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The line of this name has so many.
    Line {
        /// Its bound.
        waiters: usize,
        /// How long the last of them may have to wait, if that can be told.
        expected: Option<Duration>,
    },
    /// All lines together have so many.
    All {
        /// Their bound.
        waiters: usize,
    },
}

/// Whose turn it is when a lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<W> {
    /// The lock can be handed over to the head of the line, who counts as trying from now on.
    Heir(W),
    /// The head has an attempt under way, which may still get the lock or not: it has to look again after that.
    Trying(W),
    /// This line has had enough turns in a row: the head tries again after a pause, in which others have theirs.
    Yields(W),
    /// Nobody waits here.
    Nobody,
}

/// The weight of the newest turn in the mean: of about the last eight.
const NEWEST: u32 = 8;

/// One name's.
#[derive(Debug)]
struct Line<W, N> {
    queue: VecDeque<(Ticket, W)>,
    /// When the lock last went to somebody in this line, and how long a turn takes: a moving mean.
    last_turn: Option<Duration>,
    turn: Option<Duration>,
    /// The head has an attempt under way.
    trying: bool,
    news: Option<N>,
}

/// All lines of a proxy. `W` is what wakes a waiter, `N` what the head of a line has learnt of the lock.
#[derive(Debug)]
pub struct Lines<W, N> {
    bounds: LineBounds,
    lines: HashMap<LockName, Line<W, N>>,
    waiting: usize,
    next: u64,
}

impl<W: Clone, N: Clone> Lines<W, N> {
    /// Nobody waits.
    pub fn new(bounds: LineBounds) -> Self {
        Self { bounds, lines: HashMap::new(), waiting: 0, next: 0 }
    }

    /// Takes the place at the end of the line. The first one there may try at once.
    pub fn join(&mut self, name: &LockName, wakes: W) -> Result<Ticket, Full> {
        if self.waiting >= self.bounds.in_all {
            return Err(Full::All { waiters: self.bounds.in_all });
        }
        if self.len(name) >= self.bounds.per_name {
            return Err(Full::Line { waiters: self.bounds.per_name, expected: self.expected(name, self.bounds.per_name) });
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting += 1;
        let line = self.lines.entry(name.clone());
        let line =
            line.or_insert_with(|| Line { queue: VecDeque::new(), last_turn: None, turn: None, trying: false, news: None });
        line.queue.push_back((ticket, wakes));
        Ok(ticket)
    }

    /// Leaves the line, from wherever in it. Returns the new head, if whoever left was the head: it has to be woken.
    pub fn leave(&mut self, name: &LockName, ticket: Ticket) -> Option<W> {
        let line = self.lines.get_mut(name)?;
        let place = line.place(ticket)?;
        line.queue.remove(place);
        self.waiting -= 1;
        if line.queue.is_empty() {
            self.lines.remove(name);
            // Whoever has often had many names in line has had one name each: the room is given back.
            if self.lines.capacity() > 4 * self.lines.len().max(256) {
                self.lines.shrink_to(2 * self.lines.len());
            }
            return None;
        }
        if place > 0 {
            return None;
        }
        // What its last try would have told is not known.
        if std::mem::take(&mut line.trying) {
            line.news = None;
        }
        line.queue.front().map(|(_, wakes)| wakes.clone())
    }

    /// The head of the line got the lock; `news` of it for those behind. `now` on any clock that does not go back.
    pub fn on_turn(&mut self, name: &LockName, news: N, now: Duration) {
        let Some(line) = self.lines.get_mut(name) else { return };
        if let Some(last) = line.last_turn.replace(now) {
            let took = now.saturating_sub(last);
            line.turn = Some(line.turn.map_or(took, |mean| (mean * (NEWEST - 1) + took) / NEWEST));
        }
        (line.trying, line.news) = (false, Some(news));
    }

    /// The head begins an attempt. `false`: it has one, because something is being handed over to it.
    pub fn on_try(&mut self, name: &LockName) -> bool {
        self.lines.get_mut(name).is_some_and(|line| !std::mem::replace(&mut line.trying, true))
    }

    /// The head of the line tried in vain. Who has the lock instead may be somebody of this line.
    pub fn on_failure(&mut self, name: &LockName, news: Option<N>) {
        let Some(line) = self.lines.get_mut(name) else { return };
        (line.trying, line.news) = (false, news);
    }

    /// The lock is being released through this proxy. `has_had_enough`: this line has had many turns in a row, and others get
    /// theirs.
    pub fn on_release(&mut self, name: &LockName, has_had_enough: bool) -> Next<W> {
        let Some(line) = self.lines.get_mut(name) else { return Next::Nobody };
        let last = mutant!("handover-to-the-last-in-line");
        let Some((_, head)) = (if last { line.queue.back() } else { line.queue.front() }) else { return Next::Nobody };
        let head = head.clone();
        line.news = None;
        if line.trying {
            return Next::Trying(head);
        }
        if has_had_enough {
            return Next::Yields(head);
        }
        line.trying = true;
        Next::Heir(head)
    }

    /// The lock may be free, for another reason: the head, who has to look again.
    pub fn on_freed(&mut self, name: &LockName) -> Option<W> {
        let line = self.lines.get_mut(name)?;
        line.news = None;
        line.queue.front().map(|(_, wakes)| wakes.clone())
    }

    /// The head of a line.
    pub fn head(&self, name: &LockName) -> Option<W> {
        self.lines.get(name)?.queue.front().map(|(_, wakes)| wakes.clone())
    }

    /// What the head has learnt last, if nothing has happened since.
    pub fn news(&self, name: &LockName) -> Option<N> {
        self.lines.get(name)?.news.clone()
    }

    /// How many are before a waiter; 0: it is the head. `None` if it does not wait.
    pub fn place(&self, name: &LockName, ticket: Ticket) -> Option<usize> {
        self.lines.get(name)?.place(ticket)
    }

    /// How long somebody with so many before it may have to wait, if some have had their turn.
    pub fn expected(&self, name: &LockName, before: usize) -> Option<Duration> {
        let turn = self.lines.get(name)?.turn?;
        Some(turn.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)))
    }

    /// How many wait for a name.
    pub fn len(&self, name: &LockName) -> usize {
        self.lines.get(name).map_or(0, |line| line.queue.len())
    }
}

impl<W, N> Line<W, N> {
    fn place(&self, ticket: Ticket) -> Option<usize> {
        // In the order of their tickets.
        self.queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: LineBounds = LineBounds { per_name: 3, in_all: 5 };

    impl<W, N> Lines<W, N> {
        fn is_empty(&self) -> bool {
            self.waiting == 0 && self.lines.is_empty()
        }
    }

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    #[test]
    fn the_first_one_is_the_head_and_the_next_one_follows() {
        let mut lines = Lines::<_, ()>::new(BOUNDS);
        let a = name("a");
        let [first, second, third] = [1, 2, 3].map(|who| lines.join(&a, who).unwrap());
        assert_eq!([first, second, third].map(|ticket| lines.place(&a, ticket)), [Some(0), Some(1), Some(2)]);
        assert_eq!(lines.leave(&a, second), None, "nobody has a new turn");
        assert_eq!(lines.leave(&a, second), None, "it has left before");
        assert_eq!(lines.leave(&a, first), Some(3));
        assert_eq!(lines.place(&a, third), Some(0));
        assert_eq!(lines.leave(&a, third), None);
        assert!(lines.is_empty());
    }

    #[test]
    fn lines_are_bounded() {
        let mut lines = Lines::<_, ()>::new(BOUNDS);
        let [a, b] = ["a", "b"].map(name);
        (0..3).for_each(|who| assert!(lines.join(&a, who).is_ok()));
        assert_eq!(lines.join(&a, 9), Err(Full::Line { waiters: 3, expected: None }));
        (0..2).for_each(|who| assert!(lines.join(&b, who).is_ok()));
        assert_eq!(lines.join(&b, 9), Err(Full::All { waiters: 5 }));
        assert_eq!((lines.len(&a), lines.len(&b), lines.waiting), (3, 2, 5));
    }

    #[test]
    fn news_last_until_something_happens() {
        let mut lines = Lines::new(BOUNDS);
        let a = name("a");
        let first = lines.join(&a, 1).unwrap();
        lines.join(&a, 2).unwrap();
        assert_eq!(lines.news(&a), None);
        lines.on_failure(&a, Some("held"));
        assert_eq!(lines.news(&a), Some("held"));
        assert_eq!(lines.on_release(&a, false), Next::Heir(1));
        assert_eq!(lines.news(&a), None);
        lines.on_turn(&a, "ours", Duration::ZERO);
        assert_eq!(lines.leave(&a, first), Some(2));
        assert_eq!(lines.news(&a), Some("ours"), "for the new head");
        assert_eq!(lines.on_freed(&a), Some(2));
        assert_eq!(lines.news(&a), None);
        lines.on_failure(&a, None);
        assert_eq!(lines.news(&a), None);
        assert_eq!(lines.on_release(&name("b"), false), Next::Nobody);
    }

    #[test]
    fn a_line_that_has_had_enough_lets_the_lock_go() {
        let mut lines = Lines::<_, ()>::new(BOUNDS);
        let a = name("a");
        lines.join(&a, 1).unwrap();
        assert_eq!(lines.on_release(&a, true), Next::Yields(1));
        assert!(lines.on_try(&a), "it has to try");
        assert_eq!(lines.on_release(&a, true), Next::Trying(1));
    }

    #[test]
    fn a_head_that_leaves_while_it_tries_leaves_no_news() {
        let mut lines = Lines::new(BOUNDS);
        let a = name("a");
        let [first, second, _] = [1, 2, 3].map(|who| lines.join(&a, who).unwrap());
        lines.on_failure(&a, Some("held"));
        assert!(lines.on_try(&a));
        lines.leave(&a, first);
        assert_eq!(lines.news(&a), None);
        lines.on_turn(&a, "ours", Duration::ZERO);
        lines.leave(&a, second);
        assert_eq!(lines.news(&a), Some("ours"));
    }

    /// Protocol section 5: never to a waiter that has an attempt of its own under way.
    #[test]
    fn nothing_is_handed_to_who_is_trying() {
        let mut lines = Lines::<_, ()>::new(BOUNDS);
        let a = name("a");
        let first = lines.join(&a, 1).unwrap();
        assert!(lines.on_try(&a));
        assert!(!lines.on_try(&a));
        assert_eq!(lines.on_release(&a, false), Next::Trying(1));
        lines.on_failure(&a, None);
        assert_eq!(lines.on_release(&a, false), Next::Heir(1));
        assert_eq!(lines.on_release(&a, false), Next::Trying(1), "it has one now");
        lines.join(&a, 2).unwrap();
        assert_eq!(lines.leave(&a, first), Some(2));
        assert_eq!(lines.on_release(&a, false), Next::Heir(2));
    }

    #[test]
    fn the_expected_wait_is_a_mean_of_the_last_turns() {
        let mut lines = Lines::<_, ()>::new(LineBounds { per_name: 100, in_all: 100 });
        let a = name("a");
        (0..50).for_each(|who| assert!(lines.join(&a, who).is_ok()));
        assert_eq!(lines.expected(&a, 0), None);
        (0..=10).for_each(|turn| lines.on_turn(&a, (), Duration::from_millis(20 * turn)));
        assert_eq!(lines.expected(&a, 0), Some(Duration::from_millis(20)));
        assert_eq!(lines.expected(&a, 9), Some(Duration::from_millis(200)));
        lines.on_turn(&a, (), Duration::from_millis(200 + 100));
        assert_eq!(lines.expected(&a, 0), Some(Duration::from_millis(30)), "an eighth of what is more");
    }

    /// What a line is, told by a plain list of all that wait.
    #[test]
    fn any_order_of_coming_and_going_is_first_in_first_out_and_leaves_nothing() {
        let steps = prop::collection::vec((0_usize..4, any::<bool>(), 0_usize..20), 1..200);
        proptest!(|(steps in steps)| {
            let bounds = LineBounds { per_name: 4, in_all: 10 };
            let mut lines = Lines::<_, ()>::new(bounds);
            let names = ["a", "b", "c", "d"].map(name);
            let mut all: Vec<(usize, Ticket)> = Vec::new();
            for (at, joins, which) in steps {
                let of = |all: &[(usize, Ticket)], at: usize| -> Vec<Ticket> {
                    all.iter().filter(|(name, _)| *name == at).map(|(_, ticket)| *ticket).collect()
                };
                if joins {
                    let fits = all.len() < bounds.in_all && of(&all, at).len() < bounds.per_name;
                    let joined = lines.join(&names[at], ());
                    prop_assert_eq!(joined.is_ok(), fits);
                    all.extend(joined.ok().map(|ticket| (at, ticket)));
                } else if !all.is_empty() {
                    let (at, ticket) = all.remove(which % all.len());
                    let was_head = of(&all, at).iter().all(|other| *other > ticket);
                    let next = lines.leave(&names[at], ticket);
                    prop_assert_eq!(next.is_some(), was_head && !of(&all, at).is_empty());
                }
                for (at, name) in names.iter().enumerate() {
                    for (place, ticket) in of(&all, at).into_iter().enumerate() {
                        prop_assert_eq!(lines.place(name, ticket), Some(place));
                    }
                }
                prop_assert_eq!(lines.waiting, all.len());
            }
            for (at, ticket) in all {
                lines.leave(&names[at], ticket);
            }
            prop_assert!(lines.is_empty());
        });
    }

    #[test]
    fn a_million_names_used_once_leave_nothing() {
        let mut lines = Lines::<_, ()>::new(LineBounds { per_name: 1, in_all: 100_000 });
        for round in 0..10 {
            let waiters: Vec<(LockName, Ticket)> = (0..100_000)
                .map(|number| {
                    let name = name(&format!("{round}/{number}"));
                    let ticket = lines.join(&name, ()).unwrap();
                    (name, ticket)
                })
                .collect();
            waiters.into_iter().for_each(|(name, ticket)| assert_eq!(lines.leave(&name, ticket), None));
        }
        assert!(lines.is_empty());
        assert!(lines.lines.capacity() < 4_096, "{}", lines.lines.capacity());
    }
}
