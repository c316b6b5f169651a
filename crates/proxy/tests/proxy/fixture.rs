//! A proxy, a replica whose table the test sets, targets and clients on raw sockets.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use holdfast_client::Endpoints;
use holdfast_proxy::{Address, ProxyConfig, RunError};
use holdfast_table::{Entry, Epoch, Revision, Route, Table};
use holdfast_wire::proto::routes_server::{Routes, RoutesServer};
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{self, SubscribeRequest, SubscribeResponse};
use prost::Message;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const CLUSTER: &str = "test-cluster";

/// Waits for what must happen, but not for ever.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("must happen within 20 s")
}

/// Asks until the answer is yes.
pub async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    soon(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A table at `revision` with one route per pair of routespec and target.
pub fn table(revision: u64, routes: &[(&str, &str)]) -> Table {
    let entries = routes.iter().map(|(spec, target)| Entry {
        route: Route::parse(spec, target, "{}", "").unwrap(),
        modified: Revision(revision),
    });
    Table::from_entries(Epoch(1), Revision(revision), entries)
}

/// A replica that serves one table after the other.
pub struct Replica {
    pub address: SocketAddr,
    /// Streams that were asked for so far.
    pub subscribes: Arc<AtomicUsize>,
    /// Routes, and the revisions of them, of which it was told that their targets refuse connections.
    pub refused: Arc<Mutex<Vec<(String, u64)>>>,
    /// What it was told of the routes' activity.
    pub activity: Arc<Mutex<Vec<proto::RouteActivity>>>,
    table: watch::Sender<Table>,
    tasks: JoinSet<()>,
}

impl Replica {
    pub async fn start(table: Table) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), table)
    }

    /// Answers from now on, whoever has connected before.
    pub fn on(listener: TcpListener, table: Table) -> Self {
        let address = listener.local_addr().unwrap();
        let table = watch::Sender::new(table);
        let subscribes = Arc::new(AtomicUsize::new(0));
        let (refused, activity) = (Arc::default(), Arc::default());
        let service = RoutesServer::new(Script {
            table: table.subscribe(),
            subscribes: subscribes.clone(),
            refused: Arc::clone(&refused),
            activity: Arc::clone(&activity),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Replica {
            address,
            subscribes,
            refused,
            activity,
            table,
            tasks,
        }
    }

    /// The next table, which must be at a higher revision.
    pub fn set(&self, table: Table) {
        self.table.send_replace(table);
    }

    /// Ends all streams and listens no more.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

struct Script {
    table: watch::Receiver<Table>,
    subscribes: Arc<AtomicUsize>,
    refused: Arc<Mutex<Vec<(String, u64)>>>,
    activity: Arc<Mutex<Vec<proto::RouteActivity>>>,
}

#[tonic::async_trait]
impl Routes for Script {
    type ListStream = Pin<Box<dyn Stream<Item = Result<proto::ListResponse, Status>> + Send>>;
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn write(&self, _: Request<proto::WriteRequest>) -> Result<Response<proto::WriteResponse>, Status> {
        Err(Status::unimplemented("a proxy writes nothing"))
    }

    async fn open_hub(&self, _: Request<proto::OpenHubRequest>) -> Result<Response<proto::OpenHubResponse>, Status> {
        Err(Status::unimplemented("a proxy is no hub"))
    }

    async fn settle_held(
        &self,
        _: Request<proto::SettleHeldRequest>,
    ) -> Result<Response<proto::SettleHeldResponse>, Status> {
        Err(Status::unimplemented("a proxy decides nothing"))
    }

    async fn report_activity(
        &self,
        request: Request<proto::ReportActivityRequest>,
    ) -> Result<Response<proto::ReportActivityResponse>, Status> {
        self.activity.lock().unwrap().extend(request.into_inner().routes);
        Ok(Response::new(proto::ReportActivityResponse {}))
    }

    async fn get(&self, _: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        Err(Status::unimplemented("a proxy gets nothing"))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("a proxy lists nothing"))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.subscribes.fetch_add(1, Ordering::SeqCst);
        // Acknowledgements must be read, or the subscriber's side fills up; the stream lives as long as the answer.
        let refused = self.refused.clone();
        let acks = request.into_inner().map(move |request| {
            if let Ok(Some(proto::subscribe_request::Frame::TargetRefused(version))) = request.map(|r| r.frame) {
                refused.lock().unwrap().push((version.routespec, version.mod_revision));
            }
            None
        });
        let mut tables = self.table.clone();
        let sent = tables.borrow_and_update().clone();
        let first = stream::iter(snapshot(&sent)).map(Some);
        let rest = stream::unfold((tables, sent), |(mut tables, sent)| async move {
            let wait = tokio::time::timeout(Duration::from_millis(200), tables.changed()).await;
            if matches!(wait, Ok(Err(_))) {
                return None;
            }
            let next = tables.borrow_and_update().clone();
            let frame = match next.revision() == sent.revision() {
                true => bookmark(&next),
                false => delta(&sent, &next),
            };
            Some((Some(frame), (tables, next)))
        });
        let frames = stream::select(acks, first.chain(rest)).filter_map(|frame| async { frame });
        Ok(Response::new(Box::pin(
            frames.map(|frame| Ok(SubscribeResponse { frame: Some(frame) })),
        )))
    }
}

fn snapshot(table: &Table) -> [Frame; 2] {
    let list = proto::RouteList {
        routes: table.iter().map(|entry| entry.as_ref().into()).collect(),
    };
    let routes = zstd::bulk::compress(&list.encode_to_vec(), 1).unwrap();
    let hello = proto::Hello {
        mode: proto::hello::Mode::Snapshot.into(),
        cluster_id: CLUSTER.into(),
        epoch: table.epoch().0,
        revision: table.revision().0,
        replica: "r0".into(),
        lineage: Vec::new(),
    };
    let chunk = proto::SnapshotChunk {
        checksum: crc32fast::hash(&routes),
        routes: routes.into(),
        last: true,
        total: table.len() as u64,
        digest: table.digest().to_bytes().to_vec().into(),
    };
    [Frame::Hello(hello), Frame::SnapshotChunk(chunk)]
}

fn delta(from: &Table, to: &Table) -> Frame {
    let puts = to
        .iter()
        .filter(|entry| from.get(entry.route.spec.key()) != Some(entry));
    let deletes = from.iter().filter(|entry| to.get(entry.route.spec.key()).is_none());
    let delta = proto::Delta {
        from_revision: from.revision().0,
        to_revision: to.revision().0,
        puts: puts.map(|entry| entry.as_ref().into()).collect(),
        deletes: deletes.map(|entry| entry.route.spec.as_str().to_owned()).collect(),
    };
    Frame::Delta(delta.encode_to_vec().into())
}

fn bookmark(table: &Table) -> Frame {
    Frame::Bookmark(proto::Bookmark {
        revision: table.revision().0,
        digest: table.digest().to_bytes().to_vec().into(),
        leader_contact_age_ms: 0,
        leader_known: true,
    })
}

/// A proxy that runs.
pub struct Proxy {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub redirect: Option<SocketAddr>,
    pub shutdown: CancellationToken,
    run: JoinSet<Result<(), RunError>>,
}

/// What a proxy is told in tests; nobody listens at its one endpoint.
pub fn config(directory: &Path) -> ProxyConfig {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoints = Endpoints::parse(&["127.0.0.1:1"]).unwrap();
    ProxyConfig {
        listen_admin: Some(free),
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(10),
        ..ProxyConfig::new("p0".into(), endpoints, free, directory.to_owned())
    }
}

impl Proxy {
    pub async fn start(config: ProxyConfig) -> Self {
        let proxy = config.build().await.unwrap();
        let public = match proxy.public_addresses() {
            [Address::Tcp(address), ..] => *address,
            // Then a test finds its own way in.
            _ => SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let (admin, redirect) = (proxy.admin_address().unwrap(), proxy.redirect_address());
        let shutdown = CancellationToken::new();
        let mut run = JoinSet::new();
        run.spawn(proxy.run(shutdown.clone()));
        Proxy {
            public,
            admin,
            redirect,
            shutdown,
            run,
        }
    }

    /// Waits until the proxy serves the table at `revision`.
    pub async fn at(&self, revision: u64) {
        until(async || {
            let status = self.status().await;
            status["revision"] == revision && status["source"] != "none"
        })
        .await;
    }

    pub async fn status(&self) -> Value {
        serde_json::from_slice(&get(self.admin, "/status").await.body).unwrap()
    }

    /// The value of one series, by its whole name and labels.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = get(self.admin, "/metrics").await.text();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("{series} is missing in\n{text}"));
        value.trim().parse().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.run.try_join_next().is_none()
    }

    /// Waits until `run` has returned.
    pub async fn ended(mut self) {
        soon(self.run.join_next()).await.unwrap().unwrap().unwrap();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await;
    }
}

/// A proxy that serves `routes`, with all that it needs.
pub struct Setup {
    pub proxy: Proxy,
    pub replica: Replica,
    pub directory: TempDir,
}

impl Setup {
    pub async fn new(routes: &[(&str, &str)]) -> Self {
        Self::with(routes, |_| {}).await
    }

    pub async fn with(routes: &[(&str, &str)], change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let replica = Replica::start(table(1, routes)).await;
        let directory = TempDir::new().unwrap();
        let mut config = config(directory.path());
        config.endpoints = Endpoints::parse(&[replica.address.to_string()]).unwrap();
        change(&mut config);
        let proxy = Proxy::start(config).await;
        proxy.at(1).await;
        Setup {
            proxy,
            replica,
            directory,
        }
    }
}

/// A user's server: each connection goes to the test's own function.
pub struct Target {
    pub url: String,
    pub connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Target {
    pub async fn start<F>(serve: impl Fn(Conversation) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                served.spawn(serve(Conversation::over(stream)));
            }
        });
        Target {
            url,
            connections,
            _tasks: tasks,
        }
    }

    /// Answers each request with the bytes of its head, and with its own name in a header.
    pub async fn mirror(name: &'static str) -> Self {
        Target::start(move |connection| mirror(connection, name)).await
    }

    /// Gives each connection to the test.
    pub async fn manual() -> (Self, mpsc::Receiver<Conversation>) {
        let (sender, receiver) = mpsc::channel(64);
        let target = Target::start(move |connection| {
            let sender = sender.clone();
            async move { drop(sender.send(connection).await) }
        })
        .await;
        (target, receiver)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers each request with the bytes of its head, and with the server's name in a header.
pub async fn mirror<S: AsyncRead + AsyncWrite + Unpin>(mut connection: Conversation<S>, name: &'static str) {
    while let Ok(head) = connection.head().await {
        let length = header(&head, "content-length").and_then(|length| length.parse().ok());
        connection.take(length.unwrap_or(0)).await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nx-target: {name}\r\ncontent-length: {}\r\n\r\n{head}",
            head.len()
        );
        connection.send(answer).await;
    }
}

