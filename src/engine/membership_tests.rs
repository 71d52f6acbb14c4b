use super::*;

const RUN: &str = "run-1";
const TTL_MS: u64 = 10_000;

/// Five nodes in the hands of a test: what they hold as markers, what their clocks show.
struct World {
    members: Members,
    texts: Vec<String>,
    clocks_us: Vec<u64>,
    now: Duration,
    marks: u32,
    /// What they hold as ceiling of the counter.
    ceilings: Vec<String>,
    /// Whether they hold counters of their own.
    counted: bool,
}

fn charter(nodes: &[&str]) -> Charter {
    Charter {
        nodes: nodes.iter().map(|name| Arc::from(*name)).collect(),
        counter: CounterKind::Designated,
        max_ttl: Ttl::from_millis(TTL_MS, Ttl::LONGEST).unwrap(),
        drift: DriftFactor::DEFAULT,
        bootstrap: false,
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn quarantine() -> Duration {
    Duration::from_millis(TTL_MS + DriftFactor::DEFAULT.drift_ms(TTL_MS))
}

fn member(run_id: &str) -> Marker {
    let nodes = NAMES.iter().map(|name| Arc::from(*name)).collect();
    let (state, counter) = (State::Member, CounterKind::Designated);
    Marker { run_id: run_id.into(), state, max_ttl_ms: TTL_MS, counter, listed_ms: 0, nodes }
}

impl World {
    /// All nodes are connected, and hold `text`.
    fn of(charter: Charter, text: &str) -> Self {
        let count = charter.nodes.len();
        let mut members = Members::new(charter, Quorum::of(count).unwrap());
        (0..count).for_each(|node| members.on_connected(node, RUN.into(), false));
        let (texts, clocks_us) = (vec![text.to_owned(); count], vec![1_700_000_000_000_000; count]);
        let ceilings = vec![String::new(); count];
        Self { members, texts, clocks_us, now: Duration::from_secs(1), marks: 0, ceilings, counted: false }
    }

    fn new(text: &str) -> Self {
        Self::of(charter(&NAMES), text)
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        let us = u64::try_from(span.as_micros()).unwrap();
        self.clocks_us.iter_mut().for_each(|clock| *clock += us);
    }

    /// A batch, and whether its votes count; then the change of the marker that is due.
    fn batch(&mut self, node: NodeIndex) -> bool {
        let sent = self.now;
        self.pass(Duration::from_millis(1));
        let sample = Sample { sent, received: self.now, node_us: self.clocks_us[node] - 500 };
        let counts = self.members.on_batch(node, &self.texts[node].clone(), sample);
        self.members.on_ceiling(node, &self.ceilings[node].clone(), sent, counts);
        self.members.on_untouched(node, !self.counted);
        self.marks += 1;
        let mark = format!("mark{}", self.marks);
        if let Some(change) = self.members.due_change(node, self.now, || mark)
            && self.texts[node] == *change.expected
        {
            self.texts[node] = change.new.to_string();
            self.ceilings[node] = change.lift.map_or(self.ceilings[node].clone(), |ceiling| ceiling.to_string());
        }
        counts
    }

    fn all(&mut self) -> Vec<bool> {
        (0..self.texts.len()).map(|node| self.batch(node)).collect()
    }

    fn marker(&self, node: NodeIndex) -> Marker {
        Marker::parse(&self.texts[node]).unwrap()
    }

    /// Until the node has been seen in the quarantine that it is in now.
    fn see(&mut self, node: NodeIndex) {
        self.batch(node);
        self.batch(node);
    }
}

#[test]
fn a_marker_is_read_as_it_was_written() {
    let joining = Marker {
        state: State::Joining { mark: "0f".into(), because: Because::Restarted, since_ms: 7 },
        nodes: vec!["r1:6379".into(), "/run/my redis.sock".into()],
        ..member(RUN)
    };
    for marker in [member(RUN), joining] {
        assert_eq!(Marker::parse(&marker.to_string()), Some(marker));
    }
    for text in
        ["", "redlockd/2 run_id=a max_ttl_ms=1 counter=designated listed_ms=0 nodes=a", "x nodes=a", "redlockd/1 nodes=a"]
    {
        assert_eq!(Marker::parse(text), None, "{text}");
    }
}

#[test]
fn only_a_process_that_its_marker_names_votes() {
    let mut world = World::new(&member(RUN).to_string());
    assert_eq!(world.all(), [true; 5]);
    world.texts[0] = String::new();
    assert!(!world.batch(0), "emptied, and noticed by the very batch that finds it so");
    world.members.on_connected(1, "run-2".into(), false);
    assert!(!world.batch(1), "another process");
    assert!(world.batch(2));
    assert_eq!(world.members.standing(0, world.now), Standing::Quarantined { because: Because::Missing, left: None });
}

#[test]
fn a_quarantine_lasts_as_long_as_the_longest_lease_and_its_drift() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.texts[0] = String::new();
    world.see(0);
    assert!(matches!(world.marker(0).state, State::Joining { because: Because::Missing, .. }));
    world.pass(quarantine() - Duration::from_millis(5));
    world.see(0);
    assert!(!world.batch(0));
    assert!(
        matches!(world.members.standing(0, world.now), Standing::Quarantined { left: Some(left), .. } if left < Duration::from_millis(5))
    );
    world.pass(Duration::from_millis(5));
    assert_eq!(world.all()[1..], [true; 4]);
    assert!(!world.batch(0), "it ends with the marker that is written now");
    assert_eq!(world.marker(0), member(RUN));
    assert!(world.batch(0));
}

#[test]
fn another_proxys_longer_leases_count() {
    let mut world = World::new(&Marker { max_ttl_ms: 60_000, ..member(RUN) }.to_string());
    world.texts[0] = String::new();
    world.all();
    world.see(0);
    world.pass(quarantine());
    world.all();
    world.see(0);
    assert!(!world.batch(0));
    world.pass(Duration::from_secs(60));
    world.all();
    world.see(0);
    assert!(world.batch(0));
    assert_eq!(world.marker(0).max_ttl_ms, 60_000);
}

#[test]
fn no_vote_before_the_marker_knows_of_our_longest_lease() {
    let mut world = World::new(&Marker { max_ttl_ms: 1_000, ..member(RUN) }.to_string());
    assert!(!world.batch(0));
    assert!(world.batch(0));
    assert_eq!(world.marker(0).max_ttl_ms, TTL_MS);
}

/// A proxy that was held up would write a marker over a second loss, were it not for the mark.
#[test]
fn a_slow_proxy_does_not_end_a_quarantine_that_it_has_not_seen() {
    let mut world = World::new("");
    world.all();
    world.see(0);
    world.pass(quarantine());
    // The others tell of the ceiling, and this proxy is held up before it changes anything.
    (1..5).for_each(|node| {
        world.texts[node] = member(RUN).to_string();
        world.see(node);
    });
    let change = world.members.due_change(0, world.now, || "unused".to_owned()).unwrap();
    assert_eq!(Marker::parse(&change.new), Some(member(RUN)));
    // Meanwhile another proxy ended it, the node voted, and was emptied again: nothing is there, or another mark.
    assert_ne!(&*change.expected, "");
    let again = world.texts[0].replace("joining=mark1", "joining=mark99");
    assert_ne!(*change.expected, *again);
    world.texts[0] = again;
    world.batch(0);
    assert_eq!(world.members.due_change(0, world.now, || "unused".to_owned()), None, "a second loss, and a second quarantine");
    world.pass(quarantine());
    (1..5).for_each(|node| world.see(node));
    assert!(world.members.due_change(0, world.now, || "unused".to_owned()).is_some());
}

/// A grant's token may stand on a quorum less one of the other nodes only, and the ceiling likewise.
#[test]
fn a_node_knows_the_ceiling_before_it_votes() {
    let mut world = World::new(&member(RUN).to_string());
    world.ceilings = ["70 c", "50 c", "70 c", "50 c", "50 c"].map(str::to_owned).into();
    world.all();
    (world.texts[0], world.ceilings[0]) = (String::new(), "9 c".to_owned());
    world.see(0);
    // What was read in time of quarantine is too old: a raise may have been under way.
    world.pass(quarantine() - Duration::from_millis(100));
    world.all();
    world.pass(Duration::from_millis(200));
    world.see(0);
    world.see(0);
    assert!(world.members.standing(0, world.now).to_string().contains("how far tokens have got"));
    world.batch(1);
    world.batch(3);
    world.see(0);
    assert!(!world.batch(0), "two others, of five, may both be without it");
    world.batch(2);
    world.see(0);
    assert!(world.batch(0));
    assert_eq!(world.ceilings[0], "70 c");
}

/// Nobody who votes knows enough: then what all know together counts, or what the counter itself says.
#[test]
fn a_majority_that_restarted_is_brought_up_by_all_or_by_the_counter() {
    let restarted = || {
        let mut world = World::new(&member(RUN).to_string());
        world.ceilings = ["70 c", "50 c", "70 c", "50 c", "50 c"].map(str::to_owned).into();
        world.all();
        for node in [0, 2, 4] {
            (world.texts[node], world.ceilings[node]) = (String::new(), String::new());
            world.see(node);
        }
        world.pass(quarantine() + Duration::from_millis(100));
        world
    };
    let mut world = restarted();
    for node in [1, 0, 2, 4, 0, 2, 4] {
        world.batch(node);
    }
    assert!(!world.batch(0) && !world.batch(2), "one that can be reached has not told");
    world.members.on_lost(3, world.now);
    world.see(0);
    assert!(world.batch(0));
    assert_eq!(world.ceilings[0], "50 c");

    let mut world = restarted();
    world.members.on_counter_ceiling(80, "c", world.now);
    world.batch(0);
    world.see(0);
    assert!(world.batch(0));
    assert_eq!(world.ceilings[0], "80 c");
}

#[test]
fn what_is_on_disk_before_the_answer_is_not_forgotten() {
    let mut world = World::new(&member("run-0").to_string());
    world.members.on_connected(0, RUN.into(), true);
    assert!(!world.batch(0));
    assert!(world.batch(0), "at once, with a marker that names it");
    assert!(!world.batch(1) && !world.batch(1), "this one does not write everything down");
    assert!(matches!(world.marker(1).state, State::Joining { because: Because::Restarted, .. }));
    // An empty node has lost its file, whatever its settings say.
    world.texts[2] = String::new();
    world.members.on_connected(2, RUN.into(), true);
    assert!(!world.batch(2) && !world.batch(2));
}

#[test]
fn a_clock_that_was_set_costs_its_node_the_vote_at_every_proxy() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.clocks_us[3] += 40_000_000;
    assert!(!world.batch(3), "the first vote after the step does not count");
    assert!(world.members.hearing());
    world.all();
    world.batch(3);
    assert!(matches!(world.marker(3).state, State::Joining { because: Because::Clock, .. }));
    assert_eq!(world.all(), [true, true, true, false, true]);
    world.pass(quarantine() + Duration::from_secs(1));
    world.all();
    world.see(3);
    assert!(world.batch(3));
}

