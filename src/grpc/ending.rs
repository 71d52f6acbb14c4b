//! How a client's side of a stream ended. tonic reports a reset as it reports an orderly end, and for a session they are
//! opposites: an orderly end releases everything, and after any other the client may still be using what it holds.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;

/// In a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<AtomicBool>);

impl Ending {
    /// Whether the client has ended its side itself, whatever came after that.
    pub fn is_orderly(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Gives a request an [`Ending`].
pub fn watch(request: http::Request<Body>) -> http::Request<Body> {
    let ending = Ending::default();
    let mut request = request.map(|body| Body::new(Watched { body, ending: ending.clone() }));
    request.extensions_mut().insert(ending);
    request
}

/// A request body whose end is seen.
struct Watched {
    body: Body,
    ending: Ending,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // False after a reset that came without an end, also one that hyper takes for it.
        if frame.is_none() && self.body.is_end_stream() {
            self.ending.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
