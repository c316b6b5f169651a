//! The leader dies in the middle of a change: the next one finishes it, or it never happened.

mod stand_in;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, seed, until};
use holdfast_tests::writes::WriteLoad;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::stand_in::StandIn;
use crate::{ask, roles, voters};

const ROUNDS: usize = 8;

#[tokio::test]
async fn a_learner_that_was_added_but_not_told_is_told_by_the_next_leader() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    let leader = cluster.leader().await?;
    let victim = (leader + 1) % 3;
    let name = format!("r{victim}");
    cluster.replicas[victim].process.kill();
    cluster.replicas[victim].wipe()?;
    // An empty replica that is told its identity and never answers: so the leader is right between the two steps.
    let mut stand_in = StandIn::start(&name, cluster.replicas[victim].peer_port)?;
    let first = stand_in.told().await.context("nobody has adopted it")?;
    ensure!(first.node_id == 4 && first.name == name, "{first:?}");
    cluster.replicas[leader].process.kill();
    cluster.replicas[leader].process.start()?;
    let second = until("it is told again", SOON, async || {
        let told = stand_in.told().await.context("nobody has adopted it")?;
        ensure!(told == first, "{told:?} after {first:?}");
        Ok(told)
    })
    .await?;
    ensure!(second.node_id == 4);
    let (_, learners) = roles(&cluster).await?;
    ensure!(learners.into_iter().collect::<Vec<_>>() == [(4, name.clone())]);

    // It never takes its identity: its machine is gone too. The next empty replica gets an id of its own.
    drop(stand_in);
    let peer_port = cluster.replicas[victim].peer_port;
    until("its port is free", SOON, async || {
        std::net::TcpListener::bind(("127.0.0.1", peer_port)).map(drop)
    })
    .await?;
    cluster.replicas[victim].process.start()?;
    until(format!("{name} is a voter under its new id"), SOON, async || {
        let now = roles(&cluster).await?.0;
        ensure!(now.len() == 3 && now.contains(&(5, name.clone())), "{now:?}");
        Ok(())
    })
    .await?;
    cluster.ready().await?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_leader_killed_at_any_moment_of_a_replacement_leaves_nothing_behind() -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed());
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    let mut joint = 0;
    for round in 0..ROUNDS {
        let victim = random.random_range(0..3);
        let name = format!("r{victim}");
        let old = roles(&cluster).await?.0;
        cluster.replicas[victim].process.kill();
        cluster.replicas[victim].wipe()?;
        cluster.replicas[victim].process.start()?;
        // From the first look of the leader to the end of the change is about two seconds; the changes themselves take
        // milliseconds, so half of the rounds wait for the learner first.
        if random.random() {
            let added = until(format!("{name} is a learner"), SOON, async || {
                let (_, learners) = roles(&cluster).await?;
                ensure!(!learners.is_empty(), "nobody is");
                Ok(())
            });
            // It may be over before anybody sees it.
            let _ = tokio::time::timeout(Duration::from_secs(4), added).await;
            load.goes_on(random.random_range(0..500)).await?;
        } else {
            load.goes_on(random.random_range(0..1_500)).await?;
        }
        let leader = cluster.leader().await?;
        if leader != victim {
            cluster.replicas[leader].process.kill();
            cluster.replicas[leader].process.start()?;
        }
        let began = Instant::now();
        let now = until(format!("three voters after round {round}"), SOON, async || {
            let (voters, learners) = roles(&cluster).await?;
            let is_new = voters.iter().any(|voter| voter.1 == name && !old.contains(voter));
            ensure!(
                is_new && voters.len() == 3 && learners.is_empty(),
                "{voters:?} {learners:?}"
            );
            Ok(voters)
        })
        .await?;
        eprintln!(
            "round {round}: {name} wiped, then the leader r{leader} killed: {now:?} {:?} later",
            began.elapsed()
        );
        joint += cluster
            .replicas
            .iter()
            .filter(|replica| replica.process.log().contains("changing by itself action=Finish"))
            .count();
        cluster.ready().await?;
        load.goes_on(50).await?;
    }
    eprintln!("a joint membership was found and finished {joint} times");
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_change_that_a_dead_leader_left_half_done_ends_one_way_or_the_other() -> Result<()> {
    use nix::sys::signal::Signal;

    let mut cluster = Cluster::prepare(3)?;
    for replica in &mut cluster.replicas {
        replica.process.set_flag("--auto-replace", "false");
        replica.process.start()?;
    }
    cluster.ready().await?;
    let load = WriteLoad::on(&cluster)?;
    for name in ["r3", "r4"] {
        let at = cluster.add_replica(name)?;
        cluster.replicas[at].process.set_flag("--auto-replace", "false");
        cluster.replicas[at].process.start()?;
        let added = cluster.replicas[at].peer();
        until(format!("{name} is added"), SOON, async || {
            let finished = ask(&cluster, &["members", "add", &added]).await?;
            ensure!(finished.code == Some(0), "{finished:?}");
            Ok(())
        })
        .await?;
        cluster.replicas[at].ready().await?;
    }
    load.goes_on(100).await?;
    // Both followers stop while the change is asked for: it is in the leader's log and gets no further.
    let leader = cluster.leader().await?;
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &followers {
        cluster.replicas[*at].process.signal(Signal::SIGSTOP);
    }
    let leader_address = cluster.replicas[leader].endpoint();
    let promote = [
        "members",
        "promote",
        "r3",
        "r4",
        "--timeout",
        "1s",
        "--endpoints",
        &leader_address,
    ];
    let finished = holdfast_tests::fixture::run(promote).await?;
    ensure!(finished.code == Some(1), "{finished:?}");
    cluster.replicas[leader].process.kill();
    for at in &followers {
        cluster.replicas[*at].process.signal(Signal::SIGCONT);
    }
    cluster.replicas[leader].process.start()?;
    cluster.ready().await?;
    let now = until("the membership is at rest", SOON, async || {
        let finished = ask(&cluster, &["leader", "move"]).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        let (voters, learners) = roles(&cluster).await?;
        ensure!(voters.len() + learners.len() == 5, "{voters:?} {learners:?}");
        ensure!(voters.len() == 3 || voters.len() == 5, "{voters:?} {learners:?}");
        Ok(voters.len())
    })
    .await?;
    eprintln!("the change that was cut off ended with {now} voters");
    if now == 3 {
        // Or the new leader is just about to end it.
        let finished = ask(&cluster, &["members", "promote", "r3", "r4"]).await?;
        let ends_it = finished.stderr.contains("has a vote already");
        ensure!(finished.code == Some(0) || ends_it, "{finished:?}");
    }
    voters(&cluster, &["r0", "r1", "r2", "r3", "r4"]).await?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}
