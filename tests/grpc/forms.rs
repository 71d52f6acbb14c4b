//! The forms that one and the same call may have on the wire, by clients that speak HTTP/2 by hand.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use redlockd::proto::{AcquireResponse, acquire_response};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::*;

/// What an answer says: its message, if it has one, its status, and its headers.
struct Answer {
    message: Bytes,
    code: Code,
    text: String,
    headers: http::HeaderMap,
}

impl Answer {
    fn is_granted(&self) -> bool {
        let Some(message) = self.message.get(5..) else { return false };
        let outcome = AcquireResponse::decode(message).unwrap().outcome;
        self.code == Code::Ok && matches!(outcome, Some(acquire_response::Outcome::Granted(_)))
    }
}

async fn connect(proxy: &Proxy) -> SendRequest<Bytes> {
    let (requests, connection) = h2::client::handshake(TcpStream::connect(proxy.grpc).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// Sends an Acquire in these frames, and headers beside the usual ones; the stream ends with an empty frame, as with many clients.
async fn acquire(requests: &SendRequest<Bytes>, headers: &[(&str, &str)], frames: &[Bytes]) -> Answer {
    let mut head = http::Request::post("http://proxy/redlock.v1.LockService/Acquire")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    let (response, mut sender) = requests.clone().ready().await.unwrap().send_request(head.body(()).unwrap(), false).unwrap();
    for frame in frames {
        sender.send_data(frame.clone(), false).unwrap();
    }
    sender.send_data(Bytes::new(), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let field = |name: &str| trailers.get(name).or(head.headers.get(name)).map(|value| value.to_str().unwrap().to_owned());
    let code = Code::from_bytes(field("grpc-status").expect("a status").as_bytes());
    let text = field("grpc-message").unwrap_or_default();
    Answer { message: message.freeze(), code, text, headers: head.headers }
}

/// A message as it stands in a body.
fn framed(compressed: u8, message: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(compressed);
    body.put_u32(u32::try_from(message.len()).unwrap());
    body.put_slice(message);
    body.freeze()
}

fn wanted(name: &str) -> Vec<u8> {
    want(name).encode_to_vec()
}

#[tokio::test]
async fn a_message_may_come_in_any_number_of_frames() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let requests = connect(&proxy).await;
    let whole = framed(0, &wanted("orders/1"));
    let one = acquire(&requests, &[], &[whole]).await;
    assert!(one.is_granted(), "{:?} {}", one.code, one.text);
    assert_eq!(one.headers["content-type"], "application/grpc");

    let bytes: Vec<Bytes> = framed(0, &wanted("orders/2")).iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect();
    assert!(bytes.len() > 10);
    let two = acquire(&requests, &[("grpc-encoding", "identity")], &bytes).await;
    assert!(two.is_granted(), "{:?} {}", two.code, two.text);
}

#[tokio::test]
async fn what_is_wrong_with_a_message_is_said() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let requests = connect(&proxy).await;
    let message = wanted("orders/42");
    let cut = framed(0, &message).slice(..8);
    let long = framed(0, &[0; 5 << 20]);
    let long: Vec<Bytes> = (0..long.len()).step_by(8192).map(|at| long.slice(at..long.len().min(at + 8192))).collect();
    for (what, headers, frames, code) in [
        ("compressed", &[("grpc-encoding", "gzip")][..], vec![framed(1, &message)], Code::Unimplemented),
        ("said to be compressed", &[("grpc-encoding", "gzip")], vec![framed(0, &message)], Code::Unimplemented),
        ("compressed and not saying how", &[], vec![framed(1, &message)], Code::Internal),
        ("cut", &[], vec![cut], Code::Internal),
        ("none", &[], vec![], Code::Internal),
        ("no message of ours", &[], vec![framed(0, b"\xff\xff\xff")], Code::Internal),
        ("too long", &[], long, Code::OutOfRange),
    ] {
        let answer = acquire(&requests, headers, &frames).await;
        assert_eq!(answer.code, code, "{what}: {}", answer.text);
        assert!(!answer.text.is_empty() && answer.message.is_empty(), "{what}");
    }
    assert!(cluster.nodes.iter().all(|node| node.keys().is_empty()));

    // Longer than what lock clients send, and as good as any; the connection still is.
    let owner = "o".repeat(60_000);
    let asked = redlockd::proto::AcquireRequest { owner, ..want("orders/42") }.encode_to_vec();
    let answer = acquire(&requests, &[], &[framed(0, &asked)]).await;
    assert_eq!(answer.code, Code::InvalidArgument, "{}", answer.text);
    assert!(acquire(&requests, &[], &[framed(0, &message)]).await.is_granted());
}
