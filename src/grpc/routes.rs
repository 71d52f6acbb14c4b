//! Which service a request is for. Calls for locks go to theirs at once: the router, which all others go through, would take
//! as long as what is done for them here.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tonic::service::Routes;

use crate::proto::lock_service_server::LockServiceServer;

use super::service::Service;

/// All services of a proxy.
#[derive(Clone)]
pub struct Services {
    locks: LockServiceServer<Service>,
    others: Routes,
}

impl Services {
    /// The lock service, and what is served beside it.
    pub fn new(locks: LockServiceServer<Service>, others: Routes) -> Self {
        Self { locks, others: others.prepare() }
    }
}

/// Whether a path names a method of the lock service.
fn is_for_locks(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(<LockServiceServer<Service> as NamedService>::NAME))
        .is_some_and(|method| method.starts_with('/'))
}

impl tower::Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<Response<Body>, Infallible>, <Routes as tower::Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Neither has anything to wait for: what bounds requests is the coordinator.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_for_locks(request.uri().path()) {
            Either::Left(self.locks.call(request))
        } else {
            Either::Right(self.others.call(request))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_methods_of_the_lock_service_go_its_way() {
        assert!(is_for_locks("/redlock.v1.LockService/Acquire"));
        for other in [
            "/redlock.v1.LockServiceX/Acquire",
            "/redlock.v1.OperatorService/ListNodes",
            "redlock.v1.LockService/Acquire",
            "/",
            "",
        ] {
            assert!(!is_for_locks(other), "{other}");
        }
    }
}
