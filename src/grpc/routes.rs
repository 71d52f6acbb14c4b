//! Which service a request is for. Calls for locks go to theirs at once: the router, which all others go through, would take
//! as long as what is done for them here.

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service as _;

use crate::proto::lock_service_server::{LockService, LockServiceServer};

use super::delivery::{Carrier, carry};
use super::ending;
use super::plain::{self, Content};
use super::service::Service;

/// All services of a proxy.
#[derive(Clone)]
pub struct Services(Arc<All>);

struct All {
    service: Service,
    locks: LockServiceServer<Service>,
    others: Routes,
}

impl Services {
    /// The lock service, and what is served beside it.
    pub fn new(service: Service, others: Routes) -> Self {
        Self(Arc::new(All { locks: LockServiceServer::new(service.clone()), service, others: others.prepare() }))
    }
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Carrier<Content>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let all = self.0.clone();
        Box::pin(async move { Ok(carry(all.serve(request).await)) })
    }
}

impl All {
    async fn serve(&self, request: Request<Incoming>) -> Response<Content> {
        let service = &self.service;
        match lock_method(request.uri().path()) {
            Some("Acquire") => self.plainly(request, |request| service.acquire(request)).await,
            Some("Release") => self.plainly(request, |request| service.release(request)).await,
            Some("Renew") => self.plainly(request, |request| service.renew(request)).await,
            Some("Check") => self.plainly(request, |request| service.check(request)).await,
            Some("Get") => self.plainly(request, |request| service.get(request)).await,
            Some("List") => self.plainly(request, |request| service.list(request)).await,
            Some("Session") => self.by_tonic(ending::watch(request.map(Body::new))).await,
            Some(_) => self.by_tonic(request.map(Body::new)).await,
            None => written(self.others.clone().call(request.map(Body::new)).await),
        }
    }

    async fn plainly<M, R, F>(
        &self,
        request: Request<Incoming>,
        serve: impl FnOnce(tonic::Request<M>) -> F,
    ) -> Response<Content>
    where
        M: Message + Default,
        R: Message,
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        match plain::call(request, serve).await {
            Ok(response) => response,
            Err(odd) => self.by_tonic(odd).await,
        }
    }

    async fn by_tonic(&self, request: Request<Body>) -> Response<Content> {
        written(self.locks.clone().call(request).await)
    }
}

fn written(response: Result<Response<Body>, Infallible>) -> Response<Content> {
    let Ok(response) = response;
    response.map(Content::Tonic)
}

/// The method, if a path names one of the lock service.
fn lock_method(path: &str) -> Option<&str> {
    path.strip_prefix('/')?.strip_prefix(<LockServiceServer<Service> as NamedService>::NAME)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_methods_of_the_lock_service_go_its_way() {
        assert_eq!(lock_method("/redlock.v1.LockService/Acquire"), Some("Acquire"));
        for other in [
            "/redlock.v1.LockServiceX/Acquire",
            "/redlock.v1.OperatorService/ListNodes",
            "redlock.v1.LockService/Acquire",
            "/",
            "",
        ] {
            assert_eq!(lock_method(other), None, "{other}");
        }
    }
}
