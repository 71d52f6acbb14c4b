//! A grant that no one receives is taken back: it travels with its answer, and only the end of a fully written answer lets it
//! go. A response that is dropped before (the client cancelled, the connection died) drops the grant, which releases it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

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

/// Watches the delivery of every response that carries a [`Parcel`].
#[derive(Clone, Copy, Debug)]
pub struct DeliveryLayer;

impl<S> Layer<S> for DeliveryLayer {
    type Service = Delivery<S>;
    fn layer(&self, inner: S) -> Delivery<S> {
        Delivery { inner }
    }
}

/// See [`DeliveryLayer`].
#[derive(Clone, Debug)]
pub struct Delivery<S> {
    inner: S,
}

impl<S, R> Service<http::Request<R>> for Delivery<S>
where
    S: Service<http::Request<R>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Delivering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<R>) -> Self::Future {
        Delivering { response: self.inner.call(request) }
    }
}

pin_project! {
    /// A response on its way.
    pub struct Delivering<F> {
        #[pin]
        response: F,
    }
}

impl<F, E> Future for Delivering<F>
where
    F: Future<Output = Result<http::Response<Body>, E>>,
{
    type Output = Result<http::Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.project().response.poll(context))?;
        Poll::Ready(match response.extensions_mut().remove::<Parcel>().and_then(|parcel| parcel.take()) {
            None => Ok(response),
            Some(grant) => Ok(response.map(|body| Body::new(Carrier { body, grant: Some(grant) }))),
        })
    }
}

/// A response body with a grant on board.
struct Carrier {
    body: Body,
    grant: Option<Grant>,
}

impl HttpBody for Carrier {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
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
