//! A cut cuts what it says, and the cluster lives with the ones that leave it a quorum.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_client::{Endpoints, RouteReader, RouteWriter, WriterOptions};
use holdfast_table::{Route, RouteSpec};
use holdfast_tests::apart::apart;
use holdfast_tests::apart::network::{Cut, End};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, stays, until};
use holdfast_tests::http;
use holdfast_wire::proto;
use holdfast_wire::proto::Role;
use holdfast_wire::proto::routes_client::RoutesClient;
use tokio::time::timeout;
use tonic::Request;

async fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::prepare_apart(3)?;
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    Ok(cluster)
}

fn route(target: u32) -> Result<Route> {
    let target = format!("http://10.0.0.1:{target}");
    Ok(Route::parse("/user/alice/", &target, "{}", "")?)
}

/// Asks a replica that is alone, with more time than anybody should have to spend there.
async fn ask_patiently(endpoint: &str) -> Result<()> {
    let mut client = RoutesClient::connect(format!("http://{endpoint}")).await?;
    const LONG: Duration = Duration::from_secs(60);
    let mut read = Request::new(proto::GetRequest {
        routespec: "/user/alice/".into(),
    });
    read.set_timeout(LONG);
    let read = client.get(read).await;
    ensure!(read.is_err(), "{read:?}");
    let put = proto::Route {
        routespec: "/user/alice/".into(),
        target: "http://10.0.0.1:4000".into(),
        ..Default::default()
    };
    let mut write = Request::new(proto::WriteRequest {
        changes: vec![proto::Change {
            change: Some(proto::change::Change::Put(put)),
        }],
        ..Default::default()
    });
    write.set_timeout(LONG);
    let written = client.write(write).await;
    ensure!(written.is_err(), "{written:?}");
    Ok(())
}

/// All ways between one replica and the two others.
fn alone(at: usize) -> Vec<Cut> {
    let others = (0..3).filter(|other| *other != at);
    others
        .flat_map(|other| Cut::between(End::Replica(at), End::Replica(other)))
        .collect()
}

#[test]
fn a_leader_cut_off_from_the_others_acknowledges_nothing_and_reads_nothing() -> Result<()> {
    apart(async || {
        let mut cluster = cluster().await?;
        let writer = cluster.writer("default", Duration::ZERO)?;
        writer.put(route(1000)?).await?;
        let old = cluster.leader().await?;
        cluster.network()?.cut(&alone(old))?;
        let others: Vec<_> = (0..3)
            .filter(|at| *at != old)
            .map(|at| cluster.replicas[at].endpoint())
            .collect();
        let others = Endpoints::parse(&others)?;
        let patience = WriterOptions {
            timeout: SOON,
            ..WriterOptions::default()
        };
        RouteWriter::new(others, patience).put(route(2000)?).await?;

        // Whoever can reach the old leader alone is told nothing rather than something old.
        let old_one = Endpoints::parse(&[cluster.replicas[old].endpoint()])?;
        let reader = RouteReader::new(old_one.clone(), Duration::from_secs(2));
        let read = reader.get(&RouteSpec::parse("/user/alice/")?).await;
        ensure!(read.is_err(), "read from a replica that is alone: {read:?}");
        let impatience = WriterOptions {
            timeout: Duration::from_secs(2),
            ..WriterOptions::default()
        };
        let written = RouteWriter::new(old_one, impatience).put(route(3000)?).await;
        ensure!(written.is_err(), "acknowledged by a replica that is alone: {written:?}");
        let kept_waiting = "kept waiting, while another replica would have answered";
        let endpoint = cluster.replicas[old].endpoint();
        timeout(SOON, ask_patiently(&endpoint)).await.context(kept_waiting)??;

        cluster.network()?.heal()?;
        cluster.agree().await?;
        let routes = cluster.routes("default").await?;
        let target = routes.first().context("the route is gone")?.target.as_str();
        // What was not acknowledged may have happened, late.
        ensure!(!target.ends_with("1000"), "{target}");
        cluster.finish().await
    })
}

