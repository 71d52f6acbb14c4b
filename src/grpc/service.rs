//! The RPCs: convert, call, convert back.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::coordinator::Coordinator;
use crate::coordinator::attempt::AcquireFailure;
use crate::coordinator::question::Released;
use crate::coordinator::watch::Watch;
use crate::engine::lease::TtlBounds;
use crate::metrics::{Outcome, Rpc};
use crate::proto;
use crate::proto::lock_service_server::LockService;
use crate::proto::operator_service_server::OperatorService;

use super::convert;
use super::delivery::Parcel;
use super::ending::Ending;
use super::session::{self, Responses, release_outcome};
use super::status::{Failure, acquire_failure, deadline_exceeded, overloaded, too_many_sessions, too_many_watch};

/// Serves both services of the contract.
#[derive(Clone)]
pub struct Service {
    coordinator: Arc<Coordinator>,
    ttls: TtlBounds,
}

/// An answer with what is counted for it.
type Answer<T> = Result<(T, Outcome), Failure>;

impl Service {
    /// Over a coordinator.
    pub fn new(coordinator: Arc<Coordinator>, ttls: TtlBounds) -> Self {
        Self { coordinator, ttls }
    }

    /// Counts a request, bounds how many there are, and holds the client's deadline.
    async fn serve<M, T, F>(&self, rpc: Rpc, request: Request<M>, work: impl FnOnce(M, Times) -> F) -> Result<T, Status>
    where
        F: Future<Output = Answer<T>>,
    {
        self.serve_or_queue(rpc, request, false, work).await
    }

    /// The same; `waits`: it may take long, and has a bound of its own.
    async fn serve_or_queue<M, T, F>(
        &self,
        rpc: Rpc,
        request: Request<M>,
        waits: bool,
        work: impl FnOnce(M, Times) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Answer<T>>,
    {
        let received = self.coordinator.now();
        let deadline = convert::deadline(request.metadata(), received);
        // Counted as cancelled if this future is dropped.
        let mut counted = Counted { coordinator: self.coordinator.clone(), rpc, received, outcome: Outcome::Cancelled };
        let answer = match self.coordinator.admit(waits) {
            None => Err(overloaded(self.coordinator.max_inflight())),
            Some(_admission) => {
                let times = Times { received, deadline };
                tokio::select! {
                    biased;
                    answer = work(request.into_inner(), times) => answer,
                    () = self.coordinator.deadline(deadline) => Err(deadline_exceeded()),
                }
            }
        };
        match answer {
            Ok((answer, outcome)) => {
                counted.outcome = outcome;
                Ok(answer)
            }
            Err(failure) => {
                counted.outcome = failure.outcome;
                Err(failure.status)
            }
        }
    }

    async fn try_acquire(&self, message: proto::AcquireRequest, times: Times) -> Answer<Response<proto::AcquireResponse>> {
        let spec = convert::acquire(message, &self.ttls, times.received, times.deadline)?;
        let ttl = spec.ttl;
        let grant = match self.coordinator.acquire(spec).await {
            Ok(grant) => grant,
            Err(AcquireFailure::Contended { owner, retry_after, line, .. }) => {
                let contended = convert::contended(owner, retry_after, line);
                let outcome = Some(proto::acquire_response::Outcome::Contended(contended));
                return Ok((Response::new(proto::AcquireResponse { outcome }), Outcome::Contended));
            }
            Err(failure) => return Err(acquire_failure(failure)),
        };
        // Validity once more, as late as can be.
        match grant.answer() {
            Some((validity, served_for)) => {
                let mut response = Response::new(convert::granted(&grant, validity, served_for));
                response.extensions_mut().insert(Parcel::new(grant));
                Ok((response, Outcome::Granted))
            }
            None => Err(acquire_failure(AcquireFailure::TooLate { elapsed: self.coordinator.now() - times.received, ttl })),
        }
    }
}

/// When a request came, and when its client stops listening.
#[derive(Clone, Copy)]
struct Times {
    received: Instant,
    deadline: Option<Instant>,
}

/// A request that is counted when it is over.
pub struct Counted {
    coordinator: Arc<Coordinator>,
    rpc: Rpc,
    received: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let took: Duration = self.coordinator.now() - self.received;
        self.coordinator.metrics().request(self.rpc, self.outcome, took);
    }
}

/// Somebody who watches.
struct Watching {
    watch: Watch,
    deadline: Option<Instant>,
    /// `None` when all has been said.
    counted: Option<Counted>,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<proto::WatchResponse, Status>> {
        let coordinator = self.counted.as_ref()?.coordinator.clone();
        let failure = tokio::select! {
            biased;
            () = coordinator.draining() => acquire_failure(AcquireFailure::Draining),
            () = coordinator.deadline(self.deadline) => deadline_exceeded(),
            // Its other end is dropped with this one.
            event = self.watch.next() => return event.map(convert::event).map(Ok),
        };
        let mut counted = self.counted.take()?;
        counted.outcome = failure.outcome;
        Some(Err(failure.status))
    }
}

