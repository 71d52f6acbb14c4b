//! What is told to those who watch.

use std::sync::Arc;

use redlockd::engine::lease::{LockValue, Owner};
use redlockd::engine::reply::Reply;
use redlockd::node::script::{TellTale, Told};
use redlockd::node::{Channel, Listener, channel_number};

use crate::support::PATIENCE;
use crate::{LONG, LONG_MS, acquire, hand_over, on_every_node, release, value};

const KEY: &str = "lock:a name with blanks";

async fn next(ear: &mut dyn Listener) -> Arc<str> {
    tokio::time::timeout(PATIENCE, ear.next()).await.expect("a message").unwrap()
}

fn owned(nonce: u128) -> LockValue {
    LockValue::new(nonce, None, Owner::new("an owner").unwrap().as_ref())
}

fn told(message: &str) -> (TellTale, String, u64, String, String) {
    let Told { what, lease, ms, owner, key } = Told::read(message).unwrap();
    (what, lease.to_owned(), ms, owner.to_owned(), key.to_owned())
}

#[tokio::test]
async fn those_who_watch_are_told_what_becomes_of_a_lock() {
    on_every_node(async |node| {
        let channel = Channel::Watch(channel_number("lock:", "a name with blanks"));
        let mut ear = node.listen().await;
        ear.subscribe(&[channel]).await.unwrap();
        // Nobody listens to the channel that says so: nothing is published.
        node.one(acquire(KEY, &value(9), LONG)).await;
        assert_eq!(node.one(release(KEY, &value(9))).await, Reply::Yes);

        ear.subscribe(&[Channel::Watchers]).await.unwrap();
        let (first, second) = (owned(1), value(2));
        node.one(acquire(KEY, &first, LONG)).await;
        let (what, lease, ms, owner, key) = told(&next(&mut *ear).await);
        assert_eq!((what, ms, &*owner, &*key), (TellTale::Granted, LONG_MS, "an owner", KEY));
        assert!(!first.as_str().contains(&lease), "an id is no part of the secret");

        // What changes nothing is not told.
        node.one(acquire(KEY, &second, LONG)).await;
        node.one(release(KEY, &second)).await;
        node.one(hand_over(KEY, &first, &second, LONG)).await;
        let (what, heir, ms, owner, _) = told(&next(&mut *ear).await);
        assert_eq!((what, ms, &*owner), (TellTale::HandedOver, LONG_MS, ""));
        assert_ne!(lease, heir);
        node.one(release(KEY, &second)).await;
        assert_eq!(told(&next(&mut *ear).await), (TellTale::Released, heir, 0, String::new(), KEY.to_owned()));
    })
    .await;
}

/// The number that the script computes is the one that proxies listen to.
#[tokio::test]
async fn the_channel_of_a_key_is_the_same_in_rust_and_in_lua() {
    on_every_node(async |node| {
        let names = ["a", "orders/42", "é", "日本語", "a name with blanks", &"x".repeat(512)];
        for name in names {
            let mut ear = node.listen().await;
            ear.subscribe(&[Channel::Watch(channel_number("lock:", name)), Channel::Watchers]).await.unwrap();
            let key = format!("lock:{name}");
            node.one(acquire(&key, &value(1), LONG)).await;
            assert_eq!(told(&next(&mut *ear).await).4, key);
        }
    })
    .await;
}
