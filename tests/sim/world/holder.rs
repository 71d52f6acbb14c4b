//! A client that holds its leases in sessions: it listens, sends signs of life, moves its leases to other proxies, and is
//! sometimes silent, deaf, careless or gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use redlockd::coordinator::lock_id::LockId;
use redlockd::coordinator::question::Released;
use redlockd::coordinator::session::{LeaseNumber, Options, Seq};
use redlockd::engine::lease::Ttl;
use redlockd::engine::tenure::Hindrance;
use tokio::time::Instant;

use crate::oracle::history::{At, Denial, Held, Intrusion, Said, Word};

use super::client::{Client, Habits, InHand};
use super::proxy::{Granted, Want};
use super::stream::{Ask, Heard, Stream, Term};

/// Signs of life for each TTL: the contract says six.
const SIGNS_PER_TTL: u32 = 8;

/// Nobody waits longer than that for what he has asked for, but for a lock.
const PATIENCE: Duration = Duration::from_secs(3);

/// A word that is on its way for long still comes before a lease ends.
const SHORTEST_TTL_MS: u64 = 500;

/// After it was deaf, a client has read what had come.
const CATCHES_UP_IN: Duration = Duration::from_millis(100);

/// For how long some sessions wait for their client to come back.
const REATTACH: Duration = Duration::from_millis(1_500);

/// The TTLs that holders ask for where others ask for `ttls`.
pub fn ttls_of_holders(ttls: &[u64]) -> Vec<u64> {
    ttls.iter().map(|ttl| *ttl.max(&SHORTEST_TTL_MS)).collect()
}

/// A lease as its holder knows it.
#[derive(Clone)]
struct Keep {
    hand: InHand,
    /// What stood for it before it was adopted.
    old_id: Option<LockId>,
    max_hold: Option<Duration>,
    /// By its clock.
    hold_ends: Option<At>,
    /// When the message was sent from which it counts.
    counts_from: At,
}

/// What was asked for and has not been answered.
enum Wanted {
    Lock(Want, Option<Duration>),
    /// To be kept from now on, if that works.
    Adoption(Keep),
    /// It has no lease any more: whatever becomes of that is not allowed to work.
    Theft(InHand),
}

/// A session, as its client knows it.
struct Sitting {
    stream: Stream,
    session_id: Option<String>,
    releases_on_disconnect: bool,
    wanted: BTreeMap<Seq, Wanted>,
    keeps: BTreeMap<LeaseNumber, Keep>,
    /// Lost, or given back for good: nothing more is to be told of them.
    over: BTreeMap<LeaseNumber, Keep>,
    /// Adoptions that failed, to be tried again.
    failed: Vec<Keep>,
    /// Given back, and until when they had been promised.
    returned: BTreeMap<LeaseNumber, (Keep, At)>,
    silent_until: At,
    /// It was deaf: what comes until then may be old.
    catches_up_until: At,
    /// It has asked for the end: nothing that comes now is its any more.
    is_closing: bool,
    /// The stream is over.
    is_over: bool,
}

pub struct Holder {
    client: Arc<Client>,
    habits: Habits,
}

impl Holder {
    pub fn new(client: Arc<Client>, mut habits: Habits) -> Self {
        habits.ttls = ttls_of_holders(&habits.ttls);
        Self { client, habits }
    }

    fn chance(&self, most: u64) -> u64 {
        self.client.world.shared.chance(|rng| rng.random_range(0..most))
    }

    fn any_proxy(&self) -> usize {
        self.chance(self.client.world.size.proxies as u64) as usize
    }

    fn any_ttl(&self) -> Ttl {
        let ms = self.client.world.shared.chance(|rng| *self.habits.ttls.choose(rng).expect("there are some"));
        Ttl::from_millis(ms, Ttl::LONGEST).expect("a good TTL")
    }

    /// Lives until the run is over.
    pub async fn live(self) {
        let shared = self.client.world.shared.clone();
        while shared.now() < self.habits.until || self.client.wants_more() {
            shared.sleep(shared.span(0, self.habits.rests_ms)).await;
            let mut sitting = self.open(self.any_proxy());
            for _ in 0..=self.chance(3) {
                self.ask_for_a_lock(&mut sitting);
            }
            let mut steps = 3 + self.chance(8);
            while steps > 0 && !sitting.is_over {
                steps -= 1;
                self.listen(&mut sitting, shared.span(0, self.habits.holds_ms)).await;
                sitting = self.step(sitting).await;
            }
            self.end(sitting).await;
        }
    }

