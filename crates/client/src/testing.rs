//! A replica whose every answer is given by the test, and tables to play with.

use std::pin::Pin;
use std::time::Duration;

use holdfast_table::{Digest, Entry, Epoch, Revision, Route, Table};
use holdfast_wire::proto::routes_server::{Routes, RoutesServer};
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{
    Ack, Bookmark, Delta, GetRequest, GetResponse, Hello, ListRequest, ListResponse, OpenHubRequest, OpenHubResponse,
    ReportActivityRequest, ReportActivityResponse, RouteList, SettleHeldRequest, SettleHeldResponse, SnapshotChunk,
    Start, SubscribeRequest, SubscribeResponse, WriteRequest, WriteResponse, hello, subscribe_request,
};
use prost::Message as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Waits for what must come, but not for ever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, what).await.expect("should have happened")
}

/// Plays one replica: each call comes out of its channel and is answered by the test.
pub(crate) struct ScriptedReplica {
    pub(crate) address: String,
    pub(crate) writes: mpsc::Receiver<WriteCall>,
    pub(crate) gets: mpsc::Receiver<GetCall>,
    pub(crate) lists: mpsc::Receiver<ListCall>,
    pub(crate) subscribes: mpsc::Receiver<SubscribeCall>,
    pub(crate) reports: mpsc::Receiver<ReportCall>,
    _server: JoinSet<()>,
}

/// Dropped without an answer, the caller is told nothing but that the call failed.
pub(crate) struct WriteCall {
    pub(crate) request: WriteRequest,
    pub(crate) answer: oneshot::Sender<Result<Response<WriteResponse>, Status>>,
}

pub(crate) struct GetCall {
    pub(crate) request: GetRequest,
    pub(crate) answer: oneshot::Sender<Result<Response<GetResponse>, Status>>,
}

pub(crate) struct ReportCall {
    pub(crate) request: ReportActivityRequest,
    pub(crate) answer: oneshot::Sender<Result<Response<ReportActivityResponse>, Status>>,
}

pub(crate) struct ListCall {
    pub(crate) request: ListRequest,
    pub(crate) pages: mpsc::Sender<Result<ListResponse, Status>>,
}

pub(crate) struct SubscribeCall {
    pub(crate) start: Start,
    frames: mpsc::Sender<Result<SubscribeResponse, Status>>,
    requests: Streaming<SubscribeRequest>,
}

impl SubscribeCall {
    pub(crate) async fn send(&self, frames: impl IntoIterator<Item = Frame>) {
        for frame in frames {
            let frame = SubscribeResponse { frame: Some(frame) };
            // Fails if the subscriber has left, which shows in what it does next.
            let _ = self.frames.send(Ok(frame)).await;
        }
    }

    /// The next acknowledgement; `None` once the subscriber is gone.
    pub(crate) async fn ack(&mut self) -> Option<Ack> {
        match soon(self.requests.next()).await?.ok()?.frame {
            Some(subscribe_request::Frame::Ack(ack)) => Some(ack),
            other => panic!("{other:?} is no acknowledgement"),
        }
    }

    /// Waits for the acknowledgement of `table`, over those of earlier revisions.
    pub(crate) async fn acked(&mut self, table: &Table) {
        loop {
            let ack = self.ack().await.expect("an acknowledgement");
            if ack.revision == table.revision().0 {
                assert_eq!(Digest::from_bytes(&ack.digest), Some(table.digest()));
                return;
            }
            assert!(ack.revision < table.revision().0, "{ack:?}");
        }
    }
}

impl ScriptedReplica {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (writes_in, writes) = mpsc::channel(16);
        let (gets_in, gets) = mpsc::channel(16);
        let (lists_in, lists) = mpsc::channel(16);
        let (subscribes_in, subscribes) = mpsc::channel(16);
        let (reports_in, reports) = mpsc::channel(16);
        let doors = Doors {
            writes: writes_in,
            gets: gets_in,
            lists: lists_in,
            subscribes: subscribes_in,
            reports: reports_in,
        };
        let server = Server::builder().add_service(RoutesServer::new(doors));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        ScriptedReplica {
            address,
            writes,
            gets,
            lists,
            subscribes,
            reports,
            _server: tasks,
        }
    }

    pub(crate) async fn write(&mut self) -> WriteCall {
        soon(self.writes.recv()).await.unwrap()
    }

    pub(crate) async fn subscribe(&mut self) -> SubscribeCall {
        soon(self.subscribes.recv()).await.unwrap()
    }
}

/// Hands bytes on, and cuts every connection when it is dropped.
pub(crate) struct Relay {
    pub(crate) address: String,
    _task: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(listen: &str, to: &str) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let to = to.to_owned();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    // However it ends, the connection is over.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Relay { address, _task: task }
    }
}

struct Doors {
    writes: mpsc::Sender<WriteCall>,
    gets: mpsc::Sender<GetCall>,
    lists: mpsc::Sender<ListCall>,
    subscribes: mpsc::Sender<SubscribeCall>,
    reports: mpsc::Sender<ReportCall>,
}

