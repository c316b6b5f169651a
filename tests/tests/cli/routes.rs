use anyhow::{Result, ensure};
use holdfast_tests::fixture::Cluster;
use serde_json::{Value, json};

use crate::ask;

#[tokio::test]
async fn a_route_is_put_read_listed_and_deleted() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let data = r#"{"user":"alice","n":1.50,"nested":{"a":[true,null]}}"#;
    let put = [
        "routes",
        "put",
        "/user/alice/",
        "http://10.0.0.1:8888",
        "--data",
        data,
        "-o",
        "json",
    ];
    let finished = ask(&cluster, &put).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    let answer: Value = serde_json::from_str(&finished.stdout)?;
    ensure!(answer["changed"] == true && answer["revision"] == 1, "{answer}");
    let again: Value = serde_json::from_str(&ask(&cluster, &put).await?.stdout)?;
    ensure!(again["changed"] == false && again["revision"] == 1, "{again}");

    let finished = ask(&cluster, &["routes", "get", "/user/alice/", "-o", "json"]).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    let alice = json!({
        "routespec": "/user/alice/",
        "target": "http://10.0.0.1:8888",
        "data": serde_json::from_str::<Value>(data)?,
        "namespace": "default",
        "mod_revision": 1,
    });
    assert_eq!(serde_json::from_str::<Value>(&finished.stdout)?, alice);
    ensure!(
        finished.stdout.contains("1.50"),
        "data is not kept as it was written: {}",
        finished.stdout
    );

    let other = ["routes", "put", "/hub2/", "http://10.0.0.9:80", "--namespace", "other"];
    ensure!(ask(&cluster, &other).await?.code == Some(0));
    for (arguments, specs) in [
        (vec![], vec!["/user/alice/"]),
        (vec!["--namespace", "other"], vec!["/hub2/"]),
        (vec!["--namespace", "*"], vec!["/hub2/", "/user/alice/"]),
        (vec!["--prefix", "/nobody/"], vec![]),
        (vec!["--prefix", "/user/a"], vec!["/user/alice/"]),
    ] {
        let command = [vec!["routes", "list", "-o", "json"], arguments].concat();
        let finished = ask(&cluster, &command).await?;
        let listing: Value = serde_json::from_str(&finished.stdout)?;
        let found: Vec<_> = listing["routes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|r| &r["routespec"])
            .collect();
        ensure!(finished.code == Some(0) && found == specs, "{command:?}: {found:?}");
        ensure!(listing["revision"] == 2 && listing["epoch"].is_u64(), "{listing}");
        ensure!(
            listing["digest"].as_str().is_some_and(|digest| digest.len() == 64),
            "{listing}"
        );
    }
    let table = ask(&cluster, &["routes", "list"]).await?;
    ensure!(
        table.stdout.contains("/user/alice/") && table.stdout.contains("http://10.0.0.1:8888"),
        "{table:?}"
    );

    // A route of another namespace is not ours to delete.
    let refused = ask(&cluster, &["routes", "delete", "/hub2/"]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("/hub2/"),
        "{refused:?}"
    );
    for changed in [true, false] {
        let finished = ask(&cluster, &["routes", "delete", "/user/alice/", "-o", "json"]).await?;
        let answer: Value = serde_json::from_str(&finished.stdout)?;
        ensure!(finished.code == Some(0) && answer["changed"] == changed, "{finished:?}");
    }
    let gone = ask(&cluster, &["routes", "get", "/user/alice/"]).await?;
    ensure!(gone.code == Some(1) && gone.stderr.contains("/user/alice/"), "{gone:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_command_without_a_cluster_fails_and_says_whom_it_asked() -> Result<()> {
    let cluster = Cluster::prepare(1)?;
    for command in [
        vec!["routes", "list"],
        vec!["routes", "get", "/a/"],
        vec!["routes", "put", "/a/", "http://10.0.0.1:80"],
        vec!["routes", "delete", "/a/"],
    ] {
        let finished = ask(&cluster, &[command, vec!["--timeout", "1s"]].concat()).await?;
        ensure!(finished.code == Some(1) && finished.stdout.is_empty(), "{finished:?}");
        ensure!(finished.stderr.contains(&cluster.endpoints()[0]), "{finished:?}");
    }
    Ok(())
}