/// One end of a connection, with what was read from it and not used yet.
pub struct Conversation<S = TcpStream> {
    pub stream: S,
    pub unread: Vec<u8>,
}

impl Conversation {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    pub fn over(stream: S) -> Self {
        Conversation {
            stream,
            unread: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // Whoever does not listen any more is found out by what it answers.
        let _ = soon(self.stream.write_all(bytes.as_ref())).await;
    }

    /// Everything up to and including the empty line.
    pub async fn head(&mut self) -> io::Result<String> {
        let mut searched = 0;
        loop {
            let found = self.unread[searched..].windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(at) = found {
                let head: Vec<u8> = self.unread.drain(..searched + at + 4).collect();
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
            searched = self.unread.len().saturating_sub(3);
            if self.read_more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub async fn read_more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.unread).await
    }

    /// Exactly so many bytes.
    pub async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.unread.len() < n {
            assert_ne!(soon(self.read_more()).await.unwrap(), 0, "ended too early");
        }
        self.unread.drain(..n).collect()
    }

    /// True if an answer begins, false if the other side ends without one.
    pub async fn rest_or_head(&mut self) -> bool {
        soon(self.head()).await.is_ok()
    }

    /// True if there is something to read, false if the other side has ended.
    pub async fn rest_or_more(&mut self) -> bool {
        !self.unread.is_empty() || matches!(soon(self.read_more()).await, Ok(1..))
    }

