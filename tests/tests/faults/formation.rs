//! A cluster is formed once, by all of its replicas, and never again by some of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_table::Route;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Replica, stays, until};
use holdfast_wire::proto::Role;

/// Many election timeouts.
const LONG: Duration = Duration::from_secs(4);

async fn waits(replica: &Replica) -> Result<()> {
    let status = replica.status().await?;
    ensure!(
        status.role() == Role::Pristine,
        "{} is {:?}",
        status.name,
        status.role()
    );
    ensure!(
        status.cluster_id.is_empty(),
        "{} is in cluster {}",
        status.name,
        status.cluster_id
    );
    ensure!(
        !status.waiting_for.is_empty(),
        "{} does not say what it waits for",
        status.name
    );
    ensure!(!status.ready, "{} is ready", status.name);
    Ok(())
}

#[tokio::test]
async fn p5_a_cluster_of_three_is_not_formed_while_one_is_missing() -> Result<()> {
    for missing in [2, 0] {
        let mut cluster = Cluster::prepare(3)?;
        let present: Vec<_> = (0..3).filter(|at| *at != missing).collect();
        for at in &present {
            cluster.replicas[*at].process.start()?;
        }
        for at in &present {
            let replica = &cluster.replicas[*at];
            until(format!("r{at} waits"), SOON, async || waits(replica).await).await?;
        }
        stays(format!("r{missing} is missing and the others wait"), LONG, async || {
            for at in &present {
                waits(&cluster.replicas[*at]).await?;
            }
            Ok(())
        })
        .await?;
        let status = cluster.replicas[present[0]].status().await?;
        ensure!(
            status.waiting_for.contains(&format!("r{missing}")) || present[0] != 0,
            "does not name r{missing}: {:?}",
            status.waiting_for
        );
        cluster.replicas[missing].process.start()?;
        cluster.ready().await?;
        cluster.leader().await?;
        cluster.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn p5_two_wiped_replicas_form_no_cluster() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer
        .put(Route::parse("/user/alice/", "http://10.0.0.1:8888", "{}", "")?)
        .await?;
    cluster.agree().await?;
    let before = cluster.replicas[2].status().await?.last_log_index;
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    // The first of the list among them, which is the one that forms a cluster.
    let (wiped, survivor) = ([0, 1], 2);
    for at in wiped {
        cluster.replicas[at].wipe()?;
        cluster.replicas[at].process.start()?;
    }
    for at in wiped {
        let replica = &cluster.replicas[at];
        until(format!("r{at} waits"), SOON, async || waits(replica).await).await?;
    }
    stays("two wiped replicas wait", LONG, async || {
        for at in wiped {
            waits(&cluster.replicas[at]).await?;
        }
        Ok(())
    })
    .await?;

    // Nor do they when the one that has the table is back: it is no quorum, and they have nothing to vote with.
    cluster.replicas[survivor].process.start()?;
    // It applies no more of its log than it knows to be committed, but all of it is there.
    until("the survivor has its log", SOON, async || {
        let last = cluster.replicas[survivor].status().await?.last_log_index;
        ensure!(last >= before, "it ends at {last}, not at {before}");
        Ok(())
    })
    .await?;
    stays("nobody leads", LONG, async || {
        for replica in &cluster.replicas {
            let status = replica.status().await?;
            ensure!(status.role() != Role::Leader, "{} leads", status.name);
        }
        Ok(())
    })
    .await?;
    for at in wiped {
        cluster.replicas[at].process.kill();
    }
    cluster.finish().await
}

#[tokio::test]
async fn p5_one_wiped_replica_does_no_harm() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer
        .put(Route::parse("/user/alice/", "http://10.0.0.1:8888", "{}", "")?)
        .await?;
    let victim = cluster.leader().await?;
    cluster.replicas[victim].process.kill();
    cluster.replicas[victim].wipe()?;
    cluster.replicas[victim].process.start()?;
    writer
        .put(Route::parse("/user/bob/", "http://10.0.0.2:8888", "{}", "")?)
        .await?;
    // It comes back as a stranger, and whatever it says on the way is nothing or the truth.
    let wiped = &cluster.replicas[victim];
    let only_wiped = RouteReader::new(Endpoints::parse(&[wiped.endpoint()])?, Duration::from_secs(2));
    for number in 0..20 {
        let spec = format!("/user/carol-{number}/");
        writer
            .put(Route::parse(&spec, "http://10.0.0.3:8888", "{}", "")?)
            .await?;
        if let Ok(listing) = only_wiped.list(None, "").await {
            ensure!(listing.routes.len() == 3 + number, "{number}: it lists {listing:?}");
        }
        if let Ok(status) = wiped.status().await {
            let id = status.node_id;
            ensure!(id == 0 || id > 3, "it speaks with the id {id} again");
        }
    }
    ensure!(cluster.routes("default").await?.len() == 22, "routes are missing");
    cluster.ready().await?;
    ensure!(
        cluster.replicas[victim].status().await?.node_id == 4,
        "it has another id"
    );
    cluster.finish().await
}
