//! Stands in for an empty replica: says who it is, hears its identity, and never answers to it.

use std::net::Ipv4Addr;
use std::pin::Pin;

use anyhow::Result;
use futures_util::Stream;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_wire::proto::raft_server::{Raft, RaftServer};
use holdfast_wire::proto::*;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub struct StandIn {
    heard: mpsc::Receiver<AdoptRequest>,
    // Of its own: its connections end with it, as those of a process would.
    server: Option<Runtime>,
}

impl StandIn {
    /// Listens on `port` as the empty replica `name`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(name: &str, port: u16) -> Result<Self> {
        let (tell, heard) = mpsc::channel(100);
        let service = Blank {
            name: name.to_owned(),
            tell,
        };
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let server = Runtime::new()?;
        let incoming = {
            let _entered = server.enter();
            TcpIncoming::from(TcpListener::from_std(listener)?)
        };
        server.spawn(async move {
            let served = Server::builder().add_service(RaftServer::new(service));
            // Whoever asks sees that it has ended.
            let _ = served.serve_with_incoming(incoming).await;
        });
        Ok(StandIn {
            heard,
            server: Some(server),
        })
    }

    /// The next identity that it is told.
    pub async fn told(&mut self) -> Option<AdoptRequest> {
        timeout(SOON, self.heard.recv()).await.ok().flatten()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // A runtime must not be waited for by another.
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

struct Blank {
    name: String,
    tell: mpsc::Sender<AdoptRequest>,
}

fn blank<T>() -> Result<Response<T>, Status> {
    Err(Status::unavailable("an empty replica"))
}

#[tonic::async_trait]
impl Raft for Blank {
    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(IdentifyResponse {
            store_uuid: "stand-in".into(),
            name: self.name.clone(),
            client_address: "127.0.0.1:1".into(),
            peers: ["r0", "r1", "r2"].map(str::to_owned).to_vec(),
            ..IdentifyResponse::default()
        }))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptResponse>, Status> {
        let _ = self.tell.send(request.into_inner()).await;
        std::future::pending().await
    }

    async fn found(&self, _: Request<FoundRequest>) -> Result<Response<FoundResponse>, Status> {
        blank()
    }

    type AppendStream = Pin<Box<dyn Stream<Item = Result<AppendResponse, Status>> + Send>>;

    async fn append(&self, _: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        blank()
    }

    async fn vote(&self, _: Request<VoteRequest>) -> Result<Response<VoteResponse>, Status> {
        blank()
    }

    async fn pre_vote(&self, _: Request<VoteRequest>) -> Result<Response<VoteResponse>, Status> {
        blank()
    }

    async fn snapshot(&self, _: Request<Streaming<SnapshotRequest>>) -> Result<Response<SnapshotResponse>, Status> {
        blank()
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        blank()
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        blank()
    }

    async fn await_proxies(&self, _: Request<AwaitProxiesRequest>) -> Result<Response<AwaitProxiesResponse>, Status> {
        blank()
    }

    async fn compare(&self, _: Request<CompareRequest>) -> Result<Response<CompareResponse>, Status> {
        blank()
    }

    async fn share_activity(
        &self,
        _: Request<ShareActivityRequest>,
    ) -> Result<Response<ShareActivityResponse>, Status> {
        blank()
    }
}
