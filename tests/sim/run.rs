//! One run: a world, its clients, what goes wrong, the quiet after it, and the judgement.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use redlockd::engine::lease::Ttl;
use redlockd::engine::membership::CounterKind;

use crate::faults::{Breakage, Plan};
use crate::oracle::history::{Call, History, Leftover, Recovery};
use crate::oracle::{Assumptions, Violation, judge};
use crate::world::client::{Client, Habits, Outcome};
use crate::world::holder::{Holder, ttls_of_holders};
use crate::world::{Size, World};

/// No run takes longer than this in true time.
const LONGEST: Duration = Duration::from_secs(600);

/// After the last fault, proxies connect again and clean up.
const QUIET: Duration = Duration::from_secs(60);

/// Beyond the longest TTL, until a lock is granted after all faults: for votes, splits and fast clocks.
const RETRIES: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Debug)]
pub struct Judged {
    pub history: History,
    pub violations: Vec<Violation>,
}

/// Everything that a seed decides.
struct Draw {
    size: Size,
    clients: usize,
    /// Who hold their leases in sessions.
    holders: usize,
    habits: Habits,
    plan: Plan,
}

impl Draw {
    fn new(seed: u64, counter: CounterKind, breakage: Option<Breakage>) -> Self {
        // Another stream than the world's.
        let rng = &mut StdRng::seed_from_u64(!seed);
        let nodes = *[5, 5, 5, 3, 4].choose(rng).expect("some");
        let mut proxies = rng.random_range(1..=3);
        let until = Duration::from_millis(rng.random_range(6_000..12_000));
        let loses_one_in = *[0, 0, 30].choose(rng).expect("some");
        let kind = rng.random_range(0..9);
        let (hurry, crowd) = (kind == 1, kind == 8 && breakage.is_none());
        let habits = match kind {
            // What is left behind stays for long.
            0 => Habits { names: 12, ttls: vec![20_000], rests_ms: 300, holds_ms: 700, crowd: false, loses_one_in, until },
            // Locks go from hand to hand in a hurry, and from some proxies it is far to the counter.
            1 => {
                proxies = proxies.max(2);
                let names = rng.random_range(1..=3);
                Habits {
                    names,
                    ttls: vec![30, 100, 1_000, 1_000],
                    rests_ms: 10,
                    holds_ms: 3,
                    crowd: false,
                    loses_one_in,
                    until: until / 4,
                }
            }
            // Many wait for one lock at every proxy, and nothing goes wrong: all of them get their turns.
            _ if crowd => {
                proxies = proxies.max(2);
                let until = until / 2;
                Habits { names: 1, ttls: vec![3_000], rests_ms: 2, holds_ms: 1, crowd, loses_one_in: 0, until }
            }
            _ => {
                let ttls: &[&[u64]] =
                    &[&[300, 1_000], &[500, 2_000], &[200, 600, 3_000], &[1_000, 1_000, 1_000, 15_000], &[400]];
                let ttls = ttls.choose(rng).expect("some").to_vec();
                Habits { names: rng.random_range(1..=4), ttls, rests_ms: 400, holds_ms: 700, crowd: false, loses_one_in, until }
            }
        };
        let mut plan = Plan::draw(rng, nodes, proxies, habits.until, breakage);
        if hurry || rng.random_bool(0.1) {
            plan.far_counter(rng, nodes, proxies);
        }
        if crowd {
            plan = Plan::default();
        }
        let latency = Duration::from_millis(*[1, 1, 1, 8].choose(rng).expect("some"));
        let holders = if hurry || crowd { 0 } else { *[0, 0, 1, 2].choose(rng).expect("some") };
        let longest = longest_ttl(&habits, holders);
        let size = Size {
            nodes,
            proxies,
            node_timeout: Duration::from_millis(50),
            latency,
            max_ttl: Ttl::from_millis(longest, Ttl::LONGEST).expect("a good TTL"),
            established: rng.random_ratio(3, 4),
            durable: rng.random_ratio(4, 5),
            counter,
        };
        let clients = rng.random_range(4..=7);
        Self { size, clients: if crowd { 3 * clients } else { clients }, holders, habits, plan }
    }
}

