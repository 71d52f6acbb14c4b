//! Calls of one message each way, in the form that nearly all of them have: short, and not compressed. Whatever has another form
//! is left to tonic, with all that was read of it: what is wrong with a request is said in one place.
//!
//! tonic reads such a call as a stream of messages that happens to have one, with a value of its own on each level; together with
//! its server around that, it was a tenth of all instructions of the proxy for a pair of unary calls (`bench/README.md`).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};

/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Requests for locks are shorter by far.
const LONGEST: usize = 16 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Reads the message, has it served, and writes the answer. `Err`, with nothing done, for a request that has another form.
pub async fn call<B, M, R, F>(
    request: Request<B>,
    serve: impl FnOnce(tonic::Request<M>) -> F,
) -> Result<Response<Content>, Request<Body>>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Send,
    M: Message + Default,
    R: Message,
    F: Future<Output = Result<tonic::Response<R>, Status>>,
{
    if encoding(&request).is_some_and(|encoding| encoding != "identity") {
        return Err(request.map(Body::new));
    }
    let (parts, body) = request.into_parts();
    let message = match read(body).await {
        Ok(bytes) => decode(&bytes).ok_or(Odd { first: Some(bytes), failed: None, rest: None }),
        Err(odd) => Err(odd),
    };
    match message {
        Ok(message) => {
            let metadata = MetadataMap::from_headers(parts.headers);
            let outcome = serve(tonic::Request::from_parts(metadata, parts.extensions, message)).await;
            Ok(outcome.map_or_else(Status::into_http, answer))
        }
        Err(odd) => Err(Request::from_parts(parts, Body::new(odd))),
    }
}

fn encoding<B>(request: &Request<B>) -> Option<&HeaderValue> {
    request.headers().get("grpc-encoding")
}

/// All of a body, if it may be a message that is neither compressed nor long. A client that never ends it ends with its connection.
async fn read<B>(mut body: B) -> Result<Bytes, Odd<B>>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut read = Read::default();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => read.push(data),
            // Nothing is expected in a client's trailers.
            Ok(Err(_)) => {}
            Err(error) => return Err(Odd { first: Some(read.whole()), failed: Some(error), rest: None }),
        }
        if read.is_odd() {
            return Err(Odd { first: Some(read.whole()), failed: None, rest: Some(body) });
        }
    }
    Ok(read.whole())
}

/// What was read: one frame, as nearly always, or more of them, put together.
#[derive(Default)]
struct Read {
    one: Bytes,
    more: BytesMut,
}

impl Read {
    fn push(&mut self, data: Bytes) {
        if self.bytes().is_empty() {
            self.one = data;
        } else if !data.is_empty() {
            if self.more.is_empty() {
                self.more.extend_from_slice(&self.one);
            }
            self.more.extend_from_slice(&data);
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.more.is_empty() { &self.one } else { &self.more }
    }

    /// Whether it can not be the beginning of one short message that is not compressed.
    fn is_odd(&self) -> bool {
        let length = |bytes| prefix(bytes).map_or(0, |(length, _)| length.unwrap_or(usize::MAX));
        length(self.bytes()).max(self.bytes().len()) > LONGEST
    }

    fn whole(self) -> Bytes {
        if self.more.is_empty() { self.one } else { self.more.freeze() }
    }
}

/// How long a message is, if it is not compressed, and what there is of it.
fn prefix(bytes: &[u8]) -> Option<(Option<usize>, &[u8])> {
    let (&[compressed, a, b, c, d], message) = bytes.split_first_chunk::<PREFIX>()?;
    Some(((compressed == 0).then(|| u32::from_be_bytes([a, b, c, d]) as usize), message))
}

/// The message, if this is exactly one and not compressed.
fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let (length, message) = prefix(bytes)?;
    (length == Some(message.len())).then(|| M::decode(message).ok()).flatten()
}

fn answer<R: Message>(response: tonic::Response<R>) -> Response<Content> {
    let (metadata, message, extensions) = response.into_parts();
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    // Answers about one lock are far from 4 GB; `List` has pages.
    bytes.put_u32(length as u32);
    message.encode_raw(&mut bytes);
    let mut response = Response::new(Content::Plain { message: Some(bytes.freeze()), status: true });
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    *response.extensions_mut() = extensions;
    response
}

/// A request of another form: what was read of it, how that ended, and the rest.
struct Odd<B: HttpBody> {
    first: Option<Bytes>,
    failed: Option<B::Error>,
    rest: Option<B>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> Unpin for Odd<B> {}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Odd<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match (self.failed.take(), &mut self.rest) {
            (Some(error), _) => Poll::Ready(Some(Err(error))),
            (None, Some(rest)) => Pin::new(rest).poll_frame(context),
            (None, None) => Poll::Ready(None),
        }
    }
}

/// A response body.
pub enum Content {
    /// Of one message, if any.
    Plain {
        /// With its prefix; until it is sent.
        message: Option<Bytes>,
        /// Whether the status, which is OK, has to be sent behind it.
        status: bool,
    },
    /// Written by tonic.
    Tonic(Body),
}