#[test]
fn a_clock_that_is_set_again_begins_another_quarantine() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    let step = |world: &mut World| {
        world.clocks_us[3] += 40_000_000;
        world.all();
        world.all();
        world.all();
    };
    step(&mut world);
    let first = world.marker(3);
    world.pass(quarantine() / 2);
    step(&mut world);
    assert_ne!(world.marker(3).state, first.state, "another mark");
    world.pass(quarantine() / 2 + Duration::from_secs(1));
    world.see(3);
    assert!(!world.batch(3), "the first quarantine would be over");
    world.pass(quarantine() / 2);
    world.all();
    world.see(3);
    assert!(world.batch(3));
}

#[test]
fn two_clocks_that_were_set_alike_are_two_clocks_that_were_set() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.clocks_us[0] += 40_000_000;
    world.clocks_us[1] += 40_000_000;
    world.all();
    world.all();
    assert_eq!(world.all(), [false, false, true, true, true]);
    assert_eq!(world.members.sleeps(), 0);
}

#[test]
fn if_all_clocks_leap_alike_it_was_this_proxy_that_slept() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.clocks_us.iter_mut().for_each(|clock| *clock += 90_000_000);
    assert_eq!(world.all()[..4], [false; 4], "nothing counts until it is found out");
    assert_eq!(world.members.sleeps(), 1);
    assert_eq!(world.all(), [true; 5]);
    // By different spans, or back: these were set.
    for node in 0..5 {
        world.clocks_us[node] += 1_000_000 * (node as u64 + 1);
    }
    world.all();
    assert_eq!((world.members.sleeps(), world.members.may_vote(0)), (1, false));
}

