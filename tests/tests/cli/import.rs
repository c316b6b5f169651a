use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::fixture::{Cluster, Finished};
use hyper::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::ask;
use crate::stand_in::StandIn;

const TOKEN: &str = "a-token-for-the-tests";

/// configurable-http-proxy with these routes.
async fn chp(routes: Value) -> Result<StandIn> {
    StandIn::start(move |asked| {
        let routes = routes.to_string();
        async move {
            match (
                asked.method,
                asked.path.as_str(),
                asked.authorization == format!("token {TOKEN}"),
            ) {
                (Method::GET, "/api/routes", true) => (200, routes),
                (_, _, false) => (403, String::new()),
                _ => (404, "Not Found".to_owned()),
            }
        }
    })
    .await
}

fn said(finished: &Finished) -> Result<Value> {
    ensure!(finished.code == Some(0), "{finished:?}");
    Ok(serde_json::from_str(&finished.stdout)?)
}

#[tokio::test]
async fn a_running_chp_is_taken_over_route_by_route() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let token = cluster.folder().join("token").display().to_string();
    std::fs::write(&token, format!("{TOKEN}\n"))?;
    let everything = json!({
        "/": {"target": "http://127.0.0.1:8081", "hub": true, "jupyterhub": true, "last_activity": "2026-11-22T09:00:00.000Z"},
        "/user/zoë": {"target": "http://10.0.0.1:1", "user": "zoë", "server_name": "", "jupyterhub": true},
        "/user/a@b~c/d e": {"target": "http://10.0.0.2:1", "user": "a@b~c", "deep": {"n": [1, true]}, "jupyterhub": true},
        "/docs": {"target": "http://10.0.0.3:1/base"},
    });
    let chp = chp(everything).await?;
    let from = ["import", "--from-chp", &chp.url(), "--token-file", &token, "-o", "json"].map(str::to_owned);
    let import = async |more: &[&str]| {
        let command: Vec<&str> = from.iter().map(String::as_str).chain(more.iter().copied()).collect();
        ask(&cluster, &command).await
    };

    let dry = said(&import(&["--dry-run"]).await?)?;
    ensure!(
        dry["added"].as_array().map(Vec::len) == Some(4) && dry["revision"].is_null(),
        "{dry}"
    );
    ensure!(cluster.routes("default").await?.is_empty());
    let done = said(&import(&[]).await?)?;
    ensure!(done["batches"] == 1 && done["revision"] == 1, "{done}");
    let routes = cluster.routes("default").await?;
    let seen: Vec<_> = routes
        .iter()
        .map(|route| [route.spec.as_str(), route.target.as_str(), route.data.as_str()])
        .collect();
    ensure!(
        seen == [
            ["/", "http://127.0.0.1:8081", r#"{"hub":true}"#],
            ["/docs/", "http://10.0.0.3:1/base", r#"{"jupyterhub":null}"#],
            [
                "/user/a@b~c/d%20e/",
                "http://10.0.0.2:1",
                r#"{"deep":{"n":[1,true]},"user":"a@b~c"}"#
            ],
            [
                "/user/zo%C3%AB/",
                "http://10.0.0.1:1",
                r#"{"server_name":"","user":"zoë"}"#
            ],
        ],
        "{seen:?}"
    );

    // A second time there is nothing to do; what is here alone stays unless it is to go.
    let again = said(&import(&[]).await?)?;
    ensure!(again["unchanged"] == 4 && again["batches"] == 0, "{again}");
    let writer = cluster.writer("default", Duration::ZERO)?;
    writer
        .put(Route::parse("/user/old/", "http://10.0.0.9:1", "", "")?)
        .await?;
    writer.put(Route::parse("/docs/", "http://10.0.0.9:1", "", "")?).await?;
    writer
        .put(Route::parse("/elsewhere/", "http://10.0.0.9:1", "", "other")?)
        .await?;
    let kept = said(&import(&["--dry-run"]).await?)?;
    ensure!(
        kept["left"] == 1 && kept["pruned"] == json!([]) && kept["changed"] == json!(["/docs/"]),
        "{kept}"
    );
    let pruned = said(&import(&["--prune"]).await?)?;
    ensure!(
        pruned["pruned"] == json!(["/user/old/"]) && pruned["revision"] == 5,
        "{pruned}"
    );
    ensure!(cluster.routes("default").await? == routes);
    ensure!(cluster.routes("other").await?.len() == 1);

    // Into another namespace they cannot go: they are in this one.
    let taken = import(&["--namespace", "other"]).await?;
    ensure!(
        taken.code == Some(1) && taken.stderr.contains("/docs/: belongs to namespace default"),
        "{taken:?}"
    );
    std::fs::write(&token, "wrong\n")?;
    let refused = import(&[]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("CONFIGPROXY_AUTH_TOKEN"),
        "{refused:?}"
    );
    cluster.finish().await
}

#[tokio::test]
async fn what_was_exported_is_imported_byte_for_byte() -> Result<()> {
    let from = Cluster::start(1).await?;
    let data = [
        "{}",
        r#"{"n": 1.50, "big":1e999, "nested":{"a":[true,null,{}]}}"#,
        " {\"a\":\r\n\t1}\n",
        r#"{"user":"zo\u00eb \" \\ 漢"}"#,
    ];
    for (namespace, host) in [("default", ""), ("hub-2", "hub.Example.org")] {
        let routes = data.iter().enumerate().map(|(at, data)| {
            let spec = format!("{host}/user/zo%C3%AB%2fx`'@{at}/");
            Route::parse(&spec, "HTTP://Name:80/x?q=1", data, namespace).map(Change::Put)
        });
        let batch = Batch::new(
            Namespace::parse(namespace)?,
            routes.collect::<Result<_, _>>()?,
            Vec::new(),
        )?;
        from.writer(namespace, Duration::ZERO)?.write(batch).await?;
    }
    let file = from.folder().join("routes.json");
    let name = file.display().to_string();
    let export = ["export", "--namespace", "*", "--output-file", &name];
    ensure!(ask(&from, &export).await?.code == Some(0));
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let there = ask(&from, &export).await?;
    ensure!(there.code == Some(2) && there.stderr.contains("--force"), "{there:?}");
    ensure!(ask(&from, &[&export[..], &["--force"]].concat()).await?.code == Some(0));
    let printed = ask(&from, &["export", "--namespace", "*"]).await?;
    ensure!(printed.stdout == std::fs::read_to_string(&file)?, "{printed:?}");
    // Its data is not looked at: a number in it is larger than this parser's.
    #[derive(Debug, Deserialize)]
    struct Exported {
        revision: u64,
        routes: Vec<IgnoredAny>,
    }
    let exported: Exported = serde_json::from_str(&ask(&from, &["export"]).await?.stdout)?;
    ensure!(exported.revision == 2 && exported.routes.len() == 4, "{exported:?}");

    let endpoints = from.endpoints().join(",");
    for source in [vec![name.as_str()], vec!["--from-endpoints", &endpoints]] {
        let to = Cluster::start(1).await?;
        let imported = ask(&to, &[&["import"][..], &source[..]].concat()).await?;
        ensure!(
            imported.code == Some(0) && imported.stdout.contains("8 added"),
            "{imported:?}"
        );
        ensure!(imported.stdout.contains("2 batches"), "{imported:?}");
        for namespace in ["default", "hub-2"] {
            ensure!(
                to.routes(namespace).await? == from.routes(namespace).await?,
                "{source:?} {namespace}"
            );
        }
        to.finish().await?;
    }
    from.finish().await
}

#[tokio::test]
async fn a_source_with_mistakes_is_refused_whole_and_names_them_all() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let file = cluster.folder().join("routes.json");
    let name = file.display().to_string();
    let good = json!({"routespec": "/good/", "target": "http://10.0.0.1:1"});
    let bad = json!({"routes": [
        good,
        {"routespec": "no-slash", "target": "ftp://x", "data": "[]"},
        {"target": "http://10.0.0.1:1"},
        {"routespec": "/user/@a/", "target": "http://10.0.0.1:1"},
        {"routespec": "/user/%40a/", "target": "http://10.0.0.1:1"},
    ]});
    std::fs::write(&file, bad.to_string())?;
    let refused = ask(&cluster, &["import", &name]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("5 mistakes"),
        "{refused:?}"
    );
    for part in [
        "no-slash: routespec",
        "no-slash: target",
        "no-slash: data",
        "route 3",
        "/user/%40a/: is the same route",
    ] {
        ensure!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    for (text, part) in [
        ("{", "must be what"),
        ("{}", "no route"),
        (r#"{"routes":[]}"#, "no route"),
    ] {
        std::fs::write(&file, text)?;
        let refused = ask(&cluster, &["import", &name, "--prune"]).await?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains(part),
            "{text}: {refused:?}"
        );
    }
    ensure!(cluster.routes("default").await?.is_empty());
    for arguments in [
        vec!["import"],
        vec!["import", &name, "--from-chp", "http://127.0.0.1:1"],
    ] {
        let refused = ask(&cluster, &arguments).await?;
        ensure!(
            refused.code == Some(2) && refused.stderr.contains("only one"),
            "{refused:?}"
        );
    }
    cluster.finish().await
}
