//! A grant that no one receives is taken back: it travels with its answer, and only the end of a fully written answer lets it
//! go. A response that is dropped before (the client cancelled, the connection died) drops the grant, which releases it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::coordinator::attempt::Grant;

/// A grant in a response's extensions, which have to be `Clone`.
#[derive(Clone)]
pub struct Parcel(Arc<Mutex<Option<Grant>>>);

impl Parcel {
    /// Sends `grant` along with a response.
    pub fn new(grant: Grant) -> Self {
        Self(Arc::new(Mutex::new(Some(grant))))
    }

    fn take(&self) -> Option<Grant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Puts the grant that a response carries on board of its body.
pub fn carry<B>(mut response: http::Response<B>) -> http::Response<Carrier<B>> {
    let grant = response.extensions_mut().remove::<Parcel>().and_then(|parcel| parcel.take());
    response.map(|body| Carrier { body, grant })
}

/// A response body with, maybe, a grant on board.
pub struct Carrier<B> {
    body: B,
    grant: Option<Grant>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Carrier<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // The trailers are the last of an answer.
        let last = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers(),
            Some(Err(_)) => false,
        };
        if last && let Some(grant) = self.grant.take() {
            grant.delivered();
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