#[test]
fn a_witness_that_does_not_answer_is_waited_for_and_not_for_ever() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.clocks_us[0] += 40_000_000;
    world.batch(0);
    assert_eq!(world.members.standing(0, world.now), Standing::Suspect);
    world.members.on_lost(1, world.now);
    world.pass(HEARING);
    for node in 2..5 {
        world.batch(node);
    }
    assert!(matches!(world.members.standing(0, world.now), Standing::Quarantined { because: Because::Clock, .. }));
    world.clocks_us[4] += 40_000_000;
    world.batch(4);
    world.pass(HEARING);
    world.batch(4);
    assert!(matches!(world.members.standing(4, world.now), Standing::Quarantined { because: Because::Clock, .. }));
}

#[test]
fn a_new_cluster_votes_at_once_if_people_say_that_it_is_new() {
    let mut world = World::of(Charter { bootstrap: true, ..charter(&NAMES) }, "");
    (0..4).for_each(|node| world.see(node));
    assert!(!world.batch(0), "one node has not answered");
    world.see(4);
    assert!(!world.batch(0), "nor has the counter");
    world.members.on_counter(true);
    world.all();
    assert_eq!(world.all(), [true; 5]);
    // Once only: a node that is emptied later has forgotten its locks.
    world.texts[2] = String::new();
    world.see(2);
    world.see(2);
    assert!(!world.batch(2));
}