    fn open(&self, proxy: usize) -> Sitting {
        let reattach = [Duration::ZERO, REATTACH][self.chance(2) as usize];
        let releases_on_disconnect = reattach.is_zero() && self.chance(4) == 0;
        self.open_as(proxy, Options { reattach, release_on_disconnect: releases_on_disconnect, session_id: None }, None)
    }

    fn open_as(&self, proxy: usize, options: Options, before: Option<&Stream>) -> Sitting {
        let mut stream = Stream::open(&self.client.world, self.client.clock, proxy, before);
        self.note(format_args!("opens stream {} to proxy {proxy}: {options:?}", stream.number));
        let releases_on_disconnect = options.release_on_disconnect;
        stream.ask(Ask::Open(options));
        Sitting {
            stream,
            session_id: None,
            releases_on_disconnect,
            wanted: BTreeMap::new(),
            keeps: BTreeMap::new(),
            over: BTreeMap::new(),
            failed: Vec::new(),
            returned: BTreeMap::new(),
            silent_until: At::ZERO,
            catches_up_until: At::ZERO,
            is_closing: false,
            is_over: false,
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.client.world.shared.note(format_args!("{} {what}", self.client.label));
    }

    fn ask_for_a_lock(&self, sitting: &mut Sitting) {
        let shared = &self.client.world.shared;
        let (name, ttl) = (format!("name-{}", self.chance(self.habits.names as u64)), self.any_ttl());
        let wait = if shared.one_in(2) { Duration::ZERO } else { shared.span(0, 1_500) };
        let mut want = self.client.want(&name, ttl.as_millis(), wait);
        if shared.one_in(4) {
            want.request = Some((shared.chance(|rng| rng.next_u64()).to_be_bytes().repeat(2), 1));
        }
        let max_hold = shared.one_in(4).then(|| shared.span(ttl.as_millis() / 2, 2 * ttl.as_millis()));
        let seq = sitting.stream.ask(Ask::Acquire(want.clone(), max_hold));
        self.note(format_args!("asks for {name} as {seq} on stream {}, max hold {max_hold:?}", sitting.stream.number));
        sitting.wanted.insert(seq, Wanted::Lock(want, max_hold));
    }

    /// It does one of the things that clients do.
    async fn step(&self, mut sitting: Sitting) -> Sitting {
        let shared = &self.client.world.shared;
        let any = shared.chance(|rng| {
            let numbers: Vec<LeaseNumber> = sitting.keeps.keys().copied().collect();
            numbers.choose(rng).copied()
        });
        match (self.chance(14), any) {
            (0..4, Some(number)) => {
                let hand = sitting.keeps[&number].hand.clone();
                if self.client.may_use(&hand) {
                    self.client.write(&hand).await;
                }
            }
            (4, Some(number)) => {
                let ttl = shared.one_in(2).then(|| self.any_ttl());
                let keep = sitting.keeps.get_mut(&number).expect("it was found there");
                keep.hand.ttl = ttl.unwrap_or(keep.hand.ttl);
                sitting.stream.ask(Ask::Renew(number, ttl));
            }
            (5 | 6, Some(number)) => {
                self.give_back(&mut sitting, number);
                sitting.stream.ask(Ask::Release(number));
            }
            (7, _) => {
                if let Some(seq) = sitting.wanted.keys().next().copied() {
                    sitting.stream.ask(Ask::Cancel(seq));
                }
            }
            (8, _) => sitting.silent_until = shared.now() + shared.span(0, 2_000),
            (9, _) => self.sleep(&mut sitting).await,
            (10, Some(_)) if !sitting.releases_on_disconnect => return self.move_house(sitting).await,
            (11, _) => return self.come_back(sitting).await,
            _ => self.ask_for_a_lock(&mut sitting),
        }
        sitting
    }

    /// Neither hears nor says anything.
    async fn sleep(&self, sitting: &mut Sitting) {
        let shared = &self.client.world.shared;
        let span = shared.span(0, 1_500);
        self.turns_away(sitting, span);
        shared.sleep(span).await;
        self.turns_back(sitting);
    }

    /// For so long at most it does not listen.
    fn turns_away(&self, sitting: &mut Sitting, at_most: Duration) {
        sitting.stream.is_deaf_until(self.client.world.shared.now() + at_most);
        sitting.keeps.values().for_each(|keep| self.word(&sitting.stream, keep, Said::Unheard));
    }

    fn turns_back(&self, sitting: &mut Sitting) {
        let now = self.client.world.shared.now();
        sitting.stream.is_deaf_until(now);
        sitting.catches_up_until = now + CATCHES_UP_IN;
    }

    /// The lease is good for a while.
    fn good_word(&self, sitting: &Sitting, keep: &Keep, said: Said) {
        self.word(&sitting.stream, keep, said);
        if self.client.world.shared.now() < sitting.catches_up_until {
            self.word(&sitting.stream, keep, Said::Unheard);
        }
    }

    fn word(&self, stream: &Stream, keep: &Keep, said: Said) {
        let until = self.client.clock.when(keep.hand.ends);
        let (lease, proxy) = (keep.hand.granted.lease, format!("proxy {}", stream.proxy));
        let (shared, number) = (&self.client.world.shared, stream.number);
        shared.note(format_args!("{} hears {said:?} of lease {lease} on stream {number}, until {until:?}", self.client.label));
        let word = Word {
            at: shared.now(),
            stream: number,
            proxy,
            lease,
            said,
            counts_from: keep.counts_from,
            until,
            hold_ends: keep.hold_ends,
        };
        shared.state().history.words.push(word);
    }

    /// Listens for so long, and gives signs of life. The leases that end meanwhile should have been told as lost.
    async fn listen(&self, sitting: &mut Sitting, span: Duration) {
        let shared = &self.client.world.shared;
        let until = shared.now() + span;
        while !sitting.is_over && shared.now() < until {
            let sign = self.client.clock.when(self.next_sign(sitting)).max(sitting.silent_until);
            let ends = sitting.keeps.values().map(|keep| self.client.clock.when(keep.hand.ends));
            let next = ends.chain([until, sign]).min().expect("some");
            // What has come is read before the clock is looked at.
            tokio::select! {
                biased;
                heard = sitting.stream.next() => match heard {
                    Some(heard) => self.hear(sitting, heard),
                    None => sitting.is_over = true,
                },
                () = shared.time.until(next) => self.on_time(sitting, sign),
            }
        }
    }

    fn on_time(&self, sitting: &mut Sitting, sign: At) {
        let now = self.client.clock.now();
        let ended = take_where(&mut sitting.keeps, |keep| keep.hand.ends <= now);
        ended.iter().for_each(|keep| self.word(&sitting.stream, keep, Said::Nothing));
        if sign <= self.client.world.shared.now() {
            sitting.stream.ask(Ask::KeepAlive);
        }
    }

    fn next_sign(&self, sitting: &Sitting) -> Instant {
        let kept = sitting.keeps.values().map(|keep| keep.hand.ttl);
        let wanted = sitting.wanted.values().filter_map(|wanted| match wanted {
            Wanted::Lock(want, _) => Some(want.ttl),
            Wanted::Adoption(keep) => Some(keep.hand.ttl),
            Wanted::Theft(_) => None,
        });
        let shortest = kept.chain(wanted).min().unwrap_or(Ttl::LONGEST);
        sitting.stream.last_sent() + shortest.as_duration() / SIGNS_PER_TTL
    }

    fn hear(&self, sitting: &mut Sitting, heard: Heard) {
        match heard {
            Heard::Opened { session_id, resumed } => {
                sitting.session_id = session_id;
                if !resumed {
                    // It came back too late: its leases are in no session.
                    let keeps = std::mem::take(&mut sitting.keeps).into_values().collect();
                    self.ask_to_adopt(sitting, keeps, 1, false);
                }
            }
            Heard::Granted { number, lease, id, validity, term } => {
                let granted = Granted { lease, id, validity, served_for: Duration::ZERO };
                self.on_granted(sitting, number, granted, term);
            }
            Heard::Renewed(number, term) => {
                if let Some(keep) = sitting.keeps.get_mut(&number) {
                    self.lasts(keep, term);
                    self.good_word(sitting, &sitting.keeps[&number], Said::Renewed);
                }
                self.word_after_the_end(sitting, number, Said::Renewed);
            }
            Heard::AtRisk(number) => {
                let keep = sitting.keeps.get(&number);
                keep.into_iter().for_each(|keep| self.word(&sitting.stream, keep, Said::AtRisk));
                self.word_after_the_end(sitting, number, Said::AtRisk);
            }
            Heard::Lost(number, why) => self.on_lost(sitting, number, why),
            Heard::Released(number, released) => self.on_released(sitting, number, released),
            Heard::Contended(seq) => self.fails(sitting, seq, "contended"),
            Heard::Failed(seq, why) => self.fails(sitting, seq, why),
            Heard::Draining => {}
        }
    }

    fn word_after_the_end(&self, sitting: &Sitting, number: LeaseNumber, said: Said) {
        let keep = sitting.over.get(&number);
        keep.into_iter().for_each(|keep| self.word(&sitting.stream, keep, said));
    }

    /// What it was promised before stands all the same.
    fn lasts(&self, keep: &mut Keep, term: Term) {
        keep.hand.ends = keep.hand.ends.max(term.ends);
        keep.counts_from = self.client.clock.when(term.counts_from);
        let until = self.client.clock.when(keep.hand.ends);
        if let Some(held) = &mut self.client.world.shared.state().history.leases[keep.hand.granted.lease].held {
            held.until = until;
        }
    }

    fn on_granted(&self, sitting: &mut Sitting, number: LeaseNumber, granted: Granted, term: Term) {
        let shared = &self.client.world.shared;
        let mut keep = match sitting.wanted.remove(&number) {
            Some(Wanted::Lock(..)) if sitting.is_closing => return,
            Some(Wanted::Lock(want, max_hold)) => {
                let held = Held { from: shared.now(), until: self.client.clock.when(term.ends) };
                shared.state().history.leases[granted.lease].held = Some(held);
                let hand = InHand { granted, ttl: want.ttl, proxy: sitting.stream.proxy, ends: term.ends };
                self.keep(hand, None, max_hold)
            }
            Some(Wanted::Adoption(keep)) => {
                let old_id = Some(keep.hand.granted.id.clone());
                let hand = InHand { granted, proxy: sitting.stream.proxy, ..keep.hand };
                self.keep(hand, old_id, keep.max_hold)
            }
            Some(Wanted::Theft(hand)) => {
                self.intrudes(&hand, "adopt", true);
                sitting.stream.ask(Ask::Release(number));
                return;
            }
            None => return,
        };
        self.lasts(&mut keep, term);
        // Else it was over before anybody knew of it.
        if keep.hand.ends > self.client.clock.now() {
            let said = if keep.old_id.is_some() { Said::Adopted } else { Said::Granted };
            self.good_word(sitting, &keep, said);
            sitting.keeps.insert(number, keep);
        }
    }

    /// The hold counts from the grant, or from the adoption, which was before now. What was promised before that stands.
    fn keep(&self, hand: InHand, old_id: Option<LockId>, max_hold: Option<Duration>) -> Keep {
        let now = self.client.world.shared.now();
        let before = if old_id.is_some() { self.client.clock.when(hand.ends) } else { At::ZERO };
        let hold_ends = max_hold.map(|hold| (now + hold + hold / 100).max(before));
        Keep { hand, old_id, max_hold, hold_ends, counts_from: now }
    }

    fn on_lost(&self, sitting: &mut Sitting, number: LeaseNumber, why: Hindrance) {
        let not_held = why == Hindrance::NotHeld;
        let keep = match sitting.wanted.remove(&number) {
            Some(Wanted::Theft(hand)) => return self.intrudes(&hand, "adopt", false),
            Some(Wanted::Adoption(keep)) => Some(keep),
            Some(Wanted::Lock(..)) | None => {
                self.word_after_the_end(sitting, number, Said::Lost { not_held });
                let keep = sitting.keeps.remove(&number);
                keep.inspect(|keep| {
                    self.word(&sitting.stream, keep, Said::Lost { not_held });
                    sitting.over.insert(number, keep.clone());
                })
            }
        };
        if let Some(keep) = keep.filter(|_| not_held) {
            self.is_denied(&keep.hand, self.client.clock.when(keep.hand.ends), "keep");
        }
    }

    /// A holder is told that it holds nothing.
    fn is_denied(&self, hand: &InHand, promised: At, what: &str) {
        let shared = &self.client.world.shared;
        let now = shared.now();
        if now < promised {
            let denial = Denial { at: now, lease: hand.granted.lease, what: what.to_owned() };
            shared.state().history.denials.push(denial);
        }
    }

    fn intrudes(&self, hand: &InHand, what: &str, worked: bool) {
        let shared = &self.client.world.shared;
        let intrusion = Intrusion { at: shared.now(), lease: hand.granted.lease, what: what.to_owned(), worked };
        shared.note(format_args!("{} tries to {what} lease {}: {worked}", self.client.label, hand.granted.lease));
        shared.state().history.intrusions.push(intrusion);
    }

    fn on_released(&self, sitting: &mut Sitting, number: LeaseNumber, released: Released) {
        self.word_after_the_end(sitting, number, Said::Released);
        let Some((keep, promised)) = sitting.returned.remove(&number) else { return };
        self.word(&sitting.stream, &keep, Said::Released);
        let hand = keep.hand.clone();
        sitting.over.insert(number, keep);
        if released == Released::NotHeld {
            self.is_denied(&hand, promised, "release");
        } else if self.chance(4) == 0 {
            let (id, ttl) = (hand.granted.id.clone(), hand.ttl);
            let seq = sitting.stream.ask(Ask::Adopt { lease: hand.granted.lease, id, ttl, attempt: 1, max_hold: None });
            sitting.wanted.insert(seq, Wanted::Theft(hand));
        }
    }

    fn fails(&self, sitting: &mut Sitting, seq: Seq, why: &'static str) {
        match sitting.wanted.remove(&seq) {
            Some(Wanted::Lock(..)) => self.client.lost(why),
            Some(Wanted::Adoption(keep)) => sitting.failed.push(keep),
            Some(Wanted::Theft(_)) | None => {}
        }
    }

    /// From now on it does not rely on it.
    fn give_back(&self, sitting: &mut Sitting, number: LeaseNumber) {
        let Some(keep) = sitting.keeps.remove(&number) else { return };
        let promised = self.client.clock.when(keep.hand.ends);
        self.relies_no_more_on(&keep);
        sitting.returned.insert(number, (keep, promised));
    }

    fn relies_no_more_on(&self, keep: &Keep) {
        let shared = &self.client.world.shared;
        let now = shared.now();
        let lease = keep.hand.granted.lease;
        shared.state().returned.insert(lease);
        if let Some(held) = &mut shared.state().history.leases[lease].held {
            held.until = held.until.min(now);
        }
    }

    fn give_all_back(&self, sitting: &mut Sitting) {
        let numbers: Vec<LeaseNumber> = sitting.keeps.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.give_back(sitting, number));
    }

