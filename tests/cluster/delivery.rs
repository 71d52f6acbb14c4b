//! A grant that was made and could not be written to its client is taken back. These clients speak HTTP/2 by hand: they give
//! no room for the body of an answer, so that it can not have been written when they go.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

/// A connection of which no stream may receive a byte of a body until there is room.
struct Narrow {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    room: oneshot::Sender<()>,
}

async fn connect(proxy: &Proxy) -> Narrow {
    let stream = TcpStream::connect(proxy.grpc).await.unwrap();
    let (requests, mut connection) = h2::client::Builder::new().initial_window_size(0).handshake(stream).await.unwrap();
    let (room, asked) = oneshot::channel();
    let connection = tokio::spawn(async move {
        tokio::select! {
            ended = &mut connection => return ended,
            asked = asked => if asked.is_ok() { connection.set_initial_window_size(65_535)? },
        }
        connection.await
    });
    Narrow { requests, connection, room }
}

/// Sends an Acquire.
async fn send(requests: &SendRequest<Bytes>, proxy: &Proxy, name: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let head = http::Request::post(format!("{}/redlock.v1.LockService/Acquire", proxy.url()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let message = lasting(name).encode_to_vec();
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap());
    body.put_slice(&message);
    let (response, mut sender) = requests.clone().ready().await.unwrap().send_request(head, false).unwrap();
    sender.send_data(body.freeze(), true).unwrap();
    (response, sender)
}

struct Ungiven {
    cluster: Cluster,
    proxy: Proxy,
}

impl Ungiven {
    async fn set_up() -> Self {
        let cluster = Cluster::start(5);
        let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
        warm_up(&proxy).await;
        Self { cluster, proxy }
    }

    async fn abandoned(&self) -> f64 {
        self.proxy.metric("redlock_attempts_total{outcome=\"abandoned\"}").await
    }

    fn leases(&self) -> usize {
        self.cluster.nodes[0].keys().len()
    }

    /// Grants whose answers have their head out and their body not: the proxy is idle, and the leases are there.
    async fn grants_without_room(&self, requests: &SendRequest<Bytes>, count: usize) -> Vec<(RecvStream, SendStream<Bytes>)> {
        let mut streams = Vec::new();
        for number in 0..count {
            let (response, sender) = send(requests, &self.proxy, &format!("orders/{number}")).await;
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("grpc-status"), "{response:?}");
            streams.push((response.into_body(), sender));
        }
        self.proxy.idle().await;
        until("the leases to stand", || async { (self.leases() == count).then_some(()) }).await;
        streams
    }
}

#[tokio::test]
async fn answers_that_are_reset_before_they_are_written_are_taken_back() {
    let scene = Ungiven::set_up().await;
    let narrow = connect(&scene.proxy).await;
    let mut streams = scene.grants_without_room(&narrow.requests, 50).await;
    // Half of them go; the others' leases stay.
    for (_, sender) in &mut streams[..25] {
        sender.send_reset(Reason::CANCEL);
    }
    until("25 to be taken back", || async { (scene.abandoned().await == 25.0 && scene.leases() == 25).then_some(()) }).await;
    scene.proxy.idle().await;
    let kept = scene.cluster.nodes[0].keys();
    assert!((25..50).all(|number| kept.contains(&format!("lock:orders/{number}"))), "{kept:?}");
    drop(streams);
    until("the others too", || async { (scene.abandoned().await == 50.0).then_some(()) }).await;
    scene.cluster.no_key_left().await;
}

#[tokio::test]
async fn answers_whose_connection_dies_before_they_are_written_are_taken_back() {
    let scene = Ungiven::set_up().await;
    let narrow = connect(&scene.proxy).await;
    let streams = scene.grants_without_room(&narrow.requests, 20).await;
    // The socket goes with the task that owns it; nobody says good-bye.
    narrow.connection.abort();
    let _ = narrow.connection.await;
    until("all to be taken back", || async { (scene.abandoned().await == 20.0).then_some(()) }).await;
    scene.cluster.no_key_left().await;
    scene.proxy.idle().await;
    drop(streams);
}

#[tokio::test]
async fn answers_that_are_written_late_are_their_clients_and_stay() {
    let scene = Ungiven::set_up().await;
    let narrow = connect(&scene.proxy).await;
    let streams = scene.grants_without_room(&narrow.requests, 20).await;
    narrow.room.send(()).unwrap();
    let mut leases = Vec::new();
    for (mut body, sender) in streams {
        let mut answer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            answer.put(data);
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        let answer = proto::AcquireResponse::decode(&answer[5..]).unwrap();
        let Some(acquire_response::Outcome::Granted(grant)) = answer.outcome else { panic!("{answer:?}") };
        leases.push(grant.lock_id);
        drop(sender);
    }
    // What has been written can not be taken back any more, whatever becomes of the client.
    narrow.connection.abort();
    let _ = narrow.connection.await;
    scene.proxy.idle().await;
    assert_eq!((scene.abandoned().await, scene.leases()), (0.0, 20));
    let mut client = scene.proxy.client().await;
    for lock_id in leases {
        assert_eq!(release(&mut client, &lock_id).await, ReleaseOutcome::Released);
    }
    scene.cluster.no_key_left().await;
}
