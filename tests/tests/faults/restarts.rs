//! What was acknowledged is there after any number of crashes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, seed, until};
use holdfast_tests::writes::{WriteLoad, WriteLoadOptions, check};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const KILLS: usize = 30;
const WRITES_BETWEEN_KILLS: u64 = 20;

#[tokio::test]
async fn p3_every_acknowledged_route_survives_30_kills_of_random_replicas() -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed());
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    for _ in 0..KILLS {
        load.goes_on(WRITES_BETWEEN_KILLS).await?;
        let victim = random.random_range(0..cluster.replicas.len());
        let before = load.fates();
        cluster.replicas[victim].process.kill();
        // Half of the time the other two have to go on alone for a while.
        let is_missed: bool = random.random();
        if !is_missed {
            cluster.replicas[victim].process.start()?;
        }
        let found = cluster.routes("default").await?;
        check(&before, &load.fates(), &found)?;
        if is_missed {
            cluster.replicas[victim].process.start()?;
        }
    }
    cluster.ready().await?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

#[tokio::test]
async fn p3_every_route_is_there_after_all_replicas_were_killed_at_once() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = Arc::new(cluster.writer("default", Duration::ZERO)?);
    let options = WriteLoadOptions {
        writers: 4,
        pause: Duration::ZERO,
        routes_each: 1000,
    };
    for _ in 0..3 {
        let load = WriteLoad::start(&writer, "default", options);
        load.goes_on(200).await?;
        let before = load.fates();
        for replica in &mut cluster.replicas {
            replica.process.kill();
        }
        for replica in &mut cluster.replicas {
            replica.process.start()?;
        }
        cluster.ready().await?;
        let found = cluster.routes("default").await?;
        check(&before, &load.fates(), &found)?;
        load.stop().await;
    }
    cluster.finish().await
}

#[tokio::test]
async fn p3_a_cluster_that_was_stopped_in_order_comes_back_with_its_table() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    for number in 0..50 {
        let spec = format!("/user/u{number}/");
        let data = format!(r#"{{"user":"u{number}","n":1.50}}"#);
        writer
            .put(holdfast_table::Route::parse(&spec, "http://10.0.0.1:8888", &data, "")?)
            .await?;
    }
    let before = cluster.agree().await?;
    let routes = cluster.routes("default").await?;
    for replica in &mut cluster.replicas {
        let status = replica.process.terminate(SOON).await?;
        ensure!(status.success(), "{}: {status}", replica.process.name());
    }
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    assert_eq!(cluster.agree().await?, before);
    assert_eq!(cluster.routes("default").await?, routes);
    cluster.finish().await
}

#[tokio::test]
async fn a_replica_that_stops_ends_the_calls_that_wait_for_a_leader() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let survivor = cluster.leader().await?;
    for (number, replica) in cluster.replicas.iter_mut().enumerate() {
        if number != survivor {
            replica.process.kill();
        }
    }
    let writer = cluster.writer("default", Duration::ZERO)?;
    let route = holdfast_table::Route::parse("/user/late/", "http://10.0.0.1:8888", "{}", "")?;
    let mut write = tokio::task::JoinSet::new();
    write.spawn(async move { writer.put(route).await });
    let survivor = &mut cluster.replicas[survivor];
    until("it has given up leading", SOON, async || {
        let role = survivor.status().await.map(|status| status.leader_contact_age_ms);
        if role.as_ref().is_ok_and(|age| *age > 500) {
            Ok(())
        } else {
            Err(format!("{role:?}"))
        }
    })
    .await?;
    let began = std::time::Instant::now();
    let stopped = survivor.process.terminate(SOON).await?;
    ensure!(stopped.success(), "{stopped}");
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(3), "it took {took:?} to stop");
    let decided = write.try_join_next();
    ensure!(decided.is_none(), "nobody could decide that write: {decided:?}");
    write.shutdown().await;
    cluster.keep_quiet();
    Ok(())
}
