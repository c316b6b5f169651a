//! From a survivor's disk, and from a proxy's copy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{run, until};
use holdfast_tests::writes::{WriteLoad, check};

use crate::{Scene, fails, json, proxy_epoch, text};

#[tokio::test]
async fn p3_one_survivor_brings_back_everything_that_was_acknowledged() -> Result<()> {
    let mut scene = Scene::start(1).await?;
    let load = WriteLoad::on(&scene.cluster)?;
    load.goes_on(500).await?;
    let running = scene.cluster.replicas[0].data_dir.clone();
    fails(
        &["recover", "--data-dir", text(&running)],
        &["locked by a running replica", text(&running)],
    )
    .await?;

    // All three at once, in the middle of writing.
    let before = load.fates();
    scene.kill_replicas();
    let later = load.fates();

    // The one that knows most, as an operator finds it: no acknowledged write is beyond its log.
    let mut survivors = Vec::new();
    for (at, replica) in scene.cluster.replicas.iter().enumerate() {
        let facts = json(&["recover", "--data-dir", text(&replica.data_dir)]).await?;
        let last = (facts["last_log"]["term"].as_u64(), facts["last_log"]["index"].as_u64());
        ensure!(
            facts["name"] == format!("r{at}") && facts["damage"].is_null(),
            "{facts}"
        );
        ensure!(
            facts["members"].as_array().is_some_and(|members| members.len() == 3),
            "{facts}"
        );
        survivors.push((last, at, facts));
    }
    let (_, survivor, facts) = survivors
        .into_iter()
        .max_by_key(|(last, ..)| *last)
        .context("three survivors")?;
    let shown = run([
        "recover",
        "--data-dir",
        text(&scene.cluster.replicas[survivor].data_dir),
    ])
    .await?;
    for part in [
        "last log entry",
        "committed",
        "applied",
        "Nothing was changed",
        "--force-new-cluster",
    ] {
        ensure!(shown.stdout.contains(part), "{part}: {shown:?}");
    }
    for at in (0..3).filter(|at| *at != survivor) {
        scene.cluster.replicas[at].wipe()?;
    }

    let data_dir = scene.cluster.replicas[survivor].data_dir.clone();
    let (name, peers) = (format!("r{survivor}"), scene.cluster.peers());
    let recover = [
        "recover",
        "--data-dir",
        text(&data_dir),
        "--force-new-cluster",
        "--name",
        &name,
        "--peers",
        &peers,
    ];
    let recovered = json(&recover).await?;
    ensure!(
        recovered["epoch"] == 1 && recovered["entries_dropped"] == 0,
        "{recovered}"
    );
    ensure!(
        recovered["digest"] == facts["table_whole_log"]["digest"],
        "{recovered} {facts}"
    );
    ensure!(data_dir.join("before-recover-1/db").is_dir());
    eprintln!("{facts}\n{recovered}");

    scene.cluster.replicas[survivor].process.start()?;
    scene.cluster.replicas[survivor].ready().await?;
    // The writers have gone on trying all the time, and go on with the new cluster.
    let found = scene.cluster.routes("default").await?;
    check(&before, &load.fates(), &found)?;
    check(&later, &load.fates(), &found)?;
    let others: Vec<usize> = (0..3).filter(|at| *at != survivor).collect();
    scene.join(&others).await?;
    load.goes_on(100).await?;
    let acknowledged = load.stop().await;
    check(&acknowledged, &acknowledged, &scene.cluster.routes("default").await?)?;
    // It tries one replica after the other, with growing waits.
    let cluster = &scene.cluster;
    until("the proxy follows the new cluster", SOON, async || {
        let (epoch, cluster_id) = proxy_epoch(cluster, 0).await?;
        ensure!(
            epoch == 1 && recovered["cluster_id"] == cluster_id,
            "{epoch} {cluster_id}"
        );
        Ok(())
    })
    .await?;
    scene.finish().await
}

#[tokio::test]
async fn p1_a_cluster_is_rebuilt_from_a_proxys_copy() -> Result<()> {
    let mut scene = Scene::start(2).await?;
    let (revision, digest) = scene.cluster.agree().await?;
    for proxy in &scene.cluster.proxies {
        proxy.cached(revision).await?;
    }
    scene.kill_replicas();
    for replica in &mut scene.cluster.replicas {
        replica.wipe()?;
    }
    // Of a running proxy.
    let cache = scene.cluster.proxies[0].data_dir.join("table.cache");
    let (data_dir, peers) = (scene.cluster.replicas[1].data_dir.clone(), scene.cluster.peers());
    let target = ["--data-dir", text(&data_dir), "--name", "r1", "--peers", &peers];
    let restored = json(&[&["restore", "--from-proxy-cache", text(&cache)], &target[..]].concat()).await?;
    ensure!(restored["digest"] == digest && restored["epoch"] == 1, "{restored}");
    ensure!(restored["revision"] == revision + 1_000_000_000, "{restored}");

    scene.cluster.replicas[1].process.start()?;
    scene.cluster.replicas[1].ready().await?;
    ensure!(scene.cluster.routes("default").await?.len() == crate::USERS + 1);
    scene.join(&[0, 2]).await?;
    scene.cluster.agree().await?;
    let writer = scene.cluster.writer("default", Duration::from_secs(5))?;
    let answer = writer.put(scene.echo.route("after", "")?).await?;
    ensure!(answer.proxies_synced == 2 && answer.proxies_live == 2, "{answer:?}");

    // The proxies' copies are of the new cluster now: they start from them while nobody is there.
    let (revision, _) = scene.cluster.agree().await?;
    for proxy in &scene.cluster.proxies {
        proxy.cached(revision).await?;
    }
    scene.kill_replicas();
    scene.prober.expect_down(0);
    scene.cluster.proxies[0].process.kill();
    scene.cluster.proxies[0].process.start()?;
    scene.prober.expect_up(0);
    scene.cluster.proxies[0].ready().await?;
    let (epoch, cluster_id) = proxy_epoch(&scene.cluster, 0).await?;
    ensure!(
        epoch == 1 && restored["cluster_id"] == cluster_id,
        "{epoch} {cluster_id}"
    );
    for replica in &mut scene.cluster.replicas {
        replica.process.start()?;
    }
    scene.cluster.ready().await?;
    scene.finish().await
}
