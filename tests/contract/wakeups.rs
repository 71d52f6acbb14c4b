//! What a release tells, and to whom.

use redlockd::engine::lease::LockValue;
use redlockd::engine::reply::Reply;
use redlockd::node::script::Freed;
use redlockd::node::{Channel, Listener, Op, WakeUp, WireError};

use crate::subject::Subject;
use crate::support::PATIENCE;
use crate::{LONG, acquire, on_every_node, release, value};

const KEY: &str = "lock:a name with blanks";

fn tell(value: &LockValue, channel: u8) -> Op {
    let wake = Some(WakeUp { channel, sender: "me.1".into() });
    Op::Release { key: KEY.into(), value: value.clone(), wake }
}

async fn take_and_tell(node: &Subject, channel: u8) -> Reply {
    node.one(acquire(KEY, &value(1), LONG)).await;
    node.one(tell(&value(1), channel)).await
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
        assert_eq!(Freed::read(&message), Some(Freed { sender: "me.1", key: KEY }));
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
        let last =
            Op::Release { key: "lock:last".into(), value: value(1), wake: Some(WakeUp { channel: 9, sender: "me.2".into() }) };
        next(&mut *one).await;
        node.one(acquire("lock:last", &value(1), LONG)).await;
        assert_eq!(node.one(last).await, heard(1));
        assert_eq!(&*next(&mut *one).await, "me.2 lock:last");
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
        node.one(acquire(KEY, &value(2), LONG)).await;
        assert_eq!(node.one(tell(&value(1), 7)).await, Reply::Absent, "somebody else's is there");
        assert_eq!(node.one(release(KEY, &value(2))).await, Reply::Yes, "nobody is to know of it");
        assert_eq!(take_and_tell(node, 7).await, heard(1));
        assert_eq!(&*next(&mut *ear).await, format!("me.1 {KEY}"));
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