#[test]
fn a_replica_that_hears_nobody_comes_back_without_an_election() -> Result<()> {
    apart(async || {
        let mut cluster = cluster().await?;
        let writer = cluster.writer("default", Duration::ZERO)?;
        let leader = cluster.leader().await?;
        let deaf = (leader + 1) % 3;
        let term = cluster.replicas[leader].status().await?.term;
        // It still speaks, and is asked for its vote by nobody.
        let cuts: Vec<_> = (0..3)
            .filter(|at| *at != deaf)
            .map(|at| Cut::one_way(End::Replica(at), End::Replica(deaf)))
            .collect();
        cluster.network()?.cut(&cuts)?;
        for target in 1000..1100 {
            writer.put(route(target)?).await?;
        }
        let replica = &cluster.replicas[deaf];
        until("it notices", SOON, async || {
            let status = replica.status().await?;
            ensure!(status.leader_contact_age_ms > 1000, "{status:?}");
            Ok(())
        })
        .await?;
        cluster.network()?.heal()?;
        cluster.agree().await?;
        let status = cluster.replicas[leader].status().await?;
        ensure!(
            status.role() == Role::Leader && status.term == term,
            "an election for nothing: {status:?} instead of term {term}"
        );
        cluster.finish().await
    })
}

/// How often the proxy has begun to follow a replica.
fn streams(cluster: &Cluster) -> usize {
    let log = cluster.proxies[0].process.log();
    log.matches("following from ").count()
}

#[test]
fn a_proxy_leaves_a_replica_that_is_alone_and_stays_with_one_when_all_are() -> Result<()> {
    /// 3 s until the replica has been without a leader for too long, 2 s in which its subscribers leave it one by one, and
    /// the time from bookmark to bookmark.
    const LEFT_WITHIN: Duration = Duration::from_secs(10);
    const ALONE: Duration = Duration::from_secs(25);
    apart(async || {
        let mut cluster = cluster().await?;
        let echo = Echo::start().await?;
        let at = cluster.add_proxy()?;
        cluster.proxies[at].process.start()?;
        cluster.proxies[at].ready().await?;
        let writer = cluster.writer("default", Duration::ZERO)?;
        writer.put(echo.route("alice", "")?).await?;
        cluster.agree().await?;

        // The proxy still reaches it, as all others.
        let status = cluster.proxies[0].status().await?;
        let followed = status["replica"].as_str().context("it follows nobody")?.to_owned();
        let mut replicas = cluster.replicas.iter();
        let isolated = replicas.position(|replica| replica.process.name() == followed);
        let isolated = isolated.with_context(|| followed.clone())?;
        cluster.network()?.cut(&alone(isolated))?;
        let others: Vec<_> = (0..3)
            .filter(|at| *at != isolated)
            .map(|at| cluster.replicas[at].endpoint())
            .collect();
        let patience = WriterOptions {
            timeout: SOON,
            ..WriterOptions::default()
        };
        let majority = RouteWriter::new(Endpoints::parse(&others)?, patience);
        let revision = majority.put(echo.route("bob", "")?).await?.revision.0;
        until("the proxy has what the majority has", LEFT_WITHIN, async || {
            let status = cluster.proxies[0].status().await?;
            ensure!(status["revision"].as_u64() >= Some(revision), "{status}");
            Ok(())
        })
        .await?;
        let address = cluster.proxies[0].address();
        let bob = http::get(&address, "/user/bob/x").await?;
        ensure!(bob.status == 200, "{}", bob.status);

        // Nobody has a quorum.
        let before = streams(&cluster);
        let cuts: Vec<_> = (0..3).flat_map(alone).collect();
        cluster.network()?.cut(&cuts)?;
        stays("users are served", ALONE, async || {
            for user in ["alice", "bob"] {
                let answer = http::get(&address, &format!("/user/{user}/x")).await?;
                ensure!(answer.status == 200, "{user}: {}", answer.status);
            }
            Ok(())
        })
        .await?;
        // At most three looks around in that time, of two replicas each.
        let looked = streams(&cluster) - before;
        ensure!((1..=6).contains(&looked), "{looked} streams within {ALONE:?}");

        cluster.network()?.heal()?;
        majority.put(echo.route("carol", "")?).await?;
        cluster.finish().await
    })
}

#[test]
fn two_replicas_that_see_only_the_third_do_not_take_the_lead_from_each_other() -> Result<()> {
    apart(async || {
        let mut cluster = cluster().await?;
        let writer = cluster.writer("default", Duration::ZERO)?;
        let before = cluster.leader().await?;
        let middle = (before + 2) % 3;
        let term = cluster.replicas[middle].status().await?.term;
        // The leader is one of the two that do not see each other.
        let cuts = Cut::between(End::Replica(before), End::Replica((before + 1) % 3));
        cluster.network()?.cut(&cuts)?;
        writer.put(route(1000)?).await?;
        let replica = &cluster.replicas[middle];
        stays("at most one election", Duration::from_secs(3), async || {
            let status = replica.status().await?;
            ensure!(status.term <= term + 1, "{status:?}");
            Ok(())
        })
        .await?;
        for target in 2000..2100 {
            writer.put(route(target)?).await?;
        }
        cluster.network()?.heal()?;
        cluster.finish().await
    })
}
