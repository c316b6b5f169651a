//! Calls that a follower forwards to the leader: they come in by the peers' listener.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use holdfast_wire::errors::FORWARDED;
use tokio::runtime::Handle;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Status};

/// Lets in what another replica has forwarded: a subscriber that is led to the peers' listener by mistake would take the
/// time of heartbeats.
///
/// # Errors
/// What came from somebody else is refused.
pub fn forwarded_only(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().contains_key(FORWARDED) {
        true => Ok(request),
        false => Err(Status::permission_denied(
            "this is the replicas' own listener: call the client address, --listen-client",
        )),
    }
}

/// A service whose calls are decided on another runtime than the one whose connections they come in by.
#[derive(Clone)]
pub struct Elsewhere<S> {
    service: S,
    runtime: Handle,
    calls: TaskTracker,
}

impl<S> Elsewhere<S> {
    /// Whoever waits for `calls` waits for those that are under way.
    pub fn new(service: S, runtime: Handle, calls: TaskTracker) -> Self {
        Elsewhere {
            service,
            runtime,
            calls,
        }
    }
}

impl<S: NamedService> NamedService for Elsewhere<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Elsewhere<S>
where
    S: Service<http::Request<B>, Error = Infallible, Future: Send, Response: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(task)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // The clone may not be ready, and the one that is must be used.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        let call = async move { service.call(request).await };
        let call = AbortOnDropHandle::new(self.calls.spawn_on(call, &self.runtime));
        Box::pin(async move {
            match call.await {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // Only a runtime that ends cancels it, and then the connection ends too.
                    Err(_) => std::future::pending().await,
                },
            }
        })
    }
}
