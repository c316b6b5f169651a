//! A replica that lost its disk is replaced.

use std::time::Instant;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::writes::WriteLoad;

use crate::{ask, members, roles, voters};

#[tokio::test]
async fn p3_a_wiped_replica_is_a_voter_again_by_itself_under_writes() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    // The founder among them, and the leader.
    let follower = cluster.follower().await?;
    let mut gone = Vec::new();
    for (round, victim) in [Some(follower), Some(0), None].into_iter().enumerate() {
        let victim = match victim {
            Some(victim) => victim,
            None => cluster.leader().await?,
        };
        let name = format!("r{victim}");
        let (before, _) = roles(&cluster).await?;
        let old = before.iter().find(|(_, voter)| *voter == name).map_or(0, |(id, _)| *id);
        let was = cluster.replicas[victim].status().await?.role();
        load.watch_gap();
        cluster.replicas[victim].process.kill();
        cluster.replicas[victim].wipe()?;
        let began = Instant::now();
        cluster.replicas[victim].process.start()?;
        let new = until(format!("{name} votes under another id"), SOON, async || {
            let (voters, learners) = roles(&cluster).await?;
            let new = voters.iter().find(|(id, voter)| *voter == name && *id != old);
            ensure!(voters.len() == 3 && learners.is_empty(), "{voters:?} {learners:?}");
            new.map(|(id, _)| *id).ok_or_else(|| anyhow::anyhow!("{voters:?}"))
        })
        .await?;
        let took = began.elapsed();
        cluster.replicas[victim].ready().await?;
        load.goes_on(100).await?;
        eprintln!(
            "{name} ({was:?}, id {old}) lost its disk: three voters again after {took:?}, as id {new}; longest time without an \
             acknowledged write {:?}",
            load.gap()
        );
        gone.push(old);
        ensure!(new == 4 + round as u64, "ids are given once, in order: {new}");
        let list = members(&cluster).await?;
        ensure!(list["node_id_max"] == new && list["waits_for"] == "", "{list}");
        let log = cluster.replicas[victim].process.log();
        ensure!(
            log.contains("to take this replica in"),
            "it did not say what it waited for"
        );
    }
    let (now, _) = roles(&cluster).await?;
    ensure!(
        now.iter().all(|(id, _)| !gone.contains(id)),
        "{gone:?} were used again: {now:?}"
    );
    load.ends_well(&cluster).await?;

    // All of them start again as what they have become.
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    ensure!(roles(&cluster).await?.0 == now);
    cluster.finish().await
}

#[tokio::test]
async fn a_replica_is_replaced_by_hand_where_nothing_happens_by_itself() -> Result<()> {
    let mut cluster = Cluster::prepare(5)?;
    for replica in &mut cluster.replicas {
        replica.process.set_flag("--auto-replace", "false");
        replica.process.start()?;
    }
    cluster.ready().await?;
    let load = WriteLoad::on(&cluster)?;
    let leader = cluster.leader().await?;
    let victims: Vec<usize> = (0..5).filter(|at| *at != leader).take(2).collect();
    // Two at once: more than anything would do by itself.
    for at in &victims {
        cluster.replicas[*at].process.kill();
        cluster.replicas[*at].wipe()?;
        cluster.replicas[*at].process.start()?;
    }
    for at in &victims {
        cluster.replicas[*at].waits().await?;
    }
    for at in &victims {
        let name = format!("r{at}");
        // Until its silence is noticed it still counts as there.
        until(format!("{name} is replaced"), SOON, async || {
            let finished = ask(&cluster, &["members", "replace", &name]).await?;
            ensure!(finished.code == Some(0), "{finished:?}");
            Ok(())
        })
        .await?;
    }
    let now = voters(&cluster, &["r0", "r1", "r2", "r3", "r4"]).await?;
    ensure!(now.iter().map(|(id, _)| *id).max() == Some(7), "{now:?}");
    cluster.ready().await?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}
