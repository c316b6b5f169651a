//! Calls that a follower forwards to the leader: they come in by the peers' listener.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use holdfast_wire::errors::{FORWARDED, Reason};
use holdfast_wire::proto;
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataValue;
use tonic::server::NamedService;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::{Context, raft};

/// `message` as a call that this replica forwards to `peer`, and to nobody who may be at its address by now.
pub fn request<T>(message: T, peer: &proto::Peer, deadline: Instant) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    let peer = MetadataValue::from_bytes(&peer.encode_to_vec());
    request.metadata_mut().insert_bin(FORWARDED, peer);
    request
}

/// What the failure of a forwarded call means for whoever made it; `nothing` says in words what was not done.
pub fn failure(status: Status, address: &str, nothing: &str) -> Status {
    match Reason::from_status(&status) {
        // The leader is no longer there. Whoever is has looked only at whom the call was for.
        Some(Reason::Misdirected | Reason::Retired) => {
            let why = status.message();
            Reason::NoLeader.status(format!(
                "{nothing}: the replica at {address} did not take the call: {why}"
            ))
        }
        Some(_) => status,
        None if never_sent(&status) => unreachable(address, nothing),
        None => Reason::Unknown.status(format!("the leader at {address} gave no answer: {}", status.message())),
    }
}

/// The failure of a call that was not made.
pub fn unreachable(address: &str, nothing: &str) -> Status {
    Reason::NoLeader.status(format!("{nothing}: the leader at {address} is not reachable"))
}

/// True if the request cannot have reached the other side.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    // A replica of a version that takes no calls there looks at none either.
    status.code() == Code::Unimplemented
        || status.code() == Code::Unavailable && status.message().contains("connect error")
}

/// Lets in what another replica of this cluster has forwarded to this very one, and nobody else: a subscriber that is led to
/// the peers' listener by mistake would take the time of heartbeats.
#[derive(Clone)]
pub struct ForwardedOnly(pub Arc<Context>);

impl Interceptor for ForwardedOnly {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(value) = request.metadata().get_bin(FORWARDED) else {
            return Err(Status::permission_denied(
                "this is the replicas' own listener: call the client address, --listen-client",
            ));
        };
        let peer = value.to_bytes().ok().and_then(|bytes| proto::Peer::decode(bytes).ok());
        raft::admit(&self.0, peer.as_ref())?;
        Ok(request)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_is_not_there_any_more_is_no_leader_and_no_unknown_outcome() {
        let meaning = |status: Status| {
            let failure = failure(status, "10.0.0.1:7012", "nothing was written");
            (Reason::from_status(&failure), failure.message().to_owned())
        };
        for reason in [Reason::Misdirected, Reason::Retired] {
            let (meant, message) = meaning(reason.status("cluster_id: the call is for \"a\", this is \"b\""));
            assert_eq!(meant, Some(Reason::NoLeader), "{reason:?}");
            for part in ["nothing was written", "10.0.0.1:7012", "this is \"b\""] {
                assert!(message.contains(part), "{part} is not in {message}");
            }
        }
        assert_eq!(meaning(Status::unimplemented("")).0, Some(Reason::NoLeader));
        assert_eq!(meaning(Status::unavailable("broken pipe")).0, Some(Reason::Unknown));
        for decided in [Reason::NoLeader, Reason::Fenced, Reason::NotReady, Reason::Unknown] {
            assert_eq!(meaning(decided.status("")).0, Some(decided));
        }
    }
}
