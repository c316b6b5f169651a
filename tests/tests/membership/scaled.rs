//! Three replicas become five, and three again.

use std::time::Instant;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::writes::WriteLoad;
use holdfast_wire::proto::Role;

use crate::{ask, roles, voters};

#[tokio::test]
async fn three_become_five_and_three_again_under_writes() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    for name in ["r3", "r4"] {
        cluster.add_replica(name)?;
    }
    let peers = cluster.peers();
    // Everybody learns the new list, one after the other.
    for at in 0..5 {
        let process = &mut cluster.replicas[at].process;
        process.set_flag("--peers", &peers);
        if at < 3 {
            let ended = process.terminate(SOON).await?;
            ensure!(ended.success(), "{ended}");
            process.start()?;
            cluster.replicas[at].ready().await?;
        }
    }
    // One new replica alone gets no vote.
    cluster.replicas[3].process.start()?;
    until("r3 is a learner", SOON, async || {
        let (voters, learners) = roles(&cluster).await?;
        ensure!(
            voters.len() == 3 && learners.iter().any(|(_, name)| name == "r3"),
            "{voters:?} {learners:?}"
        );
        Ok(())
    })
    .await?;
    cluster.replicas[3].ready().await?;
    let began = Instant::now();
    cluster.replicas[4].process.start()?;
    until("five have a vote", SOON, async || {
        let (voters, _) = roles(&cluster).await?;
        if voters.len() == 4 {
            return Ok(Err(anyhow::anyhow!("four voters: {voters:?}")));
        }
        ensure!(voters.len() == 5, "{voters:?}");
        Ok(Ok(()))
    })
    .await??;
    eprintln!("five voters {:?} after the fifth replica was started", began.elapsed());
    cluster.ready().await?;
    load.goes_on(200).await?;

    // Five bear the loss of two.
    let leader = cluster.leader().await?;
    let others: Vec<usize> = (0..5).filter(|at| *at != leader).take(2).collect();
    for at in &others {
        cluster.replicas[*at].process.kill();
    }
    load.goes_on(100).await?;
    for at in &others {
        cluster.replicas[*at].process.start()?;
    }
    cluster.ready().await?;

    // The leader among those that go.
    let finished = ask(&cluster, &["leader", "move", "--to", "r4"]).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    load.watch_gap();
    let finished = ask(&cluster, &["members", "remove", "r3", "r4"]).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    voters(&cluster, &["r0", "r1", "r2"]).await?;
    load.goes_on(100).await?;
    eprintln!(
        "r3 and r4 removed, r4 led: longest time without an acknowledged write {:?}",
        load.gap()
    );
    for at in [3, 4] {
        let replica = &cluster.replicas[at];
        until(format!("r{at} knows that it is retired"), SOON, async || {
            let status = replica.status().await?;
            ensure!(status.role() == Role::Retired && !status.ready, "{status:?}");
            Ok(())
        })
        .await?;
        cluster.replicas[at].process.kill();
    }
    load.ends_well(&cluster).await?;
    cluster.finish().await
}
