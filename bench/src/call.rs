//! Unary gRPC calls, made straight on HTTP/2 or by tonic's client.
//!
//! Whoever calls works on the same processors as what is measured, so callers are to cost little. With tonic's client they take more
//! for a call than the proxy does. It is measured too, as what a service in Rust sees: `bench/README.md` has the figures.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use h2::Reason;
use h2::client::{Connection, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::Error;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Unless a URL names another.
const HTTP_PORT: u16 = 80;

/// With a server that does not answer to a new connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client of a gRPC server. Clones share a connection.
pub trait Call: Clone + Send + 'static {
    /// Of the server at this URL.
    fn connect(url: &str) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Calls a method, `/package.Service/Method`.
    fn call<Q, A>(&mut self, method: &'static str, message: Q) -> impl Future<Output = Result<A, Status>> + Send
    where
        Q: Message + 'static,
        A: Message + Default + 'static;
}

/// tonic's client.
pub type Tonic = Grpc<Channel>;

impl Call for Tonic {
    async fn connect(url: &str) -> Result<Self, Error> {
        channel(url).await.map(Self::new)
    }

    async fn call<Q, A>(&mut self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ready().await.map_err(|error| Status::unavailable(causes(&error)))?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.unary(tonic::Request::new(message), PathAndQuery::from_static(method), codec).await?.into_inner())
    }
}

/// An open connection of tonic's.
pub async fn channel(url: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| format!("{url}: {error}"))?;
    endpoint.connect().await.map_err(|error| format!("{url}: no connection: {}", causes(&error)).into())
}

/// tonic's own words say only that the transport failed.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// HTTP/2 and nothing else. Its clones share the connection; one that was lost is opened anew with the next call.
#[derive(Clone)]
pub struct Caller {
    server: Arc<Server>,
    requests: SendRequest<Bytes>,
}

struct Server {
    authority: Authority,
    newest: Mutex<SendRequest<Bytes>>,
}

impl Call for Caller {
    async fn connect(url: &str) -> Result<Self, Error> {
        let named = |error: &dyn std::fmt::Display| format!("{url}: no connection: {error}");
        let uri: Uri = url.parse().map_err(|error| named(&error))?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(named(&"its scheme is not http, which is all that is spoken here").into());
        }
        let authority = uri.authority().ok_or_else(|| named(&"it names no host"))?.clone();
        let requests = open(&authority).await.map_err(|error| named(&error))?;
        let server = Server { authority, newest: Mutex::new(requests.clone()) };
        Ok(Self { server: Arc::new(server), requests })
    }

    async fn call<Q, A>(&mut self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ready().await?;
        let lost = |error| self.server.lost(&error);
        let (answer, mut body) = self.requests.send_request(self.server.request(method), false).map_err(lost)?;
        body.send_data(framed(&message), true).map_err(lost)?;
        let (head, mut body) = answer.await.map_err(lost)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(refused(head.status, &head.headers));
        }
        let mut data = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(lost)?;
            body.flow_control().release_capacity(chunk.len()).map_err(lost)?;
            data.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.map_err(lost)?;
        succeeded(trailers.as_ref().unwrap_or(&head.headers))?;
        unframed(&data)
    }
}

impl Caller {
    /// Waits until the connection takes one more request.
    async fn ready(&mut self) -> Result<(), Status> {
        if is_ready(&mut self.requests).await.is_ok() {
            return Ok(());
        }
        let mut newest = self.server.newest.lock().await;
        // Another caller may have opened it already.
        if is_ready(&mut newest).await.is_err() {
            let unreachable = |error| Status::unavailable(format!("{}: no connection: {error}", self.server.authority));
            *newest = open(&self.server.authority).await.map_err(unreachable)?;
        }
        self.requests = newest.clone();
        drop(newest);
        is_ready(&mut self.requests).await.map_err(|error| self.server.lost(&error))
    }
}

impl Server {
    fn request(&self, method: &'static str) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_static(method));
        // All three parts are there, which is all that is asked.
        *request.uri_mut() = Uri::from_parts(uri).expect("a URI of all its parts");
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request
    }

    /// What the end of a connection, or of one request on it, is to gRPC.
    fn lost(&self, error: &h2::Error) -> Status {
        let server = &self.authority;
        if !error.is_reset() {
            return Status::unavailable(format!("{server}: the connection was lost: {error}"));
        }
        let code = match error.reason() {
            Some(Reason::REFUSED_STREAM) => Code::Unavailable,
            Some(Reason::CANCEL) => Code::Cancelled,
            Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
            _ => Code::Internal,
        };
        Status::new(code, format!("{server}: the request was ended: {error}"))
    }
}

async fn is_ready(requests: &mut SendRequest<Bytes>) -> Result<(), h2::Error> {
    poll_fn(|context| requests.poll_ready(context)).await
}

async fn open(authority: &Authority) -> Result<SendRequest<Bytes>, Error> {
    let port = authority.port_u16().unwrap_or(HTTP_PORT);
    let opening = async {
        let socket = TcpStream::connect(format!("{}:{port}", authority.host())).await?;
        socket.set_nodelay(true)?;
        Ok::<_, Error>(h2::client::handshake(socket).await?)
    };
    let opened = tokio::time::timeout(PATIENCE, opening).await;
    let (requests, connection) = opened.map_err(|_| format!("not within {PATIENCE:?}"))??;
    tokio::spawn(drive(connection));
    Ok(requests)
}

