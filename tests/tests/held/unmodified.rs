//! An unmodified hub deletes one route after the other, and cannot say why.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::{Cluster, free_port};
use holdfast_tests::http::{get, request, send};
use hyper::Method;
use serde_json::Value;

use crate::{answers, fill, held, name, only};

const USERS: usize = 40;
/// Neither more than ten nor more than a quarter of the users' and the hub's own.
const GO: usize = 10;

#[tokio::test]
async fn p10_beyond_a_quarter_nothing_that_an_unmodified_hub_deletes_is_lost() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::prepare(1)?;
    let api = format!("127.0.0.1:{}", free_port());
    cluster.replicas[0].process.set_flag("--listen-chp-api", &api);
    cluster.replicas[0].process.start()?;
    cluster.ready().await?;
    let at = cluster.add_proxy()?;
    cluster.proxies[at].process.start()?;
    cluster.proxies[at].ready().await?;
    fill(&cluster, &echo, USERS).await?;

    let delete = async |number: usize| {
        let path = format!("/api/routes/user/{}/", name(number));
        let answer = send(&api, request(Method::DELETE, &api, &path), Bytes::new()).await?;
        anyhow::Ok(answer.status)
    };
    for number in 0..USERS {
        ensure!(delete(number).await? == 204, "{number}");
    }
    let shown: Value = get(&api, "/api/routes").await?.json()?;
    let shown = shown.as_object().context("no object")?;
    ensure!(shown.len() == 1 && shown.contains_key("/"), "{shown:?}");
    let one = get(&api, &format!("/api/routes/user/{}", name(USERS - 1))).await?;
    ensure!(
        one.status == 404 && delete(USERS - 1).await? == 404,
        "what is held is not there"
    );
    ensure!(held(&cluster).await?.len() == USERS - GO);
    for number in GO..USERS {
        ensure!(answers(&cluster, number).await? == only(200, &name(number)), "{number}");
    }
    cluster.finish().await
}
