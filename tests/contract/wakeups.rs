//! What a release tells, and to whom.

use redlockd::engine::lease::LockValue;
use redlockd::engine::reply::Reply;
use redlockd::node::script::Freed;
use redlockd::node::{Channel, Listener, Op, WakeUp, WireError, channel_number};

use crate::subject::Subject;
use crate::support::PATIENCE;
use crate::{LONG, acquire, on_every_node, release, value};

/// A key whose releases are told on this channel; it has blanks.
fn key_on(channel: u8) -> String {
    let keys = (0..).map(|number| format!("lock:a name with blanks {number}"));
    keys.into_iter().find(|key| channel_number("", key) == channel).unwrap()
}

fn tell(value: &LockValue, channel: u8) -> Op {
    let wake = Some(WakeUp { sender: "me".into() });
    Op::Release { key: key_on(channel).into(), value: value.clone(), wake }
}

async fn take_and_tell(node: &Subject, channel: u8) -> Reply {
    node.one(acquire(&key_on(channel), &value(1), LONG)).await;
    node.one(tell(&value(1), channel)).await
}

/// Who says so, without the number of the lease, and of which key.
fn told(message: &str) -> (&str, &str) {
    let Freed { sender, key } = Freed::read(message).unwrap();
    let (who, lease) = sender.split_once('.').unwrap();
    assert_eq!(lease.len(), 16, "{message}");
    (who, key)
}

fn heard(heard: u32) -> Reply {
    Reply::Released { heard: Some(heard) }
}

async fn next(ear: &mut dyn Listener) -> std::sync::Arc<str> {
    tokio::time::timeout(PATIENCE, ear.next()).await.expect("a message").unwrap()
}

#[tokio::test]
async fn a_release_is_told_to_those_who_listen_to_its_channel() {
    on_every_node(async |node| {
        assert_eq!(take_and_tell(node, 7).await, heard(0), "nobody listens");
        let (mut one, mut other) = (node.listen().await, node.listen().await);
        one.subscribe(&[Channel::Wake(7), Channel::Wake(9), Channel::Wake(255), Channel::Waiters]).await.unwrap();
        other.subscribe(&[Channel::Wake(8), Channel::Waiters]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(1));
        let message = next(&mut *one).await;
        assert_eq!(told(&message), ("me", &*key_on(7)));
        assert_eq!(take_and_tell(node, 10).await, heard(0));

        other.subscribe(&[Channel::Wake(7)]).await.unwrap();
        // Once more only shows that the server answers.
        one.subscribe(&[Channel::Wake(7)]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(2));
        next(&mut *one).await;
        next(&mut *other).await;
        one.unsubscribe(&[Channel::Wake(7)]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(1));
        assert_eq!(take_and_tell(node, 255).await, heard(1));
        // What comes first was sent last: there was nothing in between.
        next(&mut *one).await;
        assert_eq!(take_and_tell(node, 9).await, heard(1));
        assert_eq!(told(&next(&mut *one).await), ("me", &*key_on(9)));
    })
    .await;
}

#[tokio::test]
async fn nothing_is_published_while_nobody_says_that_somebody_waits() {
    on_every_node(async |node| {
        let mut ear = node.listen().await;
        ear.subscribe(&[Channel::Wake(7)]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(0));
        ear.subscribe(&[Channel::Waiters]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(1));
        next(&mut *ear).await;
        ear.unsubscribe(&[Channel::Waiters]).await.unwrap();
        assert_eq!(take_and_tell(node, 7).await, heard(0));
    })
    .await;
}

#[tokio::test]
async fn what_was_not_released_is_not_told() {
    on_every_node(async |node| {
        let mut ear = node.listen().await;
        ear.subscribe(&[Channel::Wake(7), Channel::Waiters]).await.unwrap();
        assert_eq!(node.one(tell(&value(1), 7)).await, Reply::Absent, "nothing is there");
        node.one(acquire(&key_on(7), &value(2), LONG)).await;
        assert_eq!(node.one(tell(&value(1), 7)).await, Reply::Absent, "somebody else's is there");
        assert_eq!(node.one(release(&key_on(7), &value(2))).await, Reply::Yes, "nobody is to know of it");
        assert_eq!(take_and_tell(node, 7).await, heard(1));
        assert_eq!(told(&next(&mut *ear).await), ("me", &*key_on(7)));
        let more = tokio::time::timeout(std::time::Duration::from_millis(50), ear.next()).await;
        assert!(more.is_err(), "{more:?}");
    })
    .await;
}

#[tokio::test]
async fn who_listens_learns_of_the_end_of_the_server() {
    on_every_node(async |node| {
        let mut ear = node.listen().await;
        ear.subscribe(&[Channel::Wake(7), Channel::Waiters]).await.unwrap();
        node.restart().await;
        let end = tokio::time::timeout(PATIENCE, ear.next()).await.expect("an end");
        assert!(matches!(end, Err(WireError::Closed(_))), "{end:?}");
        assert_eq!(take_and_tell(node, 7).await, heard(0));
    })
    .await;
}

#[tokio::test]
async fn of_what_was_no_lease_nobody_is_told() {
    on_every_node(async |node| {
        let mut ear = node.listen().await;
        ear.subscribe(&[Channel::Wake(7), Channel::Wake(8), Channel::Waiters]).await.unwrap();
        // The first time nobody is known to wait; then somebody is.
        for _ in 0..3 {
            for channel in [6, 7, 8, 9] {
                node.one(acquire(&key_on(channel), &value(1), LONG)).await;
            }
            let releases =
                [tell(&value(1), 9), release(&key_on(8), &value(1)), tell(&value(1), 7), release(&key_on(6), &value(1))];
            let replies = node.call(&releases).await.replies;
            assert_eq!(replies, [heard(0), Reply::Yes, heard(1), Reply::Yes]);
            // What comes first was sent last: there was nothing in between.
            assert_eq!(told(&next(&mut *ear).await), ("me", &*key_on(7)));
        }
    })
    .await;
}

#[tokio::test]
async fn each_release_of_a_run_answers_and_is_told_for_itself() {
    on_every_node(async |node| {
        for (channel, owner) in [(1, 1), (2, 9), (4, 1)] {
            node.one(acquire(&key_on(channel), &value(owner), LONG)).await;
        }
        // The third finds nothing; the last is the first once more.
        let releases = [1, 2, 3, 4, 1].map(|channel| tell(&value(1), channel));
        let mut ear = node.listen().await;
        ear.subscribe(&[Channel::Wake(1), Channel::Wake(2), Channel::Wake(4), Channel::Waiters]).await.unwrap();
        let replies = node.call(&releases).await.replies;
        assert_eq!(replies, [heard(1), Reply::Absent, Reply::Absent, heard(1), Reply::Absent]);
        assert_eq!(told(&next(&mut *ear).await), ("me", &*key_on(1)));
        assert_eq!(told(&next(&mut *ear).await), ("me", &*key_on(4)));
        ear.unsubscribe(&[Channel::Waiters]).await.unwrap();
        node.one(acquire(&key_on(1), &value(1), LONG)).await;
        assert_eq!(node.call(&releases).await.replies, [heard(0), Reply::Absent, Reply::Absent, Reply::Absent, Reply::Absent]);
        assert_eq!(node.one(release(&key_on(2), &value(9))).await, Reply::Yes, "it was not touched");
    })
    .await;
}