/// Moves what is sent and received. Whenever there is something to do, everybody else who is ready on this thread has a turn
/// first: what many callers send at a time leaves in one write.
async fn drive(mut connection: Connection<TcpStream>) {
    let mut gives_way = false;
    let ended = poll_fn(|context| {
        gives_way = !gives_way;
        if gives_way {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        connection.poll_unpin(context)
    });
    // Why it has ended is told to whoever calls.
    drop(ended.await);
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    // A message that gRPC can carry.
    message.encode(&mut frame).expect("room for the message");
    frame.freeze()
}

fn unframed<A: Message + Default>(data: &[u8]) -> Result<A, Status> {
    let message = match data.split_first_chunk::<PREFIX>() {
        Some(([0, length @ ..], message)) if u32::from_be_bytes(*length) as usize == message.len() => message,
        _ => return Err(Status::internal(format!("an answer of {} bytes that is not one plain message", data.len()))),
    };
    A::decode(message).map_err(|error| Status::internal(format!("an answer that can not be read: {error}")))
}

fn succeeded(trailers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(trailers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(Status::unknown("an answer without a status")),
    }
}

/// By something that is no gRPC server, or in front of one.
fn refused(status: StatusCode, headers: &HeaderMap) -> Status {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::from_header_map(headers).unwrap_or_else(|| Status::new(code, format!("HTTP status {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    use prost_types::Duration as Text;
    use tokio::net::TcpListener;

    const METHOD: &str = "/a.Service/Method";

    /// Answers one call on each connection: with a copy of the message, or, if there are no trailers, not at all.
    async fn serve(listener: TcpListener, trailers: HeaderMap) {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            let trailers = trailers.clone();
            let answer = async move {
                if trailers.is_empty() {
                    return respond.send_reset(Reason::CANCEL);
                }
                assert_eq!((request.method(), request.uri().path()), (&Method::POST, METHOD));
                assert_eq!(request.headers()[header::CONTENT_TYPE], "application/grpc");
                let message = request.into_body().data().await.unwrap().unwrap();
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                // In two parts: a message does not have to come at once.
                stream.send_data(message.slice(..PREFIX), false).unwrap();
                stream.send_data(message.slice(PREFIX..), false).unwrap();
                stream.send_trailers(trailers).unwrap();
            };
            let answered = tokio::spawn(answer);
            while connection.accept().await.is_some() {}
            answered.await.unwrap();
        }
    }

    fn status(code: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
    }

    async fn server(trailers: HeaderMap) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, trailers));
        url
    }

    #[tokio::test]
    async fn an_answer_is_read_and_a_connection_that_ends_is_opened_anew() {
        let url = server(status("0")).await;
        let mut caller = Caller::connect(&url).await.unwrap();
        let mut other = caller.clone();
        for seconds in 1..5 {
            let message = Text { seconds, nanos: 7 };
            assert_eq!(caller.call::<Text, Text>(METHOD, message).await.unwrap(), message);
            assert_eq!(other.call::<Text, Text>(METHOD, message).await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_with_its_code() {
        let mut caller = Caller::connect(&server(status("14")).await).await.unwrap();
        let message = Text { seconds: 1, nanos: 0 };
        assert_eq!(caller.call::<Text, Text>(METHOD, message).await.unwrap_err().code(), Code::Unavailable);
        let mut caller = Caller::connect(&server(HeaderMap::new()).await).await.unwrap();
        assert_eq!(caller.call::<Text, Text>(METHOD, message).await.unwrap_err().code(), Code::Cancelled);
        assert_eq!(succeeded(&HeaderMap::new()).unwrap_err().message(), "an answer without a status");
        for bad in ["127.0.0.1", "https://127.0.0.1:1", "http://127.0.0.1:1", "http://"] {
            let failure = Caller::connect(bad).await.err().unwrap().to_string();
            assert!(failure.starts_with(&format!("{bad}: no connection: ")), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_gone_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, status("0")));
        let mut caller = Caller::connect(&format!("http://{address}")).await.unwrap();
        let message = Text { seconds: 1, nanos: 0 };
        assert_eq!(caller.call::<Text, Text>(METHOD, message).await.unwrap(), message);
        serving.abort();
        drop(serving.await);
        let failure = caller.call::<Text, Text>(METHOD, message).await.unwrap_err();
        assert_eq!(failure.code(), Code::Unavailable);
        assert!(failure.message().starts_with(&format!("{address}: no connection: ")), "{failure}");
    }

    #[test]
    fn what_is_no_answer_of_grpc_has_a_code_too() {
        let none = HeaderMap::new();
        assert_eq!(refused(StatusCode::SERVICE_UNAVAILABLE, &none).code(), Code::Unavailable);
        assert_eq!(refused(StatusCode::NOT_FOUND, &none).code(), Code::Unknown);
        assert_eq!(refused(StatusCode::NOT_FOUND, &status("12")).code(), Code::Unimplemented);
    }

    #[test]
    fn only_one_plain_message_is_an_answer() {
        let message = Text { seconds: 300, nanos: 1 };
        let frame = framed(&message);
        assert_eq!(unframed::<Text>(&frame).unwrap(), message);
        assert_eq!(unframed::<Text>(&framed(&Text::default())).unwrap(), Text::default());
        let compressed = [&[1], &frame[1..]].concat();
        let two = [&frame[..], &frame[..]].concat();
        for bad in [&frame[..frame.len() - 1], &frame[..3], &[], &compressed, &two] {
            assert_eq!(unframed::<Text>(bad).unwrap_err().code(), Code::Internal, "{bad:?}");
        }
    }
}