    /// Adopts its leases in a session with another proxy, while the old one goes on. The old one then ends, in any way.
    async fn move_house(&self, mut old: Sitting) -> Sitting {
        let mut new = self.open(self.any_proxy());
        let keeps = std::mem::take(&mut old.keeps).into_values().collect();
        // Meanwhile nobody listens to the old one.
        self.turns_away(&mut old, 3 * PATIENCE);
        let left = self.adopt(&mut new, keeps).await;
        // The old one may release them.
        left.iter().for_each(|keep| self.relies_no_more_on(keep));
        if self.chance(3) == 0 {
            self.use_old_ids(&mut new).await;
        }
        self.turns_back(&mut old);
        self.end(old).await;
        new
    }

    /// Tries three times; those of which nobody knows whether it worked.
    async fn adopt(&self, new: &mut Sitting, mut keeps: Vec<Keep>) -> Vec<Keep> {
        let shared = &self.client.world.shared;
        let halves = shared.one_in(2);
        for attempt in 1..=3 {
            if keeps.is_empty() || new.is_over {
                break;
            }
            self.ask_to_adopt(new, keeps, attempt, halves);
            let is_adoption = |wanted: &Wanted| matches!(wanted, Wanted::Adoption(_));
            let patience = shared.now() + PATIENCE;
            while !new.is_over && shared.now() < patience && new.wanted.values().any(is_adoption) {
                self.listen(new, Duration::from_millis(50)).await;
            }
            keeps = std::mem::take(&mut new.failed);
            // Without an answer.
            let open = take_where(&mut new.wanted, is_adoption).into_iter();
            keeps.extend(open.filter_map(|wanted| if let Wanted::Adoption(keep) = wanted { Some(keep) } else { None }));
        }
        keeps
    }

