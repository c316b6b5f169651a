//! More writes than a replica takes in: the rest is refused in words, and nothing is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::Cluster;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::change::Change as Kind;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::subscribe_request::Frame;
use holdfast_wire::proto::{Change, Route, Start, SubscribeRequest, WriteRequest};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

/// Each with one write; four of these are what is admitted at one time.
const WRITERS: usize = 6;
const ROUTES_EACH: usize = 250;
const DATA_BYTES: usize = 60_000;
/// How long a write may be under way because of a proxy; the longest there is.
const WAIT_FOR_PROXIES: Duration = Duration::from_secs(10);

fn write(writer: usize) -> Request<WriteRequest> {
    let data = format!(r#"{{"padding": "{}"}}"#, "x".repeat(DATA_BYTES));
    let change = |n: usize| Change {
        change: Some(Kind::Put(Route {
            routespec: format!("/user/{writer}-{n}/"),
            target: "http://10.0.0.1:8888".to_owned(),
            data: data.clone(),
            ..Route::default()
        })),
    };
    let mut request = Request::new(WriteRequest {
        changes: (0..ROUTES_EACH).map(change).collect(),
        wait_for_proxies_ms: WAIT_FOR_PROXIES.as_millis() as u32,
        ..WriteRequest::default()
    });
    request.set_timeout(SOON);
    request
}

/// A proxy that serves and never says which revision, until it is let go.
async fn stuck_proxy(endpoint: String, let_go: CancellationToken, connected: CancellationToken) -> Result<()> {
    let start = SubscribeRequest {
        frame: Some(Frame::Start(Start {
            has_table: true,
            name: "stuck".to_owned(),
            proxy: true,
            ..Start::default()
        })),
    };
    let requests = tokio_stream::once(start).chain(tokio_stream::pending());
    let mut client = RoutesClient::connect(endpoint).await?;
    let stream = client.subscribe(requests).await?;
    connected.cancel();
    let_go.cancelled().await;
    drop(stream);
    Ok(())
}

/// Writes until it succeeds; returns how often it was refused.
async fn writes(endpoint: String, writer: usize, refused: CancellationToken) -> Result<usize> {
    const PAUSE: Duration = Duration::from_millis(250);
    let mut client = RoutesClient::connect(endpoint).await?;
    let mut refusals = 0;
    loop {
        let Err(status) = client.write(write(writer)).await else {
            return Ok(refusals);
        };
        let told = format!("writer {writer}: {status:?}");
        ensure!(status.code() == Code::ResourceExhausted, "{told}");
        ensure!(Reason::from_status(&status) == Some(Reason::Overloaded), "{told}");
        ensure!(status.message().contains("MiB of writes are under way"), "{told}");
        refusals += 1;
        refused.cancel();
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test]
async fn writes_beyond_what_a_replica_admits_are_refused_and_succeed_when_others_have_ended() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = format!("http://{}", cluster.replicas[0].endpoint());
    let (refused, connected) = (CancellationToken::new(), CancellationToken::new());
    let mut proxy = JoinSet::new();
    proxy.spawn(stuck_proxy(endpoint.clone(), refused.clone(), connected.clone()));
    tokio::time::timeout(SOON, connected.cancelled()).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(writes(endpoint.clone(), writer, refused.clone()));
    }
    let all = tokio::time::timeout(2 * SOON, writers.join_all()).await?;
    let refusals: usize = all.into_iter().sum::<Result<usize>>()?;
    ensure!(refusals > 0, "{WRITERS} writers were taken in at once");
    while let Some(ended) = proxy.join_next().await {
        ended??;
    }
    let status = cluster.replicas[0].status().await?;
    ensure!(status.routes == (WRITERS * ROUTES_EACH) as u64, "{status:?}");
    cluster.finish().await
}
