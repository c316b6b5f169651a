//! Files and directories that must not be used, through the commands. Every bit and every boundary is tried beside the
//! code, in the replica crate.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::{Cluster, run};

use crate::{fails, json, text};

const FOUNDER: [&str; 4] = ["--name", "r0", "--peers", "r0=127.0.0.1:7012"];

/// A backup of a cluster of one with a few routes, and the folder that it is in.
async fn backup() -> Result<(Cluster, Vec<u8>)> {
    let cluster = Cluster::start(1).await?;
    let endpoints = cluster.endpoints().join(",");
    for user in ["alice", "bob"] {
        let spec = format!("/user/{user}/");
        let put = [
            "routes",
            "put",
            &spec,
            "http://10.0.0.1:8888",
            "--endpoints",
            &endpoints,
        ];
        ensure!(run(put).await?.code == Some(0));
    }
    let file = cluster.folder().join("good.backup");
    json(&["backup", text(&file), "--endpoints", &endpoints]).await?;
    let bytes = fs::read(file)?;
    Ok((cluster, bytes))
}

/// Neither verified nor restored, and nothing is left of the attempt.
async fn is_refused(folder: &Path, bytes: &[u8], parts: &[&str]) -> Result<()> {
    let (file, data_dir) = (folder.join("bad.backup"), folder.join("made/by/restore"));
    fs::write(&file, bytes)?;
    let parts = [parts, &[text(&file)]].concat();
    fails(&["backup", "verify", text(&file)], &parts).await?;
    let restore = [&["restore", text(&file), "--data-dir", text(&data_dir)], &FOUNDER[..]].concat();
    fails(&restore, &parts).await?;
    ensure!(!folder.join("made").exists(), "something is left behind");
    Ok(())
}

#[tokio::test]
async fn a_damaged_truncated_foreign_or_newer_backup_is_refused_by_name() -> Result<()> {
    let (cluster, good) = backup().await?;
    let folder = cluster.folder();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        bytes
    };
    is_refused(folder, &flipped(30), &["is damaged", "header at byte 12"]).await?;
    is_refused(folder, &flipped(good.len() / 2), &["is damaged", "checksum"]).await?;
    is_refused(folder, &flipped(good.len() - 1), &["is damaged"]).await?;
    is_refused(folder, &flipped(8), &["format 5", "format 1"]).await?;
    is_refused(folder, &flipped(2), &["is no backup of Holdfast", "HFFACKUP"]).await?;
    is_refused(folder, &good[..good.len() - 20], &["is cut off", "ends at byte"]).await?;
    is_refused(folder, b"", &["is cut off"]).await?;
    is_refused(folder, &[&good[..], b"more"].concat(), &["something follows"]).await?;
    let missing = folder.join("missing.backup");
    fails(
        &["backup", "verify", text(&missing)],
        &["cannot be opened", text(&missing)],
    )
    .await?;

    // A proxy's copy is another kind of file, and the other way round.
    let backup = folder.join("good.backup");
    let data_dir = folder.join("made");
    let restore = [
        "restore",
        "--from-proxy-cache",
        text(&backup),
        "--data-dir",
        text(&data_dir),
    ];
    fails(
        &[&restore[..], &FOUNDER].concat(),
        &["no copy of a table", text(&backup)],
    )
    .await?;
    ensure!(!data_dir.exists());
    cluster.finish().await
}

#[tokio::test]
async fn a_directory_in_use_or_not_empty_is_never_restored_onto() -> Result<()> {
    let (mut cluster, _) = backup().await?;
    let file = cluster.folder().join("good.backup");
    let running = cluster.replicas[0].data_dir.clone();
    let restore = |dir: &Path| {
        let arguments = ["restore", text(&file), "--data-dir", text(dir)];
        let arguments = [&arguments[..], &FOUNDER].concat();
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let onto = async |dir: &Path, parts: &[&str]| {
        let arguments = restore(dir);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        fails(&arguments, &[parts, &[text(dir)]].concat()).await
    };
    onto(&running, &["locked by a running replica"]).await?;
    cluster.replicas[0].process.kill();
    onto(&running, &["not empty", "\"db\""]).await?;
    let own = cluster.folder().join("own");
    fs::create_dir(&own)?;
    fs::write(own.join("thesis.txt"), "all of it")?;
    onto(&own, &["not empty", "thesis.txt"]).await?;
    ensure!(fs::read_dir(&own)?.count() == 1 && fs::read(own.join("thesis.txt"))? == b"all of it");

    // The replica has not noticed any of it.
    cluster.replicas[0].process.start()?;
    cluster.ready().await?;
    ensure!(cluster.routes("default").await?.len() == 2);
    cluster.finish().await
}

#[tokio::test]
async fn mistakes_in_the_settings_are_told_all_at_once() -> Result<()> {
    for (arguments, parts) in [
        (vec!["restore"], vec!["FILE", "--data-dir", "--name", "--peers"]),
        (
            vec![
                "restore",
                "a",
                "--from-proxy-cache",
                "b",
                "--replaces",
                "x",
                "--name",
                "r1",
                "--peers",
                "r0=h:1",
            ],
            vec!["choose one", "--replaces \"x\"", "spell both alike", "--data-dir"],
        ),
        (vec!["recover", "--wal", "maybe"], vec!["--data-dir", "--wal \"maybe\""]),
        (
            vec!["recover", "--data-dir", "/nowhere", "--discard-uncommitted"],
            vec!["--force-new-cluster"],
        ),
        (
            vec!["recover", "--data-dir", "/nowhere", "--force-new-cluster"],
            vec!["--name", "--peers"],
        ),
        (vec!["backup", "verify", "x", "-o", "yaml"], vec!["--output \"yaml\""]),
    ] {
        let finished = run(&arguments).await?;
        ensure!(finished.code == Some(2), "{arguments:?}: {finished:?}");
        for part in parts {
            ensure!(
                finished.stderr.contains(part),
                "{arguments:?}: {part} is not named: {finished:?}"
            );
        }
    }
    fails(
        &["recover", "--data-dir", "/nowhere/at/all"],
        &["no replica's data", "/nowhere/at/all"],
    )
    .await?;
    Ok(())
}