#[tonic::async_trait]
impl LockService for Service {
    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;
    type SessionStream = Responses;

    async fn acquire(&self, request: Request<proto::AcquireRequest>) -> Result<Response<proto::AcquireResponse>, Status> {
        let waits = request.get_ref().wait.is_some_and(|wait| wait.seconds > 0 || wait.nanos > 0);
        self.serve_or_queue(Rpc::Acquire, request, waits, |message, times| self.try_acquire(message, times)).await
    }

    async fn release(&self, request: Request<proto::ReleaseRequest>) -> Result<Response<proto::ReleaseResponse>, Status> {
        let answer = self.serve(Rpc::Release, request, async |message, _| {
            let id = convert::lock_id(&message.lock_id)?;
            let released = self.coordinator.release(&id).await?;
            let outcome = if released == Released::Released { Outcome::Released } else { Outcome::NotHeld };
            Ok((release_outcome(released), outcome))
        });
        Ok(Response::new(proto::ReleaseResponse { outcome: answer.await?.into() }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        let answer = self.serve(Rpc::Renew, request, async |message, times| {
            let id = convert::lock_id(&message.lock_id)?;
            let ttl = convert::ttl(message.ttl, &self.ttls)?;
            let lease = self.coordinator.renew(&id, ttl, times.received).await?;
            Ok((convert::renewed(lease), if lease.held { Outcome::Renewed } else { Outcome::Lost }))
        });
        answer.await.map(Response::new)
    }

    async fn check(&self, request: Request<proto::CheckRequest>) -> Result<Response<proto::CheckResponse>, Status> {
        let answer = self.serve(Rpc::Check, request, async |message, times| {
            let id = convert::lock_id(&message.lock_id)?;
            let lease = self.coordinator.check(&id, times.received).await?;
            Ok((convert::checked(lease, &id), if lease.held { Outcome::Held } else { Outcome::NotHeld }))
        });
        answer.await.map(Response::new)
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let answer = self.serve(Rpc::Get, request, async |message, _| {
            let name = convert::name(&message.name)?;
            let holding = self.coordinator.get(&name).await?;
            let outcome = if holding.held.is_some() { Outcome::Held } else { Outcome::Free };
            Ok((convert::holding(holding, self.coordinator.waiters(&name)), outcome))
        });
        answer.await.map(Response::new)
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<proto::ListResponse>, Status> {
        let answer = self.serve(Rpc::List, request, async |message, _| {
            let listing = self.coordinator.list(&convert::page(&message)?).await?;
            Ok((convert::listing(listing), Outcome::Ok))
        });
        answer.await.map(Response::new)
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (coordinator, received) = (self.coordinator.clone(), self.coordinator.now());
        let deadline = convert::deadline(request.metadata(), received);
        let mut counted = Counted { coordinator, rpc: Rpc::Watch, received, outcome: Outcome::Cancelled };
        let scope = convert::scope(request.into_inner()).map_err(Failure::from);
        let watch = scope.and_then(|scope| self.coordinator.watch(scope).ok_or_else(too_many_watch));
        match watch {
            Ok(watch) => {
                let watching = Watching { watch, deadline, counted: Some(counted) };
                let events = stream::unfold(watching, async |mut watching| Some((watching.next().await?, watching)));
                Ok(Response::new(Box::pin(events)))
            }
            Err(failure) => {
                counted.outcome = failure.outcome;
                Err(failure.status)
            }
        }
    }

    async fn session(&self, request: Request<Streaming<proto::SessionRequest>>) -> Result<Response<Responses>, Status> {
        let (coordinator, received) = (self.coordinator.clone(), self.coordinator.now());
        let deadline = convert::deadline(request.metadata(), received);
        let ending = request.extensions().get::<Ending>().cloned();
        let inbox = session::inbound(request.into_inner(), ending, self.ttls, coordinator.clone());
        let outcome = Outcome::Cancelled;
        let mut counted = Counted { coordinator: coordinator.clone(), rpc: Rpc::Session, received, outcome };
        let Some(outbox) = coordinator.open_session(inbox) else {
            let failure = too_many_sessions();
            counted.outcome = failure.outcome;
            return Err(failure.status);
        };
        let deadline = Box::pin(async move { coordinator.deadline(deadline).await });
        Ok(Response::new(Responses::new(outbox, deadline, counted)))
    }
}

#[tonic::async_trait]
impl OperatorService for Service {
    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        let answer = self.serve(Rpc::ListNodes, request, async |_, _| {
            let nodes = self.coordinator.nodes().into_iter();
            let lock = nodes.map(|node| convert::node_status(node, proto::NodeRole::Lock));
            let fence = self.coordinator.fence().map(|fence| convert::node_status(fence, proto::NodeRole::Fence));
            // Both numbers are at most MAX_NODES.
            let response = proto::ListNodesResponse {
                nodes: lock.chain(fence).collect(),
                quorum: self.coordinator.quorum().size() as u32,
                voting: self.coordinator.voting() as u32,
            };
            Ok((response, Outcome::Ok))
        });
        answer.await.map(Response::new)
    }
}