    /// To be held by its own stream from now on, some for half of their time.
    fn ask_to_adopt(&self, new: &mut Sitting, keeps: Vec<Keep>, attempt: u32, halves: bool) {
        for mut keep in keeps {
            let Granted { lease, id, .. } = keep.hand.granted.clone();
            let half = (keep.hand.ttl.as_millis() / 2).max(SHORTEST_TTL_MS);
            if halves {
                keep.hand.ttl = Ttl::from_millis(half, Ttl::LONGEST).expect("less than a good one");
            }
            let seq = new.stream.ask(Ask::Adopt { lease, id, ttl: keep.hand.ttl, attempt, max_hold: keep.max_hold });
            self.note(format_args!("adopts lease {lease} as {seq} on stream {}, attempt {attempt}", new.stream.number));
            new.wanted.insert(seq, Wanted::Adoption(keep));
        }
    }

    /// What stood for its leases before stands for nothing.
    async fn use_old_ids(&self, sitting: &mut Sitting) {
        self.turns_away(sitting, 2 * PATIENCE * sitting.keeps.len() as u32);
        for keep in sitting.keeps.values() {
            let Some(old_id) = &keep.old_id else { continue };
            let call = async {
                let proxy = self.client.reach(self.any_proxy()).await?;
                proxy.release(old_id).await.ok()
            };
            if let Some(released) = self.client.ask(call).await {
                self.intrudes(&keep.hand, "release by its old id", released == Released::Released);
            }
        }
        self.turns_back(sitting);
    }

