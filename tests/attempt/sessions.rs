//! Sessions on a paused clock: what is counted from when, and what becomes of what is under way.

use std::future::poll_fn;

use futures::stream::StreamExt as _;
use redlockd::coordinator::session::{Inbound, LISTED, LeaseNumber, Message, Options, Outbox, Request, Seq, Told, What};
use tokio::sync::mpsc;

use super::*;

struct Client {
    inbox: mpsc::UnboundedSender<Inbound>,
    outbox: Outbox,
    seq: Seq,
}

impl Client {
    fn of(world: &World) -> Self {
        let (inbox, messages) = mpsc::unbounded_channel();
        let messages = futures::stream::unfold(messages, async |mut messages: mpsc::UnboundedReceiver<_>| {
            Some((messages.recv().await?, messages))
        });
        Self { inbox, outbox: world.coordinator.open_session(messages.boxed()).unwrap(), seq: 0 }
    }

    fn send(&mut self, request: Request) -> Seq {
        self.seq += 1;
        let message = Message { seq: self.seq, received: Instant::now(), request };
        drop(self.inbox.send(Inbound::Message(message)));
        self.seq
    }

    async fn next(&mut self) -> Option<Told> {
        poll_fn(|context| self.outbox.poll_next(context)).await.map(|told| told.unwrap())
    }

    async fn take(&mut self, ttl_ms: u64) -> LeaseNumber {
        self.take_named("a", ttl_ms).await
    }

    async fn take_named(&mut self, name: &str, ttl_ms: u64) -> LeaseNumber {
        let name = LockName::new(name).unwrap();
        let seq = self.send(Request::Acquire(AcquireSpec { name, ..spec(ttl_ms) }, None));
        match self.next().await.unwrap().what {
            What::Granted(lease) if lease.lease == seq => seq,
            what => panic!("{what:?}"),
        }
    }
}

async fn until_ms(start: Instant, ms: u64) {
    tokio::time::sleep_until(start + Duration::from_millis(ms)).await;
}

/// Whether the machine was suspended in between nobody can tell from a message that came later.
#[tokio::test(start_paused = true)]
async fn a_renewal_counts_from_a_message_that_came_before_it_began() {
    let world = world(3).await;
    let start = Instant::now();
    let mut client = Client::of(&world);
    let lease = client.take(3_000).await;
    world.set_delays(&[200; 3]);
    until_ms(start, 900).await;
    let before = client.send(Request::KeepAlive);
    until_ms(start, 1_100).await;
    client.send(Request::KeepAlive);
    let told = client.next().await.unwrap();
    assert_eq!(ms_since(start), 1_200, "it began when a third of the TTL was over");
    assert_eq!((told.acked, told.since.as_millis()), (before, 300));
    // 2,900 from 1,000 on, less 200 and the drift of 3,000.
    assert!(
        matches!(told.what, What::Renewed(renewed, left) if renewed == lease && left.as_millis() == 2_900 - 200 - 8),
        "{told:?}"
    );
}

/// The proxy was stopped meanwhile: the answers are there, and only unread.
#[tokio::test(start_paused = true)]
async fn a_stall_is_not_taken_for_silent_nodes() {
    let world = world(3).await;
    let start = Instant::now();
    let mut client = Client::of(&world);
    let leases = [client.take_named("a", 3_000).await, client.take_named("b", 3_000).await];
    world.set_delays(&[200; 3]);
    until_ms(start, 999).await;
    client.send(Request::KeepAlive);
    until_ms(start, 1_100).await;
    tokio::time::advance(Duration::from_millis(1_700)).await;
    for lease in leases {
        let told = client.next().await.unwrap();
        assert!(matches!(told.what, What::Renewed(renewed, _) if renewed == lease), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_closed_session_adopts_is_released() {
    let world = world(3).await;
    let held = hold(&world, spec(300_000)).await;
    world.set_delays(&[200; 3]);
    let mut client = Client::of(&world);
    let ttl = Ttl::from_millis(10_000, Ttl::LONGEST).unwrap();
    client.send(Request::Adopt { id: held, ttl, attempt: 1, max_hold: None });
    sleep(Duration::from_millis(10)).await;
    client.send(Request::Close);
    while client.next().await.is_some() {}
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

/// Whoever waits for many locks can still keep what it has, and give it up.
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_much_are_still_heard() {
    let world = world(3).await;
    let mut client = Client::of(&world);
    let lease = client.take(1_000).await;
    for _ in 0..90 {
        client.send(Request::Acquire(AcquireSpec { wait: Duration::from_secs(3_000), ..spec(10_000) }, None));
    }
    for _ in 0..100 {
        sleep(Duration::from_millis(150)).await;
        client.send(Request::KeepAlive);
    }
    client.send(Request::Release(lease));
    loop {
        match client.next().await.unwrap().what {
            What::Renewed(renewed, _) => assert_eq!(renewed, lease),
            What::Released(released, Released::Released) => break assert_eq!(released, lease),
            what => panic!("{what:?}"),
        }
    }
}

/// No message is too long for those who come back to very much.
#[tokio::test(start_paused = true)]
async fn what_a_session_holds_is_listed_in_parts() {
    let world = world(3).await;
    let options = Options { reattach: Duration::from_secs(60), ..Options::default() };
    let mut client = Client::of(&world);
    client.send(Request::Open(options.clone()));
    let What::Opened { session_id, leases, more: false, .. } = client.next().await.unwrap().what else { panic!() };
    assert!(leases.is_empty());
    let mut held = Vec::new();
    for number in 0..2 * LISTED + 5 {
        held.push(client.take_named(&format!("n{number}"), 300_000).await);
    }
    let mut back = Client { seq: client.seq, ..Client::of(&world) };
    drop(client);
    back.send(Request::Open(Options { session_id, ..options }));
    let mut parts = Vec::new();
    loop {
        let What::Opened { resumed: true, leases, more, .. } = back.next().await.unwrap().what else { panic!() };
        parts.push(leases.into_iter().map(|lease| lease.lease).collect::<Vec<_>>());
        if !more {
            break;
        }
    }
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [LISTED, LISTED, 5]);
    assert_eq!(parts.concat(), held);
}