/// In milliseconds.
fn longest_ttl(habits: &Habits, holders: usize) -> u64 {
    let of_holders = if holders > 0 { ttls_of_holders(&habits.ttls) } else { Vec::new() };
    habits.ttls.iter().copied().chain(of_holders).max().unwrap_or_default()
}

/// A random run, in which all assumptions hold, or one does not.
pub fn random(seed: u64, counter: CounterKind, breakage: Option<Breakage>, verbose: bool) -> Judged {
    let draw = Draw::new(seed, counter, breakage);
    let assumptions = breakage.map_or(Assumptions::Hold, Breakage::assumptions);
    simulate(seed, draw.size, assumptions, verbose, async move |world| {
        let Draw { clients, holders, habits, plan, .. } = draw;
        let mut lives = tokio::task::JoinSet::new();
        for number in 0..clients {
            let client = Arc::new(Client::new(&world, format!("client {number}"), habits.loses_one_in));
            lives.spawn(client.live(habits.clone()));
        }
        for number in 0..holders {
            let client = Arc::new(Client::new(&world, format!("holder {number}"), habits.loses_one_in));
            lives.spawn(Holder::new(client, habits.clone()).live());
        }
        plan.happen(world.clone()).await;
        while lives.join_next().await.is_some() {}
        let names: Vec<String> = (0..habits.names).map(|name| format!("name-{name}")).collect();
        let longest = Duration::from_millis(longest_ttl(&habits, holders));
        settle(&world, &names, longest).await;
    })
}

/// Lets `story` happen in a world of its own.
pub fn simulate<F: Future<Output = ()>>(
    seed: u64,
    size: Size,
    assumptions: Assumptions,
    verbose: bool,
    story: impl FnOnce(Arc<World>) -> F,
) -> Judged {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let history = runtime.block_on(async {
        let world = World::new(seed, size, verbose);
        tokio::select! {
            biased;
            () = story(world.clone()) => {}
            () = world.shared.time.until(LONGEST) => hangs(&world, "the run to end"),
        }
        std::mem::take(&mut world.shared.state().history)
    });
    let violations = judge(&history, assumptions);
    Judged { history, violations }
}

fn hangs(world: &World, what: &str) {
    let now = world.shared.now();
    let call = Call { what: what.to_owned(), sent: now, answered: None, due: now };
    world.shared.state().history.calls.push(call);
}

/// Waits until all is quiet, looks at what was left, and takes every lock once more.
pub async fn settle(world: &Arc<World>, names: &[String], longest_ttl: Duration) {
    let shared = &world.shared;
    let bound = shared.now() + QUIET;
    // All at one instant: a client that hangs may still wait for a lock.
    while !(0..world.size.proxies).all(|number| world.proxy(number).is_idle()) {
        if shared.now() > bound {
            return hangs(world, "the proxies to be idle");
        }
        shared.sleep(Duration::from_millis(5)).await;
    }
    note_leftovers(world);
    // The last fault may have put a quorum into quarantine.
    let longest_ttl = 2 * longest_ttl + shared.state().set_back;
    for name in names {
        let client = Arc::new(Client::new(world, "the last", 0));
        let wait = longest_ttl + longest_ttl / 100 + RETRIES;
        let (asked, proxy) = (shared.now(), shared.chance(|rng| rng.random_range(0..world.size.proxies)));
        let outcome = client.acquire(proxy, &client.want(name, 400, wait), wait + RETRIES, None).await;
        let granted = matches!(outcome, Outcome::Held(_)).then(|| shared.now());
        let recovery = Recovery { name: name.clone(), asked, granted, due: asked + wait + RETRIES };
        shared.state().history.recoveries.push(recovery);
        if let Outcome::Held(held) = outcome {
            client.write(&held).await;
            client.release(&held).await;
        }
    }
}

fn note_leftovers(world: &World) {
    let now = world.shared.now();
    let state = &mut *world.shared.state();
    for site in &state.sites[..world.size.nodes] {
        for (key, value, _) in site.server.keys(site.wall_clock(now)) {
            let value = String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
            if key.starts_with("lock:") && !state.owned.contains(&value) {
                let excused = state.excused.get(&(site.number, value)).map(ToString::to_string);
                state.history.leftovers.push(Leftover { node: format!("node {}", site.number), key, excused });
            }
        }
    }
}