    /// Everything until the other side ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        while let Ok(1..) = soon(self.read_more()).await {}
        std::mem::take(&mut self.unread)
    }

    pub async fn answer(&mut self) -> Answer {
        let head = soon(self.head()).await.expect("an answer");
        let body = match header(&head, "content-length") {
            Some(length) => self.take(length.parse().unwrap()).await,
            None if header(&head, "transfer-encoding").is_some() => {
                let mut body = Vec::new();
                loop {
                    let chunk = self.chunk().await;
                    if chunk.is_empty() {
                        break body;
                    }
                    body.extend(chunk);
                }
            }
            None => Vec::new(),
        };
        Answer { head, body }
    }

    /// One chunk of a chunked body; empty: the last one.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.take(1).await);
        }
        let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        let chunk = self.take(length).await;
        assert_eq!(self.take(2).await, b"\r\n");
        chunk
    }
}

/// A client's connection of HTTP/2.
pub struct Http2 {
    sender: h2::client::SendRequest<Bytes>,
    connection: JoinSet<()>,
}

type Sent = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

impl Http2 {
    /// Without negotiation: by prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, ends) = soon(h2::client::handshake(stream)).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(async move { drop(ends.await) });
        Http2 { sender, connection }
    }

    pub async fn try_send(&mut self, request: http::Request<()>, ends: bool) -> Result<Sent, h2::Error> {
        self.sender = soon(self.sender.clone().ready()).await?;
        self.sender.send_request(request, ends)
    }

    pub async fn send(&mut self, request: http::Request<()>, ends: bool) -> Sent {
        self.try_send(request, ends).await.unwrap()
    }

    /// Sends a whole request and reads the whole answer.
    pub async fn ask(&mut self, request: http::Request<()>, body: Bytes) -> (http::Response<()>, Vec<u8>) {
        let (answer, mut up) = self.send(request, body.is_empty()).await;
        if !body.is_empty() {
            up.send_data(body, true).unwrap();
        }
        let (parts, mut down) = soon(answer).await.unwrap().into_parts();
        let mut received = Vec::new();
        while let Some(data) = soon(down.data()).await {
            let data = data.unwrap();
            down.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
        (http::Response::from_parts(parts, ()), received)
    }

    pub async fn get(&mut self, uri: &str) -> (http::Response<()>, Vec<u8>) {
        let request = http::Request::get(uri).version(http::Version::HTTP_2);
        self.ask(request.body(()).unwrap(), Bytes::new()).await
    }

    /// Waits for the server to say that it takes WebSockets, which it says together with its limits.
    pub async fn until_websockets(&mut self) {
        until(async || self.sender.is_extended_connect_protocol_enabled()).await;
    }

    pub fn streams_max(&self) -> usize {
        self.sender.current_max_send_streams()
    }

    pub fn has_ended(&mut self) -> bool {
        self.connection.try_join_next().is_some() || self.connection.is_empty()
    }

    /// Returns when the connection has ended.
    pub async fn ended(mut self) {
        while self.connection.join_next().await.is_some() {}
        drop(self.sender);
    }
}

pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// The first header of that name.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Sends the bytes on a connection of their own and reads one answer.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut client = Conversation::connect(address).await;
    client.send(request).await;
    client.answer().await
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: hub.example.org\r\n\r\n")).await
}