    /// Its stream breaks, and it goes on where it can: in the same session, or by adopting its leases.
    async fn come_back(&self, mut old: Sitting) -> Sitting {
        let shared = &self.client.world.shared;
        if old.releases_on_disconnect {
            self.give_all_back(&mut old);
        }
        self.note(format_args!("breaks stream {}", old.stream.number));
        // Its proxy may not know that the old one is gone when the new one comes.
        if shared.one_in(2) {
            old.stream.break_off();
            shared.sleep(shared.span(0, 2_500)).await;
        }
        match old.session_id.clone().filter(|_| !shared.one_in(3)) {
            Some(session_id) => {
                let options = Options { reattach: REATTACH, session_id: Some(session_id), ..Options::default() };
                let mut new = self.open_as(old.stream.proxy, options, Some(&old.stream));
                new.keeps = old.keeps;
                for keep in new.keeps.values() {
                    self.word(&new.stream, keep, Said::Adopted);
                    self.word(&new.stream, keep, Said::Unheard);
                }
                new
            }
            None => {
                let mut new = self.open(self.any_proxy());
                self.adopt(&mut new, old.keeps.into_values().collect()).await;
                new
            }
        }
    }

    /// The end of a session, one way or another.
    async fn end(&self, mut sitting: Sitting) {
        let way = if sitting.is_over { 4 } else { self.chance(5) };
        self.note(format_args!("ends stream {} in way {way}", sitting.stream.number));
        match way {
            0..=2 => {
                self.give_all_back(&mut sitting);
                sitting.is_closing = true;
                if way == 0 {
                    sitting.stream.half_close();
                } else {
                    sitting.stream.ask(Ask::Close);
                }
                self.listen(&mut sitting, PATIENCE).await;
            }
            3 => sitting.stream.hang(),
            _ => self.leave(sitting).await,
        }
    }

    /// It goes on by its clock.
    async fn leave(&self, mut sitting: Sitting) {
        let shared = &self.client.world.shared;
        if sitting.releases_on_disconnect {
            self.give_all_back(&mut sitting);
        }
        let keeps = sitting.keeps;
        drop(sitting.stream);
        for keep in keeps.into_values() {
            shared.sleep(shared.span(0, 500)).await;
            if self.client.may_use(&keep.hand) {
                self.client.write(&keep.hand).await;
            }
        }
    }
}

fn take_where<V>(map: &mut BTreeMap<Seq, V>, fits: impl Fn(&V) -> bool) -> Vec<V> {
    let seqs: Vec<Seq> = map.iter().filter(|(_, value)| fits(value)).map(|(seq, _)| *seq).collect();
    seqs.iter().filter_map(|seq| map.remove(seq)).collect()
}
