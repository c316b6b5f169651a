//! A backup that is older than an earlier restore: its proxies follow only what names their cluster, and the proxies of
//! another cluster follow nothing of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_table::Route;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, run, stays, until};

use crate::manual::{self, BACKUP, DATA_DIR, ENDPOINTS, PEERS};
use crate::{Scene, proxy_epoch, text};

const SECTION: &str = "Backup and restore";
/// A proxy tries every replica a few times meanwhile.
const LONG: Duration = Duration::from_secs(4);

/// Everything is lost, and `r0` comes back from a backup as the manual says, with these arguments besides.
async fn restore(scene: &mut Scene, file: &str, besides: &[&str]) -> Result<()> {
    scene.kill_replicas();
    if scene.cluster.replicas[0].data_dir.exists() {
        scene.cluster.replicas[0].wipe()?;
    }
    let (data_dir, peers) = (scene.cluster.replicas[0].data_dir.clone(), scene.cluster.peers());
    let values = [(BACKUP, file), (DATA_DIR, text(&data_dir)), (PEERS, peers.as_str())];
    let mut restore = manual::command(SECTION, &["restore", "--name"], &values)?;
    restore.extend(besides.iter().map(|argument| (*argument).to_owned()));
    let restored = run(&restore).await?;
    ensure!(restored.code == Some(0), "{restore:?}: {restored:?}");
    scene.cluster.replicas[0].process.start()?;
    scene.cluster.replicas[0].ready().await
}

/// The id of the cluster that `r0` is.
async fn cluster_id(scene: &Scene) -> Result<String> {
    Ok(scene.cluster.replicas[0].status().await?.cluster_id)
}

/// Waits until the proxy follows the present cluster, which has this epoch; returns its id.
async fn follows(scene: &Scene, epoch: u64) -> Result<String> {
    let present = (epoch, cluster_id(scene).await?);
    until(format!("the proxy follows {present:?}"), SOON, async || {
        let found = proxy_epoch(&scene.cluster, 0).await?;
        ensure!(found == present, "{found:?}");
        Ok(())
    })
    .await?;
    Ok(present.1)
}

/// A proxy with a table of another cluster, which is told that this cluster's replicas are its own.
async fn stranger(scene: &mut Scene) -> Result<(usize, String)> {
    let other = Cluster::start_with_proxies(1, 1).await?;
    let route = Route::parse("/user/stranger/", "http://127.0.0.1:9", "{}", "")?;
    let revision = other.writer("default", Duration::ZERO)?.put(route).await?.revision.0;
    other.proxies[0].cached(revision).await?;
    let id = other.replicas[0].status().await?.cluster_id;
    let at = scene.cluster.add_proxy()?;
    let proxy = &mut scene.cluster.proxies[at];
    std::fs::create_dir_all(&proxy.data_dir)?;
    std::fs::copy(
        other.proxies[0].data_dir.join("table.cache"),
        proxy.data_dir.join("table.cache"),
    )?;
    other.finish().await?;
    proxy.process.start()?;
    proxy.ready().await?;
    Ok((at, id))
}

#[tokio::test]
async fn a_cluster_that_replaces_one_from_after_its_backup_is_followed_and_by_no_stranger() -> Result<()> {
    let mut scene = Scene::start(1).await?;
    let file = scene.cluster.folder().join("nightly.backup");
    let (file, endpoints) = (text(&file).to_owned(), scene.cluster.endpoints().join(","));
    let values = [(BACKUP, file.as_str()), (ENDPOINTS, endpoints.as_str())];
    let backup = manual::command(SECTION, &["backup", ENDPOINTS], &values)?;
    let taken = run(&backup).await?;
    ensure!(taken.code == Some(0), "{backup:?}: {taken:?}");
    let verify = manual::command(SECTION, &["backup", "verify"], &values[..1])?;
    let verified = run(&verify).await?;
    ensure!(verified.code == Some(0), "{verify:?}: {verified:?}");

    // The first restore is followed by itself.
    restore(&mut scene, &file, &[]).await?;
    let first = follows(&scene, 1).await?;
    let writer = scene.cluster.writer("default", Duration::from_secs(5))?;
    let answer = writer.put(scene.echo.route("after", "")?).await?;
    ensure!(answer.proxies_synced == 1, "{answer:?}");

    // A second one from the same backup knows nothing of the first, and its proxies stay with what they have.
    restore(&mut scene, &file, &[]).await?;
    let unknown = cluster_id(&scene).await?;
    ensure!(unknown != first, "one id for two clusters");
    stays("the proxy keeps the first one's table", LONG, async || {
        let found = proxy_epoch(&scene.cluster, 0).await?;
        ensure!(found == (1, first.clone()), "{found:?}");
        Ok(())
    })
    .await?;
    until("the proxy says whom it does not follow", SOON, async || {
        let log = scene.cluster.proxies[0].process.log();
        ensure!(log.contains("none of its ancestors") && log.contains(&unknown), "{log}");
        Ok(())
    })
    .await?;

    // Told whom it replaces, as the proxy's status has it, it is followed.
    let (epoch, id) = proxy_epoch(&scene.cluster, 0).await?;
    let began = Instant::now();
    restore(&mut scene, &file, &["--replaces", &format!("{id}@{epoch}")]).await?;
    let last = follows(&scene, 2).await?;
    eprintln!(
        "restored with --replaces and followed by the proxy after {:?}",
        began.elapsed()
    );
    let writer = scene.cluster.writer("default", Duration::from_secs(5))?;
    let answer = writer.put(scene.echo.route("again", "")?).await?;
    ensure!(answer.proxies_synced == 1 && answer.epoch.0 == 2, "{answer:?}");

    let (at, strange) = stranger(&mut scene).await?;
    stays("the stranger keeps its own table", LONG, async || {
        let (_, id) = proxy_epoch(&scene.cluster, at).await?;
        ensure!(id == strange, "{id}");
        Ok(())
    })
    .await?;
    let log = scene.cluster.proxies[at].process.log();
    ensure!(log.contains("none of its ancestors") && log.contains(&last), "{log}");
    scene.cluster.proxies.truncate(at);

    for at in [1, 2] {
        if scene.cluster.replicas[at].data_dir.exists() {
            scene.cluster.replicas[at].wipe()?;
        }
    }
    scene.join(&[1, 2]).await?;
    scene.finish().await
}
