//! A replica or proxy that cannot be what it is told to be does not start, and says why.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_table::Route;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Process, free_port, holdfast, run};

/// A replica that would run alone, unless `more` says otherwise.
fn replica(name: &str, peers: &str, data_dir: &Path, folder: &Path, more: &[String]) -> Result<Process> {
    let address = || format!("127.0.0.1:{}", free_port());
    let mut arguments = vec![
        "replica".to_owned(),
        "--name".into(),
        name.into(),
        "--peers".into(),
        peers.into(),
    ];
    for listener in ["--listen-client", "--listen-peer", "--listen-admin"] {
        if !more.iter().any(|argument| argument == listener) {
            arguments.extend([listener.to_owned(), address()]);
        }
    }
    arguments.extend_from_slice(more);
    Ok(
        Process::new(&format!("bad-{name}-{}", free_port()), holdfast()?, folder)
            .args(arguments)
            .args(["--data-dir".as_ref(), data_dir.as_os_str()]),
    )
}

/// Starts it and expects it to end by itself with these parts in what it says.
async fn does_not_start(mut process: Process, parts: &[&str]) -> Result<()> {
    process.start()?;
    let status = process.ended(SOON).await?;
    let log = process.log();
    ensure!(
        status.code().is_some_and(|code| code == 1 || code == 2),
        "{status}:\n{log}"
    );
    for part in parts {
        ensure!(log.contains(part), "{part:?} is not in:\n{log}");
    }
    Ok(())
}

async fn cluster_with_a_route(replicas: usize) -> Result<Cluster> {
    let cluster = Cluster::start(replicas).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer
        .put(Route::parse("/user/alice/", "http://10.0.0.1:8888", "{}", "")?)
        .await?;
    Ok(cluster)
}

#[tokio::test]
async fn a_directory_locked_by_a_running_replica_is_refused() -> Result<()> {
    let mut cluster = cluster_with_a_route(1).await?;
    let before = cluster.agree().await?;
    let data_dir = cluster.replicas[0].data_dir.clone();
    let peers = format!("r0=127.0.0.1:{}", free_port());
    let second = replica("r0", &peers, &data_dir, cluster.folder(), &[])?;
    does_not_start(second, &["data-dir", &data_dir.display().to_string(), "running"]).await?;
    assert_eq!(cluster.agree().await?, before);
    cluster.finish().await
}

#[tokio::test]
async fn a_directory_of_another_replica_is_refused() -> Result<()> {
    let mut cluster = cluster_with_a_route(1).await?;
    let before = cluster.agree().await?;
    let data_dir = cluster.replicas[0].data_dir.clone();
    cluster.replicas[0].process.terminate(SOON).await?;
    let peers = format!("r9=127.0.0.1:{}", free_port());
    let other = replica("r9", &peers, &data_dir, cluster.folder(), &[])?;
    does_not_start(
        other,
        &["data-dir", &data_dir.display().to_string(), "\"r0\"", "\"r9\""],
    )
    .await?;
    cluster.replicas[0].process.start()?;
    cluster.ready().await?;
    assert_eq!(cluster.agree().await?, before);
    cluster.finish().await
}

#[tokio::test]
async fn p5_a_directory_of_another_cluster_is_refused() -> Result<()> {
    let mut here = cluster_with_a_route(3).await?;
    let mut there = cluster_with_a_route(3).await?;
    let (before_here, before_there) = (here.agree().await?, there.agree().await?);
    let cluster_id = here.replicas[0].status().await?.cluster_id;
    let other_id = there.replicas[0].status().await?.cluster_id;
    ensure!(
        cluster_id != other_id && !cluster_id.is_empty(),
        "{cluster_id:?} {other_id:?}"
    );

    here.replicas[2].process.kill();
    there.replicas[2].process.kill();
    let peers: Vec<_> = here
        .replicas
        .iter()
        .enumerate()
        .map(|(at, replica)| format!("r{at}=127.0.0.1:{}", replica.peer_port))
        .collect();
    let listen = [
        "--listen-peer".to_owned(),
        format!("127.0.0.1:{}", here.replicas[2].peer_port),
    ];
    let data_dir = there.replicas[2].data_dir.clone();
    let stranger = replica("r2", &peers.join(","), &data_dir, here.folder(), &listen)?;
    does_not_start(
        stranger,
        &["data-dir", &data_dir.display().to_string(), &cluster_id, &other_id],
    )
    .await?;

    here.replicas[2].process.start()?;
    there.replicas[2].process.start()?;
    here.ready().await?;
    there.ready().await?;
    assert_eq!(here.agree().await?, before_here);
    assert_eq!(there.agree().await?, before_there);
    here.finish().await?;
    there.finish().await
}

#[tokio::test]
async fn a_port_in_use_is_refused_by_the_name_of_its_flag() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let address = taken.local_addr()?.to_string();
    for flag in ["--listen-client", "--listen-peer", "--listen-admin"] {
        let data_dir = folder.path().join(flag);
        let peers = format!("r0=127.0.0.1:{}", free_port());
        let process = replica(
            "r0",
            &peers,
            &data_dir,
            folder.path(),
            &[flag.to_owned(), address.clone()],
        )?;
        does_not_start(process, &[flag.trim_start_matches('-'), &address]).await?;
    }
    let port = taken.local_addr()?.port().to_string();
    let data_dir = folder.path().join("p0");
    let proxy = |flags: &[&str]| {
        anyhow::Ok(
            Process::new(&format!("p0-{}", free_port()), holdfast()?, folder.path())
                .args([
                    "proxy",
                    "--name",
                    "p0",
                    "--endpoints",
                    "127.0.0.1:9",
                    "--ip",
                    "127.0.0.1",
                    "--data-dir",
                ])
                .args([&data_dir])
                .args(flags),
        )
    };
    let (free, other) = (free_port().to_string(), format!("127.0.0.1:{}", free_port()));
    does_not_start(proxy(&["--port", &port, "--listen-admin", &other])?, &[&address]).await?;
    does_not_start(
        proxy(&["--port", &free, "--listen-admin", &address])?,
        &["admin", &address],
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_proxys_directory_has_one_proxy() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(1, 1).await?;
    let data_dir = cluster.proxies[0].data_dir.clone();
    let second = Process::new("second", holdfast()?, cluster.folder())
        .args([
            "proxy",
            "--name",
            "p1",
            "--endpoints",
            &cluster.endpoints()[0],
            "--ip",
            "127.0.0.1",
        ])
        .args([
            "--port",
            &free_port().to_string(),
            "--listen-admin",
            &format!("127.0.0.1:{}", free_port()),
        ])
        .args(["--data-dir".as_ref(), data_dir.as_os_str()]);
    does_not_start(second, &[&data_dir.display().to_string(), "running"]).await?;
    cluster.agree().await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_list_of_peers_without_the_replica_itself_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let peers = "r1=127.0.0.1:7012,r2=127.0.0.1:7022";
    let arguments = ["replica", "--name", "r0", "--peers", peers, "--data-dir"].map(str::to_owned);
    let finished = run(arguments.into_iter().chain([data_dir.display().to_string()])).await?;
    ensure!(finished.code == Some(2), "{finished:?}");
    for part in ["--peers", "--name", "\"r0\"", "r1"] {
        ensure!(finished.stderr.contains(part), "{part} is not named: {finished:?}");
    }
    ensure!(!data_dir.exists(), "the directory was made");
    Ok(())
}
