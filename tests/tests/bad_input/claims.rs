//! Those who claim what cannot be: a subscriber that is ahead of the cluster, a writer whose session is over or goes back.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::TryStreamExt as _;
use holdfast_table::Route;
use holdfast_table::sessions::SESSIONS_MAX;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Replica, until};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{self, hello};
use prost::Message as _;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Streaming;
use tonic::transport::Channel;

/// A replica lets a subscriber that is ahead of it wait for two seconds; the rest is for a busy machine.
const SENT_AWAY_WITHIN: Duration = Duration::from_secs(4);
const FUTURE: u64 = 1_000_000;
const UNDER_WAY: usize = 200;

/// Everything in a replica's status that a refused claim could have changed.
async fn position(replica: &Replica) -> Result<impl PartialEq + Debug + use<>> {
    let status = replica.status().await?;
    Ok((
        (status.cluster_id, status.term, status.leader_id, status.last_log_index),
        (status.epoch, status.revision, status.digest, status.routes),
        status.ready,
    ))
}

async fn client(endpoint: &str) -> Result<RoutesClient<Channel>> {
    Ok(RoutesClient::connect(format!("http://{endpoint}")).await?)
}

async fn subscribe(endpoint: &str, start: proto::Start) -> Result<Streaming<proto::SubscribeResponse>> {
    let start = proto::SubscribeRequest {
        frame: Some(proto::subscribe_request::Frame::Start(start)),
    };
    let requests = tokio_stream::once(start).chain(tokio_stream::pending());
    Ok(client(endpoint).await?.subscribe(requests).await?.into_inner())
}

/// The next frame that is no bookmark.
async fn next(stream: &mut Streaming<proto::SubscribeResponse>) -> Result<Frame> {
    let news = async {
        loop {
            let frame = stream.message().await?.context("the stream has ended")?;
            match frame.frame.context("an empty frame")? {
                Frame::Bookmark(_) => {}
                frame => return anyhow::Ok(frame),
            }
        }
    };
    timeout(SOON, news).await?
}

async fn is_sent_away(mut stream: Streaming<proto::SubscribeResponse>) -> Result<()> {
    let frame = timeout(SENT_AWAY_WITHIN, next(&mut stream)).await??;
    let Frame::GoAway(go_away) = &frame else {
        bail!("{frame:?} in place of a farewell")
    };
    ensure!(go_away.reason() == proto::go_away::Reason::Behind, "{go_away:?}");
    let more = timeout(SOON, stream.message()).await??;
    ensure!(more.is_none(), "{more:?} after the farewell");
    Ok(())
}

#[tokio::test]
async fn a_subscriber_that_is_ahead_is_sent_away_and_disturbs_nobody() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    let put = |user: String| Route::parse(&format!("/user/{user}/"), "http://10.0.0.1:8888", "", "");
    writer.put(put("alice".to_owned())?).await?;
    for at in 0..3 {
        let (revision, _) = cluster.agree().await?;
        let replica = &cluster.replicas[at];
        let (endpoint, status) = (replica.endpoint(), replica.status().await?);
        let before = position(replica).await?;
        let start = |has_table, revision| proto::Start {
            has_table,
            cluster_id: status.cluster_id.clone(),
            epoch: status.epoch,
            revision,
            name: "claims".to_owned(),
            proxy: false,
        };
        let mut beside = subscribe(&endpoint, start(true, revision)).await?;
        let hello = next(&mut beside).await?;
        let Frame::Hello(hello) = &hello else {
            bail!("{hello:?}")
        };
        ensure!(
            (hello.mode(), hello.revision) == (hello::Mode::Resume, revision),
            "{hello:?}"
        );

        // Also one that does not trust its table, but knows where it has been.
        for has_table in [true, false] {
            let ahead = subscribe(&endpoint, start(has_table, revision + FUTURE)).await?;
            is_sent_away(ahead).await?;
        }
        let now = position(replica).await?;
        ensure!(now == before, "{now:?}, before {before:?}");

        let ahead = subscribe(&endpoint, start(true, revision + FUTURE)).await?;
        writer.put(put(format!("bob-{at}"))?).await?;
        let news = next(&mut beside).await?;
        let Frame::Delta(delta) = &news else { bail!("{news:?}") };
        let delta = proto::Delta::decode(delta.clone())?;
        ensure!(
            (delta.from_revision, delta.to_revision) == (revision, revision + 1),
            "{delta:?}"
        );
        is_sent_away(ahead).await?;
    }
    cluster.finish().await
}

