//! What a replica forwards to its leader is done by its leader or by nobody.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_table::Route;
use holdfast_tests::fixture::{Cluster, Replica};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::change::Change as Kind;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{
    Change, LeaderMoveRequest, MemberAddRequest, MemberRemoveRequest, OpenHubRequest, Route as Put, WriteRequest,
};
use tonic::{Response, Status};

const TARGET: &str = "http://10.0.0.1:8888";

fn write(routespec: &str) -> WriteRequest {
    let put = Put {
        routespec: routespec.to_owned(),
        target: TARGET.to_owned(),
        ..Put::default()
    };
    WriteRequest {
        changes: vec![Change {
            change: Some(Kind::Put(put)),
        }],
        ..WriteRequest::default()
    }
}

/// Everything that a call could have changed.
async fn position(replica: &Replica) -> Result<impl PartialEq + std::fmt::Debug + use<>> {
    let status = replica.status().await?;
    let members: Vec<_> = status.members.into_iter().map(|member| member.name).collect();
    Ok((
        status.cluster_id,
        status.term,
        status.last_log_index,
        status.revision,
        status.digest,
        members,
    ))
}

/// Refused so that the caller may try again anywhere, and knows that nothing was done.
fn is_no_leader<T>(what: &str, answer: Result<Response<T>, Status>, nothing: &str) -> Result<()> {
    let refusal = answer.err().with_context(|| format!("{what} was taken"))?;
    ensure!(
        Reason::from_status(&refusal) == Some(Reason::NoLeader) && refusal.message().contains(nothing),
        "{what}: {refusal:?}"
    );
    Ok(())
}

#[tokio::test]
async fn p5_another_cluster_at_the_leaders_address_takes_nothing_that_is_forwarded_to_it() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer.put(Route::parse("/user/alice/", TARGET, "", "")?).await?;
    cluster.agree().await?;
    let leader = cluster.leader().await?;
    let [left, down] = [(leader + 1) % 3, (leader + 2) % 3];
    let leader_id = cluster.replicas[leader].status().await?.node_id;
    for at in [leader, down] {
        cluster.replicas[at].process.kill();
    }

    // Another cluster's replica where the leader was, and one that stayed behind, with no quorum, and takes it for the leader.
    let mut other = Cluster::prepare(1)?;
    other.replicas[0].peer_port = cluster.replicas[leader].peer_port;
    let peers = other.peers();
    let process = &mut other.replicas[0].process;
    process.set_flag(
        "--listen-peer",
        format!("127.0.0.1:{}", cluster.replicas[leader].peer_port),
    );
    process.set_flag("--peers", peers);
    process.start()?;
    other.ready().await?;
    let writer = other.writer("default", Duration::ZERO)?;
    writer.put(Route::parse("/user/bob/", TARGET, "", "")?).await?;
    let before = position(&other.replicas[0]).await?;

    let endpoint = format!("http://{}", cluster.replicas[left].endpoint());
    let mut routes = RoutesClient::connect(endpoint.clone()).await?;
    let (mut opening, mut writing) = (routes.clone(), routes.clone());
    let cluster_calls = ClusterClient::connect(endpoint).await?;
    let (mut removing, mut adding, mut moving) = (cluster_calls.clone(), cluster_calls.clone(), cluster_calls);
    let hub = OpenHubRequest {
        hub: vec![7; 16].into(),
        ..OpenHubRequest::default()
    };
    let add = MemberAddRequest {
        name: "r9".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
    };
    // Each of them looks for a leader for a while.
    let (written, opened, removed, added, moved) = tokio::join!(
        writing.write(write("/user/carol/")),
        opening.open_hub(hub),
        removing.member_remove(MemberRemoveRequest {
            names: vec!["r0".to_owned()],
        }),
        adding.member_add(add),
        moving.leader_move(LeaderMoveRequest::default()),
    );
    is_no_leader("a write", written, "nothing was written")?;
    is_no_leader("a hub", opened, "nothing was written")?;
    is_no_leader("a removal", removed, "nothing was changed")?;
    is_no_leader("an addition", added, "nothing was changed")?;
    is_no_leader("a move", moved, "nothing was changed")?;
    // However often, and at whatever moment the search is given up.
    for _ in 0..3 {
        let written = routes.write(write("/user/carol/")).await;
        is_no_leader("a write", written, "nothing was written")?;
    }
    ensure!(position(&other.replicas[0]).await? == before, "{before:?} before");
    let status = cluster.replicas[left].status().await?;
    ensure!(status.leader_id == leader_id, "it knows another leader: {status:?}");
    other.finish().await?;

    // The leader comes back to its address, and so does everything else.
    for at in [leader, down] {
        cluster.replicas[at].process.start()?;
    }
    cluster.ready().await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer.put(Route::parse("/user/carol/", TARGET, "", "")?).await?;
    ensure!(cluster.routes("default").await?.len() == 2);
    cluster.finish().await
}