impl Default for Content {
    fn default() -> Self {
        Self::Plain { message: None, status: false }
    }
}

impl HttpBody for Content {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(match self.get_mut() {
            Self::Tonic(body) => return Pin::new(body).poll_frame(context),
            Self::Plain { message: message @ Some(_), .. } => message.take().map(|message| Ok(Frame::data(message))),
            Self::Plain { status, .. } => std::mem::take(status).then(|| Ok(Frame::trailers(ok()))),
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tonic(body) => body.is_end_stream(),
            Self::Plain { message, status } => message.is_none() && !status,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tonic(body) => body.size_hint(),
            Self::Plain { .. } => SizeHint::default(),
        }
    }
}

fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tonic::Code;

    use super::*;

    /// A body of these frames.
    struct Frames(VecDeque<Result<Frame<Bytes>, Status>>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn data(bytes: &[u8]) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::copy_from_slice(bytes)))
    }

    fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[compressed][..], &length.to_be_bytes(), message].concat()
    }

    /// Doubles the number in a message; what came back, or the odd request.
    async fn double(frames: Vec<Result<Frame<Bytes>, Status>>) -> Result<Response<Content>, Request<Body>> {
        let request = Request::builder().uri("/a/b").header("a", "b").body(Frames(frames.into())).unwrap();
        call(request, async |request: tonic::Request<u64>| {
            assert_eq!(request.metadata().get("a").unwrap(), "b");
            match request.into_inner() {
                13 => Err(Status::out_of_range("13")),
                number => Ok(tonic::Response::new(2 * number)),
            }
        })
        .await
    }

    /// The bytes of a body, whether trailers came, and how it ended.
    async fn drain<B: HttpBody<Data = Bytes> + Unpin>(mut body: B) -> (Vec<u8>, Option<HeaderMap>, Option<B::Error>) {
        let (mut bytes, mut trailers) = (Vec::new(), None);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => bytes.extend_from_slice(&data),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(error) => return (bytes, trailers, Some(error)),
            }
        }
        (bytes, trailers, None)
    }

    #[tokio::test]
    async fn one_message_is_served_in_however_many_frames_it_comes() {
        let whole = framed(0, &21_u64.encode_to_vec());
        let split: Vec<_> = whole.chunks(1).map(data).collect();
        let trailing = vec![data(&[]), data(&whole), data(&[]), Ok(Frame::trailers(HeaderMap::new()))];
        for frames in [vec![data(&whole)], split, trailing] {
            let response = double(frames).await.ok().unwrap();
            assert_eq!(response.headers().get(CONTENT_TYPE).unwrap(), "application/grpc");
            assert!(!response.body().is_end_stream());
            let (bytes, trailers, error) = drain(response.into_body()).await;
            assert_eq!(bytes, framed(0, &42_u64.encode_to_vec()));
            assert_eq!(trailers.unwrap().get("grpc-status").unwrap(), "0");
            assert!(error.is_none());
        }
    }

    #[tokio::test]
    async fn a_failure_is_the_head_of_an_answer_without_a_body() {
        let response = double(vec![data(&framed(0, &13_u64.encode_to_vec()))]).await.ok().unwrap();
        assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::OutOfRange);
        assert!(response.body().is_end_stream());
    }

    #[tokio::test]
    async fn whatever_is_not_one_plain_message_is_handed_on_whole() {
        let (good, message) = (framed(0, &21_u64.encode_to_vec()), 21_u64.encode_to_vec());
        let cases = [
            vec![],
            good[..4].to_vec(),
            good[..PREFIX].to_vec(),
            good[..good.len() - 1].to_vec(),
            framed(1, &message),
            [good.clone(), good.clone()].concat(),
            framed(0, b"\xff\xff\xff"),
            framed(0, &[0; LONGEST]),
            framed(0, &[0; 3 * LONGEST]),
        ];
        for bytes in cases {
            let frames = bytes.chunks(8192).map(data).collect();
            let odd = double(frames).await.err().unwrap();
            assert_eq!((odd.uri().path(), odd.headers().len()), ("/a/b", 1));
            let (replayed, _, error) = drain(odd.into_body()).await;
            assert_eq!(replayed, bytes);
            assert!(error.is_none());
        }
        let compressed = Request::builder().header("grpc-encoding", "gzip").body(Frames([data(&good)].into())).unwrap();
        let odd = call(compressed, async |_: tonic::Request<u64>| Ok(tonic::Response::new(1_u64))).await.err().unwrap();
        assert_eq!(drain(odd.into_body()).await.0, good);

        let odd = double(vec![data(&good[..4]), Err(Status::cancelled("reset"))]).await.err().unwrap();
        let (replayed, _, error) = drain(odd.into_body()).await;
        assert_eq!(replayed, good[..4]);
        assert!(error.is_some_and(|error| error.code() == Code::Cancelled));
    }
}
