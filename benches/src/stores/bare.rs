//! The floor: a gRPC server that answers writes at once and hands them to its streams, and keeps nothing.
//!
//! It speaks etcd's messages, so the very client that writes to etcd writes to it.

use std::net::SocketAddr;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _, stream};
use holdfast_tests::fixture::{Process, free_port, until};
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::etcd::proto::kv_server::{Kv, KvServer};
use super::etcd::proto::watch_server::{Watch, WatchServer};
use super::etcd::proto::{
    Event, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest,
    WatchResponse,
};
use super::{Connection, PATIENCE, System};

/// With this argument and an address the benchmark's own program is the server.
pub const SERVE: &str = "--serve-bare";
/// Messages that a stream may be behind.
const BEHIND_MAX: usize = 4096;

/// The server, in a process of its own.
pub struct BareServer {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl BareServer {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("holdfast-bench-bare-").tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut process =
            Process::new("bare", std::env::current_exe()?, folder.path()).args([SERVE.to_owned(), address.to_string()]);
        process.start()?;
        until("the bare server listens", PATIENCE, async || {
            Connection::open(System::Bare, &address.to_string()).await.map(drop)
        })
        .await?;
        Ok(BareServer {
            process,
            address,
            _folder: folder,
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }
}

/// Is the server, for ever.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: &str) -> Result<()> {
    let bare = Bare {
        written: broadcast::channel(BEHIND_MAX).0,
    };
    Server::builder()
        .add_service(KvServer::new(bare.clone()))
        .add_service(WatchServer::new(bare))
        .serve(address.parse().context("no address")?)
        .await?;
    Ok(())
}

#[derive(Clone)]
struct Bare {
    written: broadcast::Sender<WatchResponse>,
}

#[tonic::async_trait]
impl Kv for Bare {
    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        if self.written.receiver_count() > 0 {
            let PutRequest { key, value } = request.into_inner();
            let pair = KeyValue {
                key,
                value,
                ..KeyValue::default()
            };
            let event = Event {
                kv: Some(pair),
                ..Event::default()
            };
            // Fails only if the last stream has ended meanwhile.
            let _ = self.written.send(WatchResponse {
                events: vec![event],
                ..WatchResponse::default()
            });
        }
        Ok(Response::new(PutResponse::default()))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Ok(Response::new(TxnResponse {
            succeeded: true,
            ..TxnResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl Watch for Bare {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let created = WatchResponse {
            created: true,
            ..WatchResponse::default()
        };
        // Subscribed before it says so. The requests are held: dropping them would reset the caller's half.
        let written = BroadcastStream::new(self.written.subscribe());
        let requests = request.into_inner();
        let written = written.map(move |message| {
            let _held = &requests;
            message.map_err(|lagged| Status::data_loss(lagged.to_string()))
        });
        Ok(Response::new(
            stream::once(async { Ok(created) }).chain(written).boxed(),
        ))
    }
}
