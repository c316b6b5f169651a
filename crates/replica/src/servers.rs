//! Servers: what a replica serves to clients, to its peers and to operators.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use holdfast_tls::ServerIdentity;
use holdfast_wire::proto::cluster_server::ClusterServer;
use holdfast_wire::proto::raft_server::RaftServer;
use holdfast_wire::proto::routes_server::RoutesServer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::consensus::network::MESSAGE_BYTES_MAX;
use crate::listen::{Listener, TlsListener};
use crate::replica::RunError;
use crate::services::Context;
use crate::services::cluster::ClusterService;
use crate::services::forwarded::{Elsewhere, ForwardedOnly};
use crate::services::guard::Guard;
use crate::services::raft::RaftService;
use crate::services::routes::RoutesService;

/// A write is at most 16 MiB of routes; the rest is framing.
const WRITE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A client that does not answer a ping for so long is gone, whatever TCP says.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Calls of one connection that their caller has given up before this replica came to them. Peers give up soon, and a replica that was
/// short of CPU for a second must not lose them for it.
const GIVEN_UP_MAX: usize = 1_000;

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_MAX))
}

fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Serves clients until the replica stops.
pub(crate) async fn serve_clients(
    context: Arc<Context>,
    listener: Listener,
    identity: Option<Arc<ServerIdentity>>,
    guard: Guard,
) -> Result<(), RunError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let (routes, cluster) = api(&context);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(holdfast_wire::DESCRIPTORS)
        .build_v1()
        .map_err(|error| RunError::Consensus(error.to_string()))?;
    let watched = context.clone();
    let report = async move {
        const ROUTES: &str = "holdfast.v1.Routes";
        reporter.set_service_status(ROUTES, ServingStatus::NotServing).await;
        let mut consensus = watched.consensus.subscribe();
        if consensus.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let member = consensus.borrow().clone();
        if let Some(member) = member {
            member.recovered().await;
        }
        reporter.set_service_status(ROUTES, ServingStatus::Serving).await;
        tokio::select! {
            () = watched.stopping.cancelled() => {}
            () = watched.retired.cancelled() => {}
        }
        reporter.set_service_status(ROUTES, ServingStatus::NotServing).await;
    };
    context
        .streams
        .spawn(context.stopping.clone().run_until_cancelled_owned(report));
    let services = server()
        // Probes have no tokens.
        .add_service(health)
        .add_service(InterceptedService::new(reflection, guard.clone()))
        .add_service(InterceptedService::new(routes, guard.clone()))
        .add_service(InterceptedService::new(cluster, guard));
    let stopping = context.stopping.clone().cancelled_owned();
    match (listener, identity) {
        (listener, Some(identity)) => {
            let incoming = TlsListener::new(listener, identity, context.metrics.clone()).grpc();
            services.serve_with_incoming_shutdown(incoming, stopping).await?;
        }
        (Listener::Tcp(listener), None) => {
            services
                .serve_with_incoming_shutdown(incoming(listener), stopping)
                .await?
        }
        // The file goes with the listener, and no sooner.
        (Listener::Unix(listener, _file), None) => {
            let incoming = UnixListenerStream::new(listener);
            services.serve_with_incoming_shutdown(incoming, stopping).await?;
        }
    }
    Ok(())
}

/// What clients call, by the client listener or through another replica.
fn api(context: &Arc<Context>) -> (RoutesServer<RoutesService>, ClusterServer<ClusterService>) {
    let routes = RoutesServer::new(RoutesService(context.clone()))
        .max_decoding_message_size(WRITE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    (routes, ClusterServer::new(ClusterService(context.clone())))
}

/// Serves the other replicas until this one stops; `forwarded` is where calls are decided that they have forwarded: not
/// on the thread of the consensus.
pub(crate) async fn serve_peers(
    context: Arc<Context>,
    listener: TcpListener,
    forwarded: Handle,
) -> Result<(), RunError> {
    let raft = RaftServer::new(RaftService(context.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (routes, cluster) = api(&context);
    let forwarded_only = ForwardedOnly(context.clone());
    let routes = Elsewhere::new(routes, forwarded.clone(), context.streams.clone());
    let cluster = Elsewhere::new(cluster, forwarded, context.streams.clone());
    let stopping = context.stopping.clone().cancelled_owned();
    Ok(server()
        .add_service(raft)
        .add_service(InterceptedService::new(routes, forwarded_only.clone()))
        .add_service(InterceptedService::new(cluster, forwarded_only))
        .serve_with_incoming_shutdown(incoming(listener), stopping)
        .await?)
}

/// Serves operators, or the REST API, until the replica stops.
pub(crate) async fn serve_http(
    context: Arc<Context>,
    listener: impl axum::serve::Listener<Addr = ()>,
    router: Router,
) -> Result<(), RunError> {
    let stopping = context.stopping.clone().cancelled_owned();
    axum::serve(listener, router)
        .with_graceful_shutdown(stopping)
        .await
        .map_err(RunError::Http)
}
