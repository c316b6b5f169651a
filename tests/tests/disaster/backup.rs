//! From a backup, taken while writes went on.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{run, until};
use holdfast_tests::writes::{WriteLoad, check};

use crate::{Scene, fails, json, proxy_epoch, text};

#[tokio::test]
async fn p1_a_cluster_restored_from_a_backup_is_followed_and_nobody_notices() -> Result<()> {
    let mut scene = Scene::start(2).await?;
    let load = WriteLoad::on(&scene.cluster)?;
    load.goes_on(300).await?;

    // Everything that was acknowledged before the backup was asked for is in it.
    let endpoints = scene.cluster.endpoints().join(",");
    let file = scene.cluster.folder().join("nightly.backup");
    let before = load.fates();
    let taken = json(&["backup", text(&file), "--endpoints", &endpoints]).await?;
    let later = load.fates();
    ensure!(taken["linearizable"] == true && taken["epoch"] == 0, "{taken}");
    let verified = json(&["backup", "verify", text(&file)]).await?;
    for field in ["revision", "digest", "routes", "cluster_id", "bytes", "sessions"] {
        ensure!(verified[field] == taken[field], "{field}: {verified} {taken}");
    }
    let only_file = [file.file_name().unwrap_or_default().to_owned()];
    let left: Vec<_> = std::fs::read_dir(scene.cluster.folder())?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().contains("backup"))
        .collect();
    ensure!(left == only_file, "{left:?}");

    // Everything is lost but that file and what the proxies have.
    load.stop().await;
    scene.kill_replicas();
    for replica in &mut scene.cluster.replicas {
        replica.wipe()?;
    }
    let first = &scene.cluster.replicas[0];
    let (data_dir, peers) = (first.data_dir.clone(), scene.cluster.peers());
    let restore = [
        "restore",
        text(&file),
        "--data-dir",
        text(&data_dir),
        "--name",
        "r0",
        "--peers",
        &peers,
    ];
    let restored = json(&restore).await?;
    ensure!(
        restored["epoch"] == 1 && restored["digest"] == taken["digest"],
        "{restored}"
    );
    ensure!(restored["lineage"][0] == taken["cluster_id"], "{restored}");
    let ahead = taken["revision"].as_u64().unwrap_or_default() + 1_000_000_000;
    ensure!(restored["revision"] == ahead, "{restored}");

    // One replica is a cluster.
    scene.cluster.replicas[0].process.start()?;
    scene.cluster.replicas[0].ready().await?;
    check(&before, &later, &scene.cluster.routes("default").await?)?;
    let new = restored["cluster_id"].as_str().unwrap_or_default().to_owned();
    for at in 0..2 {
        let cluster = &scene.cluster;
        until("the proxy follows the new cluster", SOON, async || {
            let found = proxy_epoch(cluster, at).await?;
            ensure!(found == (1, new.clone()), "{found:?}");
            Ok(())
        })
        .await?;
    }
    let writer = scene.cluster.writer("default", Duration::from_secs(5))?;
    let answer = writer.put(scene.echo.route("after", "")?).await?;
    ensure!(answer.revision.0 == ahead + 1 && answer.epoch.0 == 1, "{answer:?}");
    ensure!(answer.proxies_live == 2 && answer.proxies_synced == 2, "{answer:?}");
    // The address that the restored directory had to guess is right by now.
    let status = scene.cluster.replicas[0].status().await?;
    let own = scene.cluster.replicas[0].endpoint();
    ensure!(status.members.len() == 1 && status.lineage.len() == 1, "{status:?}");
    let cluster = &scene.cluster;
    until("the members know where clients reach it", SOON, async || {
        let status = cluster.replicas[0].status().await?;
        ensure!(status.members[0].client_address == own, "{:?}", status.members);
        Ok(())
    })
    .await?;

    // And three are a better one: the others come with empty disks.
    scene.join(&[1, 2]).await?;
    scene.cluster.agree().await?;
    scene.cluster.replicas[0].process.kill();
    writer.put(scene.echo.route("without-the-first", "")?).await?;
    scene.cluster.replicas[0].process.start()?;
    scene.cluster.ready().await?;
    // The lineage is everybody's.
    for replica in &scene.cluster.replicas {
        let status = replica.status().await?;
        ensure!(status.lineage.len() == 1 && status.cluster_id == new, "{status:?}");
    }
    // A backup of the new one is a backup of that one.
    let again = scene.cluster.folder().join("again.backup");
    let taken = json(&["backup", text(&again), "--endpoints", &endpoints]).await?;
    ensure!(
        taken["epoch"] == 1 && taken["lineage"][0] != taken["cluster_id"],
        "{taken}"
    );
    scene.finish().await
}

#[tokio::test]
async fn a_backup_overwrites_nothing_and_goes_to_standard_output_too() -> Result<()> {
    let scene = Scene::start(0).await?;
    let endpoints = scene.cluster.endpoints().join(",");
    let file = scene.cluster.folder().join("kept.backup");
    std::fs::write(&file, "mine")?;
    let finished = run(["backup", text(&file), "--endpoints", &endpoints]).await?;
    ensure!(
        finished.code == Some(2) && finished.stderr.contains("--force"),
        "{finished:?}"
    );
    ensure!(std::fs::read(&file)? == b"mine");
    json(&["backup", text(&file), "--force", "--endpoints", &endpoints]).await?;
    json(&["backup", "verify", text(&file)]).await?;

    // Bytes on standard output, everything else on standard error.
    let streamed = scene.cluster.folder().join("streamed.backup");
    let finished = tokio::process::Command::new(holdfast_tests::fixture::holdfast()?)
        .args(["backup", "-", "-o", "json", "--endpoints", &endpoints])
        .output()
        .await?;
    ensure!(finished.status.success(), "{:?}", finished.status);
    std::fs::write(&streamed, &finished.stdout)?;
    let said: serde_json::Value = serde_json::from_slice(&finished.stderr)?;
    let verified = json(&["backup", "verify", text(&streamed)]).await?;
    ensure!(verified["digest"] == said["digest"], "{said} {verified}");

    let finished = run(["backup", "--endpoints", &endpoints]).await?;
    ensure!(
        finished.code == Some(2) && finished.stderr.contains("FILE"),
        "{finished:?}"
    );
    scene.cluster.finish().await
}

#[tokio::test]
async fn without_a_quorum_a_backup_must_be_asked_for_and_says_so() -> Result<()> {
    let mut scene = Scene::start(0).await?;
    let leader = scene.cluster.leader().await?;
    let survivor = (leader + 1) % 3;
    for at in (0..3).filter(|at| *at != survivor) {
        scene.cluster.replicas[at].process.kill();
    }
    let endpoint = scene.cluster.replicas[survivor].endpoint();
    let file = scene.cluster.folder().join("stale.backup");
    let backup = ["backup", text(&file), "--endpoints", &endpoint, "--timeout", "3s"];
    fails(&backup, &["no leader", "--stale-ok", &endpoint]).await?;
    ensure!(!file.exists());
    let taken = json(&[&backup[..], &["--stale-ok"]].concat()).await?;
    ensure!(
        taken["linearizable"] == false && taken["leader_contact_age_ms"].is_u64(),
        "{taken}"
    );
    ensure!(taken["routes"] == crate::USERS + 1, "{taken}");
    let shown = run(["backup", "verify", text(&file)]).await?;
    ensure!(
        shown.code == Some(0) && shown.stdout.contains("NOT confirmed"),
        "{shown:?}"
    );
    scene.cluster.keep_quiet();
    Ok(())
}