fn lost() -> Status {
    Status::unavailable("the answer was lost")
}

#[tonic::async_trait]
impl Routes for Doors {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListResponse, Status>> + Send>>;
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let request = request.into_inner();
        self.writes
            .send(WriteCall { request, answer })
            .await
            .map_err(|_| lost())?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn open_hub(&self, _: Request<OpenHubRequest>) -> Result<Response<OpenHubResponse>, Status> {
        Err(Status::unimplemented("nobody here is a hub"))
    }

    async fn settle_held(&self, _: Request<SettleHeldRequest>) -> Result<Response<SettleHeldResponse>, Status> {
        Err(Status::unimplemented("nothing here is held"))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let request = request.into_inner();
        self.gets.send(GetCall { request, answer }).await.map_err(|_| lost())?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn report_activity(
        &self,
        request: Request<ReportActivityRequest>,
    ) -> Result<Response<ReportActivityResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let request = request.into_inner();
        self.reports
            .send(ReportCall { request, answer })
            .await
            .map_err(|_| lost())?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (pages, pages_out) = mpsc::channel(16);
        let request = request.into_inner();
        self.lists.send(ListCall { request, pages }).await.map_err(|_| lost())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(pages_out))))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut requests = request.into_inner();
        let Some(Ok(SubscribeRequest {
            frame: Some(subscribe_request::Frame::Start(start)),
        })) = requests.next().await
        else {
            return Err(Status::invalid_argument("no Start"));
        };
        let (frames, frames_out) = mpsc::channel(64);
        let call = SubscribeCall {
            start,
            frames,
            requests,
        };
        self.subscribes.send(call).await.map_err(|_| lost())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames_out))))
    }
}

pub(crate) fn route(spec: &str) -> Route {
    Route::parse(spec, "http://10.0.0.1:8888", "", "").unwrap()
}

pub(crate) fn entry(spec: &str, modified: u64) -> Entry {
    Entry {
        route: route(spec),
        modified: Revision(modified),
    }
}

/// The table at `revision`: one route was added by each.
pub(crate) fn table(epoch: u64, revision: u64) -> Table {
    let entries = (1..=revision).map(|n| entry(&format!("/user/{n}/"), n));
    Table::from_entries(Epoch(epoch), Revision(revision), entries)
}

/// A good snapshot of `table` in two chunks, after its Hello.
pub(crate) fn snapshot(cluster_id: &str, table: &Table) -> Vec<Frame> {
    let mut frames = vec![hello(
        hello::Mode::Snapshot,
        cluster_id,
        table.epoch().0,
        table.revision().0,
    )];
    let entries = table.sorted();
    let (first, second) = entries.split_at(entries.len() / 2);
    for (entries, last) in [(first, false), (second, true)] {
        let routes = entries.iter().map(|entry| entry.as_ref().into()).collect();
        frames.push(Frame::SnapshotChunk(chunk(RouteList { routes }, last.then_some(table))));
    }
    frames
}

pub(crate) fn chunk(list: RouteList, last_of: Option<&Table>) -> SnapshotChunk {
    let routes = zstd::bulk::compress(&list.encode_to_vec(), 1).unwrap();
    SnapshotChunk {
        checksum: crc32fast::hash(&routes),
        routes: routes.into(),
        last: last_of.is_some(),
        total: last_of.map_or(0, |table| table.len() as u64),
        digest: last_of.map_or_else(Default::default, |table| table.digest().to_bytes().to_vec().into()),
    }
}

pub(crate) fn hello(mode: hello::Mode, cluster_id: &str, epoch: u64, revision: u64) -> Frame {
    Frame::Hello(Hello {
        mode: mode.into(),
        cluster_id: cluster_id.into(),
        epoch,
        revision,
        replica: "r0".into(),
        lineage: Vec::new(),
    })
}

/// What leads from `table(_, from)` to `table(_, to)`.
pub(crate) fn delta(from: u64, to: u64) -> Frame {
    let delta = Delta {
        from_revision: from,
        to_revision: to,
        puts: (from + 1..=to)
            .map(|n| (&entry(&format!("/user/{n}/"), n)).into())
            .collect(),
        deletes: Vec::new(),
    };
    Frame::Delta(delta.encode_to_vec().into())
}

pub(crate) fn bookmark(revision: Revision, digest: Digest) -> Frame {
    Frame::Bookmark(Bookmark {
        revision: revision.0,
        digest: digest.to_bytes().to_vec().into(),
        leader_contact_age_ms: 40,
        leader_known: true,
    })
}

/// A bookmark of a replica that has lost its leader.
pub(crate) fn orphaned(revision: Revision, digest: Digest) -> Frame {
    match bookmark(revision, digest) {
        Frame::Bookmark(bookmark) => Frame::Bookmark(Bookmark {
            leader_contact_age_ms: 3_500,
            leader_known: false,
            ..bookmark
        }),
        other => other,
    }
}
