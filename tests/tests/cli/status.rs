use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use serde_json::Value;

use crate::ask;

async fn exits_with(cluster: &Cluster, code: i32) -> Result<()> {
    until(format!("status exits with {code}"), SOON, async || {
        let finished = ask(cluster, &["status", "--timeout", "2s"]).await?;
        ensure!(finished.code == Some(code), "{finished:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn status_exits_with_how_the_cluster_is() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(3, 1).await?;
    exits_with(&cluster, 0).await?;
    let finished = ask(&cluster, &["status", "-o", "json"]).await?;
    let status: Value = serde_json::from_str(&finished.stdout)?;
    for name in ["r0", "r1", "r2", "p0"] {
        ensure!(
            status.to_string().contains(&format!("\"{name}\"")),
            "{name} is missing: {status}"
        );
    }
    let table = ask(&cluster, &["status"]).await?.stdout;
    for part in ["r0", "r1", "r2", "p0", "leader", "follower"] {
        ensure!(table.contains(part), "{part} is missing:\n{table}");
    }

    let follower = cluster.follower().await?;
    cluster.replicas[follower].process.kill();
    exits_with(&cluster, 1).await?;
    let leader = cluster.leader().await?;
    cluster.replicas[leader].process.kill();
    exits_with(&cluster, 2).await?;
    for at in [leader, follower] {
        cluster.replicas[at].process.start()?;
    }
    cluster.ready().await?;
    exits_with(&cluster, 0).await?;
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    exits_with(&cluster, 2).await?;
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    cluster.finish().await
}
