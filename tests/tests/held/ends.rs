//! A hold ends without an operator: in time, and where it would do harm or nobody good.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use holdfast_table::{Change, Route};
use holdfast_tests::echo::{DEFAULT_TARGET, Echo};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, free_port, until};
use holdfast_tests::http;

use crate::{answers, ask, fill, forget, held, listed, name, only, spec, write};

const USERS: usize = 20;

#[tokio::test]
async fn p10_a_held_route_goes_when_nobody_listens_or_another_user_gets_its_server() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 2).await?;
    fill(&cluster, &echo, USERS).await?;
    let dead = Route::parse(
        &spec(0)?.to_string(),
        &format!("http://127.0.0.1:{}", free_port()),
        "{}",
        "",
    )?;
    write(&cluster, vec![Change::Put(dead)]).await?;
    ensure!(forget(&cluster, USERS).await?.held as usize == USERS);

    // P4: the address of user-1's server is another user's now.
    let taken = Route::parse("/user/somebody/", &echo.target(&name(1)), "{}", "")?;
    write(&cluster, vec![Change::Put(taken)]).await?;
    ensure!(!held(&cluster).await?.contains(&spec(1)?.to_string()));
    ensure!(answers(&cluster, 1).await? == only(200, DEFAULT_TARGET));
    // And user-2 has a new server.
    let new = Route::parse(&spec(2)?.to_string(), &echo.target("new"), "{}", "")?;
    write(&cluster, vec![Change::Put(new)]).await?;
    ensure!(answers(&cluster, 2).await? == only(200, "new"));
    ensure!(held(&cluster).await?.len() == USERS - 2);

    // The first request finds the dead one, and after it the hub takes the user in.
    let first = http::get(&cluster.proxies[0].address(), &format!("/user/{}/x", name(0))).await?;
    ensure!(first.status == 503, "{}", first.status);
    until("user-0's route is gone", SOON, async || {
        ensure!(answers(&cluster, 0).await? == only(200, DEFAULT_TARGET));
        Ok(())
    })
    .await?;
    ensure!(held(&cluster).await?.len() == USERS - 3);
    ensure!(answers(&cluster, 3).await? == only(200, &name(3)));
    cluster.agree().await?;
    cluster.finish().await
}

#[tokio::test]
async fn p10_a_hold_ends_by_itself_and_can_be_switched_off() -> Result<()> {
    let echo = Echo::start().await?;
    for hold_for in ["3s", "0s"] {
        let mut cluster = Cluster::prepare(3)?;
        for replica in &mut cluster.replicas {
            replica.process.set_flag("--hold-deletes-for", hold_for);
            replica.process.start()?;
        }
        cluster.ready().await?;
        let at = cluster.add_proxy()?;
        cluster.proxies[at].process.start()?;
        cluster.proxies[at].ready().await?;
        fill(&cluster, &echo, USERS).await?;
        let answer = forget(&cluster, USERS).await?;
        let expected = if hold_for == "0s" { 0 } else { USERS };
        ensure!(answer.held as usize == expected, "{hold_for}: {answer:?}");
        until("every route is gone", SOON, async || {
            ensure!(held(&cluster).await?.is_empty());
            for number in 0..USERS {
                ensure!(
                    answers(&cluster, number).await? == only(200, DEFAULT_TARGET),
                    "{number}"
                );
            }
            Ok(())
        })
        .await?;
        ensure!(listed(&cluster).await? == BTreeSet::from(["/".to_owned()]));
        ask(&cluster, &["status"], 0).await?;
        cluster.finish().await?;
    }
    Ok(())
}
