//! What is left of the old cluster does no harm to the new one.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{stays, until};
use holdfast_wire::proto::Role;

use crate::{Scene, json, proxy_epoch, text};

#[tokio::test]
async fn what_is_left_of_the_old_cluster_is_refused_by_the_new_one_and_by_the_proxies() -> Result<()> {
    let mut scene = Scene::start(1).await?;
    scene.cluster.agree().await?;
    scene.kill_replicas();
    let (data_dir, peers) = (scene.cluster.replicas[0].data_dir.clone(), scene.cluster.peers());
    let recover = [
        "recover",
        "--data-dir",
        text(&data_dir),
        "--force-new-cluster",
        "--name",
        "r0",
        "--peers",
        &peers,
    ];
    let new = json(&recover).await?["cluster_id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    scene.cluster.replicas[0].process.start()?;
    scene.cluster.replicas[0].ready().await?;
    let follows = async |scene: &Scene| {
        let found = proxy_epoch(&scene.cluster, 0).await?;
        ensure!(found == (1, new.clone()), "{found:?}");
        Ok(())
    };
    until("the proxy follows the new cluster", SOON, async || {
        follows(&scene).await
    })
    .await?;

    // An old member with its old directory is told what it is, and ends.
    let old = &mut scene.cluster.replicas[1].process;
    old.start()?;
    let ended = old.ended(SOON).await?;
    ensure!(!ended.success(), "{ended}");
    let log = old.log_tail(20);
    for part in ["is over", &new, "empty", "r0"] {
        ensure!(log.contains(part), "{part} is not said:\n{log}");
    }
    ensure!(scene.cluster.replicas[0].status().await?.members.len() == 1);

    // Two of them without the new one's knowledge are a quorum, and lead each other; the proxy is not impressed.
    scene.cluster.replicas[0].process.kill();
    for at in [1, 2] {
        scene.cluster.replicas[at].process.start()?;
    }
    let cluster = &scene.cluster;
    until("the old ones have a leader", SOON, async || {
        let mut leads = false;
        for at in [1, 2] {
            leads |= cluster.replicas[at].status().await?.role() == Role::Leader;
        }
        ensure!(leads, "nobody leads");
        Ok(())
    })
    .await?;
    stays(
        "the proxy keeps the new cluster's table",
        Duration::from_secs(5),
        async || follows(&scene).await,
    )
    .await?;
    let log = scene.cluster.proxies[0].process.log();
    ensure!(log.contains("none of its ancestors"), "{}", scene.cluster.logs());
    // Not after a restart either: its copy is the new cluster's.
    scene.prober.expect_down(0);
    scene.cluster.proxies[0].process.kill();
    scene.cluster.proxies[0].process.start()?;
    scene.prober.expect_up(0);
    stays("the restarted proxy keeps it too", Duration::from_secs(3), async || {
        match scene.cluster.proxies[0].status().await {
            Ok(status) => {
                ensure!(status["epoch"] == 1 && status["cluster_id"] == new, "{status}");
                Ok(())
            }
            // It is starting.
            Err(_) => Ok(()),
        }
    })
    .await?;

    // The new one starts beside them and is followed again. Started again themselves they see that they are over, and so
    // does the one that merely lost its quorum.
    scene.cluster.replicas[0].process.start()?;
    scene.cluster.replicas[0].ready().await?;
    scene.cluster.replicas[2].process.kill();
    scene.cluster.replicas[2].process.start()?;
    for at in [2, 1] {
        let old = &mut scene.cluster.replicas[at];
        let ended = old.process.ended(SOON).await?;
        ensure!(!ended.success(), "{ended}");
        ensure!(
            old.process.log_tail(20).contains("is over"),
            "{}",
            old.process.log_tail(20)
        );
        // Emptied, it is welcome.
        old.process.kill();
        old.wipe()?;
    }
    scene.join(&[1, 2]).await?;
    scene.finish().await
}