/// A write that changes something, if no other has this port.
fn write(session: [u8; 16], sequence: u64, port: usize) -> proto::WriteRequest {
    let put = proto::Route {
        routespec: "/user/alice/".to_owned(),
        target: format!("http://10.0.0.1:{port}"),
        ..proto::Route::default()
    };
    proto::WriteRequest {
        changes: vec![proto::Change {
            change: Some(proto::change::Change::Put(put)),
        }],
        session: session.to_vec().into(),
        sequence,
        ..proto::WriteRequest::default()
    }
}

/// Refused by every replica for this reason, in these words, and nothing is changed.
async fn is_refused(
    cluster: &mut Cluster,
    request: &proto::WriteRequest,
    reason: Reason,
    words: &[&str],
) -> Result<()> {
    let before = cluster.agree().await?;
    // The leader knows without its log that it refuses; of a write that was sent before, only the log decides.
    for retry in [false, true] {
        let request = proto::WriteRequest {
            retry,
            ..request.clone()
        };
        for endpoint in cluster.endpoints() {
            let refused = client(&endpoint).await?.write(request.clone()).await.err();
            let refused = refused.with_context(|| format!("{endpoint} took {request:?}"))?;
            ensure!(Reason::from_status(&refused) == Some(reason), "{refused:?}");
            for word in words {
                ensure!(refused.message().contains(word), "{word:?} is not in {refused:?}");
            }
        }
    }
    let now = cluster.agree().await?;
    ensure!(now == before, "{now:?}, before {before:?}");
    Ok(())
}

#[tokio::test]
async fn a_write_of_a_session_that_goes_back_or_is_forgotten_is_refused_for_what_it_is() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let leader = cluster.leader().await?;
    let leader = client(&cluster.replicas[leader].endpoint()).await?;
    let session = |number: usize| {
        let mut session = [0; 16];
        session[..8].copy_from_slice(&number.to_be_bytes());
        session
    };
    let victim = session(0);
    leader.clone().write(write(victim, 1, 1)).await?;
    let last = leader.clone().write(write(victim, 5, 2)).await?.into_inner();
    for sequence in [1, 4] {
        let words = [format!("sequence {sequence}"), "at 5 already".to_owned()];
        let words = words.each_ref().map(String::as_str);
        is_refused(&mut cluster, &write(victim, sequence, 3), Reason::Sequence, &words).await?;
    }
    // The last one itself is answered as it was, whatever it asks for by now.
    let again = leader.clone().write(write(victim, 5, 3)).await?.into_inner();
    ensure!(
        (again.revision, again.changed) == (last.revision, true),
        "{again:?}, first {last:?}"
    );
    let unknown = write(session(usize::MAX), 2, 3);
    is_refused(
        &mut cluster,
        &unknown,
        Reason::SessionExpired,
        &["session is not known"],
    )
    .await?;

    // So many others write that the first one is forgotten.
    let crowd = futures_util::stream::iter((1..=SESSIONS_MAX).map(anyhow::Ok));
    crowd
        .try_for_each_concurrent(UNDER_WAY, async |number| {
            let request = write(session(number), 1, 1_000 + number);
            until("a write is acknowledged", SOON, async || {
                leader.clone().write(request.clone()).await
            })
            .await?;
            Ok(())
        })
        .await?;
    let next = write(victim, 6, 3);
    is_refused(&mut cluster, &next, Reason::SessionExpired, &["session is not known"]).await?;
    // Its first write is one of a new session by all that is known; but who repeats it is told that it may not be.
    let first = proto::WriteRequest {
        retry: true,
        ..write(victim, 1, 3)
    };
    let refused = leader.clone().write(first).await.err().context("it was taken")?;
    ensure!(
        Reason::from_status(&refused) == Some(Reason::SessionExpired),
        "{refused:?}"
    );
    let late = write(victim, 1, 3);
    is_refused(&mut cluster, &late, Reason::SessionExpired, &["session is not known"]).await?;
    // The one that comes after it is known still.
    let known = leader
        .clone()
        .write(write(session(SESSIONS_MAX), 2, 3))
        .await?
        .into_inner();
    ensure!(known.changed, "{known:?}");
    cluster.finish().await
}
