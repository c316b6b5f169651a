//! Two of three disks are lost under load. What is left does no harm and goes on serving; the manual's commands bring the
//! cluster back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteWriter, WriterOptions};
use holdfast_tests::fixture::cluster::{SOON, hex};
use holdfast_tests::fixture::{run, stays, until};
use holdfast_tests::writes::{WriteLoad, check};

use crate::manual::{self, DATA_DIR, PEERS};
use crate::{Scene, proxy_epoch, text};

/// Many election timeouts.
const LONG: Duration = Duration::from_secs(4);
const SECTION: &str = "Quorum lost for good";
/// The one that the manual's example recovers.
const SURVIVOR: usize = 0;

#[tokio::test]
async fn p5_two_wiped_replicas_form_no_cluster_and_the_manual_brings_back_what_the_third_has() -> Result<()> {
    let mut scene = Scene::start(1).await?;
    let load = WriteLoad::on(&scene.cluster)?;
    load.goes_on(300).await?;
    // What one survivor may lack is what only the other two have: so it leads, and lacks nothing.
    let endpoints = scene.cluster.endpoints().join(",");
    until("r0 leads", SOON, async || {
        let finished = run(["leader", "move", "--to", "r0", "--endpoints", &endpoints]).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        Ok(())
    })
    .await?;
    load.goes_on(100).await?;
    let lost = Instant::now();
    // Both before either disk: one alone that was missing would be replaced.
    for at in [1, 2] {
        scene.cluster.replicas[at].process.kill();
    }
    for at in [1, 2] {
        scene.cluster.replicas[at].wipe()?;
    }
    let before = load.fates();
    for at in [1, 2] {
        scene.cluster.replicas[at].process.start()?;
    }

    // They are nobody, and nobody leads.
    let cluster = &scene.cluster;
    for replica in &cluster.replicas[1..] {
        replica.waits().await?;
    }
    let survivor = cluster.replicas[SURVIVOR].status().await?;
    stays("no cluster is formed", LONG, async || {
        for replica in &cluster.replicas[1..] {
            let status = replica.status().await?;
            ensure!(status.node_id == 0 && status.cluster_id.is_empty(), "{status:?}");
        }
        let status = cluster.replicas[SURVIVOR].status().await?;
        ensure!(status.cluster_id == survivor.cluster_id, "{status:?}");
        Ok(())
    })
    .await?;
    let impatient = WriterOptions {
        timeout: Duration::from_secs(2),
        ..WriterOptions::default()
    };
    let written = RouteWriter::new(Endpoints::parse(&cluster.endpoints())?, impatient)
        .put(scene.echo.route("nobody", "")?)
        .await;
    ensure!(written.is_err(), "acknowledged without a quorum: {written:?}");

    // What the survivor has is served: to the users, and to a proxy that has nothing yet.
    let at = scene.cluster.add_proxy()?;
    let proxy = &mut scene.cluster.proxies[at];
    proxy.process.start()?;
    proxy.ready().await?;
    scene.prober.add_proxy(proxy.process.name(), &proxy.address());
    scene.prober.round().await?;
    let status = scene.cluster.replicas[SURVIVOR].status().await?;
    let has = scene.cluster.proxies[at].status().await?;
    ensure!(
        has["revision"] == status.revision && has["digest"] == hex(&status.digest),
        "{has} {status:?}"
    );

    // From here on the manual.
    let began = Instant::now();
    let (data_dir, peers) = (scene.cluster.replicas[SURVIVOR].data_dir.clone(), scene.cluster.peers());
    scene.cluster.replicas[SURVIVOR].process.kill();
    let look = manual::command(SECTION, &["recover"], &[(DATA_DIR, text(&data_dir))])?;
    let looked = run(&look).await?;
    ensure!(
        looked.code == Some(0) && looked.stdout.contains("Nothing was changed"),
        "{look:?}: {looked:?}"
    );
    let values = [(DATA_DIR, text(&data_dir)), (PEERS, peers.as_str())];
    let force = manual::command(SECTION, &["recover", "--force-new-cluster"], &values)?;
    let forced = run(&force).await?;
    ensure!(forced.code == Some(0), "{force:?}: {forced:?}");
    let recovered = began.elapsed();
    for at in [1, 2] {
        scene.cluster.replicas[at].process.kill();
        scene.cluster.replicas[at].wipe()?;
    }
    scene.cluster.replicas[SURVIVOR].process.start()?;
    scene.cluster.replicas[SURVIVOR].ready().await?;
    let served = began.elapsed();
    let found = scene.cluster.routes("default").await?;
    check(&before, &load.fates(), &found)?;
    scene.join(&[1, 2]).await?;
    let whole = began.elapsed();
    load.goes_on(100).await?;
    load.stop().await;
    let cluster = &scene.cluster;
    until("the proxies follow the new cluster", SOON, async || {
        for at in 0..2 {
            let (epoch, cluster_id) = proxy_epoch(cluster, at).await?;
            ensure!(epoch == 1 && cluster_id != survivor.cluster_id, "{epoch} {cluster_id}");
        }
        Ok(())
    })
    .await?;
    eprintln!(
        "two of three disks lost: {} routes served without a quorum for {:.1} s; from the survivor's stop to its recovery {:.1} s, \
         to the next write {:.1} s, to three voters {:.1} s; nothing acknowledged was lost",
        found.len(),
        (began - lost).as_secs_f64(),
        recovered.as_secs_f64(),
        served.as_secs_f64(),
        whole.as_secs_f64()
    );
    scene.finish().await
}
