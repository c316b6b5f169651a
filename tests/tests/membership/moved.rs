//! A member that comes back at another address, with its disk, stays who it is.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, free_port, until};
use holdfast_tests::writes::WriteLoad;

use crate::{members, roles};

#[tokio::test]
async fn a_member_that_moves_with_its_disk_is_followed_to_its_new_address() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let before = roles(&cluster).await?;
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    let victim = cluster.leader().await?;
    let moved = &mut cluster.replicas[victim];
    (moved.client_port, moved.peer_port) = (free_port(), free_port());
    for (flag, port) in [
        ("--listen-client", moved.client_port),
        ("--listen-peer", moved.peer_port),
    ] {
        moved.process.set_flag(flag, format!("127.0.0.1:{port}"));
    }
    let (endpoint, peers) = (moved.endpoint(), cluster.peers());
    let address = format!("127.0.0.1:{}", cluster.replicas[victim].peer_port);
    for replica in &mut cluster.replicas {
        replica.process.set_flag("--peers", &peers);
    }
    // As the manual says: the others first, one at a time, and the one that moves last.
    for at in [1, 2, 0].map(|step| (victim + step) % 3) {
        let replica = &mut cluster.replicas[at];
        let ended = replica.process.terminate(SOON).await?;
        ensure!(ended.success(), "{ended}");
        replica.process.start()?;
        if at != victim {
            replica.ready().await?;
        }
    }
    let began = Instant::now();
    until("it is a member where it is now", SOON, async || {
        let list = members(&cluster).await?;
        let all = list["members"].as_array().context("no list")?;
        let found = all
            .iter()
            .any(|member| member["peer_address"] == address && member["client_address"] == endpoint);
        ensure!(found, "{list}");
        Ok(())
    })
    .await?;
    cluster.replicas[victim].ready().await?;
    eprintln!("r{victim} was followed to its new address after {:?}", began.elapsed());
    ensure!(roles(&cluster).await? == before, "its id is its own: {before:?}");

    // The others need it now, and reach it, whoever leads.
    for at in (0..3).filter(|at| *at != victim) {
        cluster.replicas[at].process.kill();
        load.goes_on(50).await?;
        cluster.replicas[at].process.start()?;
        cluster.replicas[at].ready().await?;
    }
    load.stop().await;
    cluster.finish().await
}
