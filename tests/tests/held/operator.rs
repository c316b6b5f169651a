//! An operator has the last word, whatever happens to replicas meanwhile.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use holdfast_tests::echo::{DEFAULT_TARGET, Echo};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::http;
use holdfast_tests::prober::{Prober, ProberOptions, Subject};

use crate::{answers, ask, fill, forget, held, listed, name, only, spec};

const USERS: usize = 1_000;

/// Every replica says that so many routes are held.
async fn all_hold(cluster: &Cluster, routes: u64) -> Result<()> {
    until(format!("{routes} routes are held at every replica"), SOON, async || {
        for replica in &cluster.replicas {
            let status = replica.status().await?;
            ensure!(status.held == routes, "{}: {}", status.name, status.held);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn p10_an_empty_hub_deletes_a_thousand_routes_and_no_user_notices() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 2).await?;
    fill(&cluster, &echo, USERS).await?;
    let subjects = (0..USERS).map(|number| Subject {
        path: format!("/user/{}/x", name(number)),
        identity: name(number),
    });
    let mut prober = Prober::new(subjects.collect(), ProberOptions::default());
    for proxy in &cluster.proxies {
        prober.add_proxy(proxy.process.name(), &proxy.address());
    }
    prober.round().await?;

    let answer = forget(&cluster, USERS).await?;
    ensure!(answer.changed && answer.held as usize == USERS, "{answer:?}");
    ensure!(answer.proxies_live == 2 && answer.proxies_synced == 2, "{answer:?}");
    ensure!(
        listed(&cluster).await? == BTreeSet::from(["/".to_owned()]),
        "the hub sees what it asked for"
    );
    let again = forget(&cluster, USERS).await?;
    ensure!(
        !again.changed && again.held == 0 && again.revision == answer.revision,
        "{again:?}"
    );
    ensure!(held(&cluster).await?.len() == USERS, "operators see what is held");
    let status = ask(&cluster, &["status"], 1).await?;
    ensure!(status.contains("1000 routes are held"), "{status}");
    for replica in &cluster.replicas {
        let metrics = http::get(&format!("127.0.0.1:{}", replica.admin_port), "/metrics").await?;
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        ensure!(
            metrics.contains("holdfast_replica_table_held_routes 1000\n"),
            "{metrics}"
        );
    }
    prober.round().await?;

    // Not a leader's death, nor a start of all, nor a disk that is lost makes anybody forget.
    let leader = cluster.leader().await?;
    cluster.replicas[leader].process.kill();
    cluster.replicas[leader].process.start()?;
    cluster.ready().await?;
    all_hold(&cluster, USERS as u64).await?;
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    all_hold(&cluster, USERS as u64).await?;
    let follower = cluster.follower().await?;
    cluster.replicas[follower].process.kill();
    cluster.replicas[follower].wipe()?;
    cluster.replicas[follower].process.start()?;
    cluster.ready().await?;
    all_hold(&cluster, USERS as u64).await?;
    prober.round().await?;
    let seen = prober.take();
    eprintln!("{seen}");
    seen.flawless()?;
    drop(prober);

    // Named, some are listed again; the rest goes.
    let kept = [0, 500, 999];
    let specs: Vec<String> = kept
        .iter()
        .map(|number| Ok(spec(*number)?.to_string()))
        .collect::<Result<_>>()?;
    let reject: Vec<&str> = ["held", "reject"]
        .into_iter()
        .chain(specs.iter().map(String::as_str))
        .collect();
    ensure!(ask(&cluster, &reject, 0).await?.contains("3 routes listed again"));
    let expected: BTreeSet<String> = specs.iter().cloned().chain(["/".to_owned()]).collect();
    ensure!(listed(&cluster).await? == expected);
    ask(&cluster, &["held", "reject", &specs[0]], 1).await?;
    ask(&cluster, &["held", "confirm"], 2).await?;
    ask(&cluster, &["held", "confirm", "--all", &specs[0]], 2).await?;
    ensure!(
        ask(&cluster, &["held", "confirm", "--all"], 0)
            .await?
            .contains("997 routes deleted")
    );
    ensure!(held(&cluster).await?.is_empty());
    ensure!(listed(&cluster).await?.len() == 4);
    cluster.agree().await?;
    for number in [0, 1, 499, 500, 501, 998, 999] {
        let expected = match kept.contains(&number) {
            true => name(number),
            false => DEFAULT_TARGET.to_owned(),
        };
        ensure!(
            answers(&cluster, number).await? == only(200, &expected),
            "user {number}"
        );
    }
    ask(&cluster, &["status"], 0).await?;
    cluster.finish().await
}