#[test]
fn a_cluster_with_any_trace_is_not_new() {
    let bootstrap = || Charter { bootstrap: true, ..charter(&NAMES) };
    let mut world = World::of(bootstrap(), "");
    world.members.on_counter(false);
    world.all();
    world.all();
    assert_eq!(world.all(), [false; 5], "the counter remembers");
    let mut world = World::of(bootstrap(), "");
    world.texts[3] = member("run-0").to_string();
    world.members.on_counter(true);
    world.all();
    world.all();
    assert_eq!(world.all(), [false; 5], "a node remembers");
    for (ceiling, counted) in [("70 c", false), ("", true)] {
        let mut world = World::of(bootstrap(), "");
        (world.ceilings[2], world.counted) = (ceiling.to_owned(), counted);
        world.members.on_counter(true);
        world.all();
        world.all();
        assert_eq!(world.all(), [false; 5], "a node has tokens of an earlier time");
    }
}

#[test]
fn the_list_of_nodes_changes_by_one_at_a_time_and_slowly() {
    let old = member(RUN).to_string();
    let four = || charter(&NAMES[..4]);
    let mut world = World::of(four(), &old);
    assert!(world.batch(0), "one less: any quorum of the old list meets any of the new one");
    assert_eq!(world.marker(0).nodes.len(), 4);
    assert!(world.marker(0).listed_ms > 0);
    assert!(world.batch(0));
    // Who runs with the old list goes on, and does not change it back.
    let changed = world.texts[0].clone();
    let mut before = World::new(&old);
    before.all();
    before.texts[0].clone_from(&changed);
    assert!(before.batch(0));
    assert_eq!(before.texts[0], changed);
    // The next change has to wait.
    let mut three = World::of(charter(&NAMES[..3]), &changed);
    three.clocks_us[0] = world.clocks_us[0];
    assert!(!three.batch(0) && !three.batch(0));
    assert!(three.members.standing(0, three.now).to_string().contains("One node at a time"));
    three.pass(quarantine() + Duration::from_secs(2));
    three.see(0);
    assert!(three.batch(0));
    // Two at once never.
    let mut two = World::of(charter(&NAMES[..3]), &old);
    assert!(!two.batch(0) && !two.batch(0));
    let said = two.members.standing(0, two.now).to_string();
    assert!(said.contains("d, e"), "{said}");
}

#[test]
fn a_marker_that_can_not_be_read_is_left_alone() {
    let mut world = World::new("redlockd/9 something new nodes=a");
    assert!(!world.batch(0) && !world.batch(0));
    assert_eq!(world.texts[0], "redlockd/9 something new nodes=a");
}

/// Where this machine slept, connections died, and nodes come back one by one.
#[test]
fn a_node_that_is_heard_late_is_not_guilty_of_our_sleep() {
    let mut world = World::new(&member(RUN).to_string());
    world.all();
    world.clocks_us.iter_mut().for_each(|clock| *clock += 90_000_000);
    (3..5).for_each(|node| world.members.on_lost(node, world.now));
    assert_eq!([0, 1, 2].map(|node| world.batch(node)), [false; 3]);
    assert_eq!(world.members.sleeps(), 0, "two have not been heard");
    world.pass(HEARING);
    world.batch(0);
    assert_eq!(world.members.sleeps(), 1);
    for node in 3..5 {
        world.members.on_connected(node, RUN.into(), false);
        assert!(world.batch(node), "it tells of the same leap");
    }
    // A leap of its own is another matter.
    world.clocks_us[4] += 90_000_000;
    assert!(!world.batch(4));
}

#[test]
fn a_lone_clock_is_no_witness_for_itself() {
    let mut world = World::of(charter(&NAMES[..1]), &member(RUN).to_string().replace("a,b,c,d,e", "a"));
    assert!(world.batch(0));
    world.clocks_us[0] += 40_000_000;
    assert!(!world.batch(0));
    world.see(0);
    assert!(matches!(world.members.standing(0, world.now), Standing::Quarantined { because: Because::Clock, .. }));
}
