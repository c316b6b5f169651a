//! configurable-http-proxy's REST API, as hubs and scripts use it.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, free_port, until};
use holdfast_tests::http::{Answer, exchange, get, request, send};
use holdfast_tests::tls::{Authority, Identity};
use holdfast_wire::timestamp;
use hyper::Method;
use serde_json::{Value, json};

const TOKEN: &str = "a-token-for-the-tests";

/// Three replicas with the API, and where it is on each.
async fn cluster(host_routing: bool) -> Result<(Cluster, Vec<String>)> {
    let mut cluster = Cluster::prepare(3)?;
    let tokens = cluster.folder().join("tokens");
    std::fs::write(&tokens, format!("{TOKEN}\nthe-next-one\n"))?;
    let mut apis = Vec::new();
    for replica in &mut cluster.replicas {
        let api = format!("127.0.0.1:{}", free_port());
        replica.process.set_flag("--listen-chp-api", &api);
        replica.process.set_flag("--chp-api-token-file", &tokens);
        replica
            .process
            .set_flag("--chp-api-host-routing", host_routing.to_string());
        replica.process.start()?;
        apis.push(api);
    }
    cluster.ready().await?;
    Ok((cluster, apis))
}

async fn ask(api: &str, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
    let request = request(method, api, path).header("authorization", format!("token {TOKEN}"));
    send(api, request, body.into()).await
}

async fn specs(cluster: &Cluster) -> Result<Vec<String>> {
    let routes = cluster.routes("default").await?;
    Ok(routes.iter().map(|route| route.spec.to_string()).collect())
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[tokio::test]
async fn every_request_is_answered_as_chp_answers_it() -> Result<()> {
    let (mut cluster, apis) = cluster(false).await?;
    let api = &apis[cluster.follower().await?];
    let route = |target: &str| json!({"target": target, "jupyterhub": true, "user": "zoë", "deep": {"n": [1, true]}});
    let not_json = "Body not valid JSON:";
    let no_target = "Must specify 'target' as string";
    for (method, path, body, status, expected) in [
        (Method::GET, "/api/routes", "".to_owned(), 200, "{}"),
        (
            Method::POST,
            "/api/routes/user/zo%C3%AB/",
            route("http://10.0.0.1:1").to_string(),
            201,
            "",
        ),
        (
            Method::POST,
            "/api/routes/user/zo%c3%ab",
            route("http://10.0.0.1:2").to_string(),
            201,
            "",
        ),
        (
            Method::POST,
            "/api/routes",
            json!({"target": "http://10.0.0.9:1"}).to_string(),
            201,
            "",
        ),
        (
            Method::POST,
            "/api/routes/u%2Fv",
            json!({"target": "http://10.0.0.8:1"}).to_string(),
            201,
            "",
        ),
        (Method::POST, "/api/routes/x", "".to_owned(), 400, not_json),
        (Method::POST, "/api/routes/x", "{".to_owned(), 400, not_json),
        (Method::POST, "/api/routes/x", "[]".to_owned(), 400, no_target),
        (
            Method::POST,
            "/api/routes/x",
            json!({"target": 1}).to_string(),
            400,
            no_target,
        ),
        (
            Method::POST,
            "/api/routes/x",
            json!({"target": "ftp://x"}).to_string(),
            400,
            "target \"ftp://x\"",
        ),
        (
            Method::POST,
            "/api/routes/a/../b",
            route("http://10.0.0.1:1").to_string(),
            400,
            "routespec",
        ),
        (
            Method::POST,
            "/api/routes/x",
            " ".repeat(100_000),
            413,
            "a route has at most",
        ),
        (Method::GET, "/api/routes/nowhere", "".to_owned(), 404, ""),
        (Method::GET, "/api/routes/user", "".to_owned(), 404, ""),
        (Method::GET, "/api/routes/%", "".to_owned(), 400, "malformed escape"),
        (Method::GET, "/api/routes/%ff", "".to_owned(), 400, "malformed escape"),
        (Method::DELETE, "/api/routes/nowhere", "".to_owned(), 404, ""),
        (Method::PUT, "/api/routes", "".to_owned(), 405, "Method not supported"),
        (Method::GET, "/", "".to_owned(), 404, "Not Found"),
        (Method::GET, "/api", "".to_owned(), 404, "Not Found"),
        (Method::GET, "/api/routesx", "".to_owned(), 404, "Not Found"),
    ] {
        let answer = ask(api, method.clone(), path, body).await?;
        let said = text(&answer);
        ensure!(answer.status == status, "{method} {path}: {} {said:?}", answer.status);
        ensure!(
            said.starts_with(expected) || (!expected.is_empty() && said.contains(expected)),
            "{method} {path}: {said:?}"
        );
        ensure!(!expected.is_empty() || said.is_empty(), "{method} {path}: {said:?}");
    }

    // The same from every replica, whoever was written to.
    for api in &apis {
        let all = ask(api, Method::GET, "/api/routes/", "").await?;
        ensure!(all.header("content-type") == "application/json", "{:?}", all.headers);
        let zoe = json!({"target": "http://10.0.0.1:2", "jupyterhub": true, "user": "zoë", "deep": {"n": [1, true]}});
        let expected = json!({
            "/": {"target": "http://10.0.0.9:1"},
            "/user/zoë": zoe,
            "/u/v": {"target": "http://10.0.0.8:1"},
        });
        ensure!(without_activity(all.json()?)? == expected, "{}", text(&all));
        let one = ask(api, Method::GET, "/api/routes/user/zo%C3%AB/", "").await?;
        ensure!(without_activity(one.json()?)? == zoe, "{}", text(&one));
    }
    // In the hub's own spelling, which a hub that comes by gRPC compares with its own.
    let specs = specs(&cluster).await?;
    ensure!(specs == ["/", "/u/v/", "/user/zo%C3%AB/"], "{specs:?}");

    // Values are what somebody wrote, byte for byte.
    let odd = r#"{"target":"http://10.0.0.7:1","big":1e999,"exact":0.10}"#;
    ensure!(ask(api, Method::POST, "/api/routes/odd", odd).await?.status == 201);
    let found = text(&ask(api, Method::GET, "/api/routes/odd", "").await?);
    // Followed by `last_activity` and the target.
    ensure!(found.starts_with(r#"{"big":1e999,"exact":0.10,"#), "{found}");
    ensure!(ask(api, Method::DELETE, "/api/routes/odd", "").await?.status == 204);

    for path in ["/api/routes/user/zo%C3%AB", "/api/routes", "/api/routes/u/v/"] {
        ensure!(ask(api, Method::DELETE, path, "").await?.status == 204, "{path}");
        ensure!(ask(api, Method::DELETE, path, "").await?.status == 404, "{path}, again");
    }
    ensure!(ask(api, Method::GET, "/api/routes", "").await?.json()? == json!({}));
    cluster.finish().await
}

/// Without `last_activity`, which the leader knows at once and the others in a moment.
fn without_activity(mut answer: Value) -> Result<Value> {
    let routes = match answer.get("target") {
        Some(_) => vec![&mut answer],
        None => answer
            .as_object_mut()
            .into_iter()
            .flat_map(|all| all.values_mut())
            .collect(),
    };
    for route in routes {
        let moment = route.as_object_mut().and_then(|route| route.remove("last_activity"));
        if let Some(moment) = moment {
            let moment = moment
                .as_str()
                .and_then(timestamp::parse)
                .context("last_activity is no moment")?;
            ensure!(moment.abs_diff(timestamp::now_ms()) < 60_000, "{moment}");
        }
    }
    Ok(answer)
}

#[tokio::test]
async fn routes_that_were_idle_since_a_moment_are_listed_by_every_replica() -> Result<()> {
    let (cluster, apis) = cluster(false).await?;
    let route = json!({"target": "http://10.0.0.1:1"}).to_string();
    ensure!(
        ask(&apis[0], Method::POST, "/api/routes/first", route.clone())
            .await?
            .status
            == 201
    );
    let active = async |api: &str, name: &str| -> Result<u64> {
        until("the route's activity is known", SOON, async || {
            let routes = ask(api, Method::GET, "/api/routes", "").await?.json()?;
            let moment = routes[name]["last_activity"].as_str().and_then(timestamp::parse);
            moment.context("it is not known")
        })
        .await
    };
    let first = active(&apis[1], "/first").await?;
    until("a later moment", SOON, async || {
        ensure!(timestamp::now_ms() > first + 5_000);
        Ok(())
    })
    .await?;
    ensure!(ask(&apis[0], Method::POST, "/api/routes/second", route).await?.status == 201);
    for api in &apis {
        let (first, second) = (active(api, "/first").await?, active(api, "/second").await?);
        ensure!(first + 2_000 < second, "{first} {second}");
        let between = timestamp::to_text((first + second) / 2);
        for (query, expected) in [
            (format!("inactiveSince={between}"), vec!["/first"]),
            (
                format!("a=b&inactive_since={}", between.replace(':', "%3A")),
                vec!["/first"],
            ),
            ("inactiveSince=2100".to_owned(), vec!["/first", "/second"]),
            ("inactiveSince=2020-01-01".to_owned(), vec![]),
        ] {
            let answer = ask(api, Method::GET, &format!("/api/routes?{query}"), "")
                .await?
                .json()?;
            let names: Vec<_> = answer
                .as_object()
                .into_iter()
                .flat_map(|routes| routes.keys())
                .collect();
            ensure!(names == expected, "{query}: {names:?}");
        }
        let wrong = ask(api, Method::GET, "/api/routes?inactiveSince=yesterday", "").await?;
        ensure!(wrong.status == 400 && text(&wrong) == "Invalid datestamp 'yesterday' must be ISO8601.");
    }
    // A replica that has started anew is told by the others.
    let mut cluster = cluster;
    let before = active(&apis[2], "/first").await?;
    cluster.replicas[2].process.kill();
    cluster.replicas[2].process.start()?;
    cluster.ready().await?;
    let after = active(&apis[2], "/first").await?;
    ensure!(after.abs_diff(before) < 5_000, "{before} became {after}");
    cluster.finish().await
}

#[tokio::test]
async fn nobody_without_a_token_learns_or_changes_anything() -> Result<()> {
    let (cluster, apis) = cluster(false).await?;
    let body = json!({"target": "http://10.0.0.1:1"}).to_string();
    for (authorization, status) in [
        (None, 403),
        (Some("token wrong"), 403),
        (Some("Bearer a-token-for-the-tests"), 403),
        (Some("token the-next-one"), 201),
    ] {
        for path in ["/api/routes/x", "/nowhere"] {
            let mut request = request(Method::POST, &apis[0], path);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let answer = send(&apis[0], request, body.clone().into()).await?;
            let expected = if status == 201 && path == "/nowhere" {
                404
            } else {
                status
            };
            ensure!(answer.status == expected, "{authorization:?} {path}: {}", answer.status);
            ensure!(status != 403 || answer.body.is_empty(), "{}", text(&answer));
        }
        let written = cluster.routes("default").await?.len();
        ensure!(
            written == usize::from(status == 201),
            "{authorization:?}: {written} routes"
        );
    }
    cluster.finish().await
}

#[tokio::test]
async fn the_first_segment_is_a_host_where_hosts_are_routed() -> Result<()> {
    let (cluster, apis) = cluster(true).await?;
    let body = json!({"target": "http://10.0.0.1:1", "jupyterhub": true}).to_string();
    for path in ["/api/routes/alice.hub.example.org/user/alice", "/api/routes/"] {
        ensure!(
            ask(&apis[0], Method::POST, path, body.clone()).await?.status == 201,
            "{path}"
        );
    }
    let specs = specs(&cluster).await?;
    ensure!(specs == ["/", "alice.hub.example.org/user/alice/"], "{specs:?}");
    let all = ask(&apis[1], Method::GET, "/api/routes", "").await?.json()?;
    let host = &all["/alice.hub.example.org/user/alice"]["host"];
    ensure!(*host == "alice.hub.example.org", "{all}");
    cluster.finish().await
}

#[tokio::test]
async fn a_hub_that_tries_again_gets_through_the_loss_of_the_leader_and_no_table_is_ever_empty() -> Result<()> {
    let (mut cluster, apis) = cluster(false).await?;
    let body = json!({"target": "http://10.0.0.1:1", "jupyterhub": true}).to_string();
    for user in 0..20 {
        let path = format!("/api/routes/user/u{user}");
        if user == 10 {
            let leader = cluster.leader().await?;
            cluster.replicas[leader].process.kill();
        }
        // Connection errors and 500 or more are tried again by a hub, for 30 s, at the same address.
        let at = (0..3).find(|at| cluster.replicas[*at].process.pid().is_some());
        let api = &apis[at.context("all replicas are gone")?];
        until("the write is through", SOON, async || {
            let answer = ask(api, Method::POST, &path, body.clone()).await?;
            ensure!(answer.status == 201, "{} {:?}", answer.status, text(&answer));
            Ok(())
        })
        .await?;
        let listed = ask(api, Method::GET, "/api/routes", "").await?;
        let routes = listed
            .json()
            .ok()
            .and_then(|routes| routes.as_object().map(|routes| routes.len()));
        ensure!(routes == Some(user + 1) || listed.status >= 500, "{listed:?}");
    }
    cluster.finish().await
}

#[tokio::test]
async fn without_a_token_it_is_not_offered_to_others() -> Result<()> {
    let mut cluster = Cluster::prepare(1)?;
    let replica = &mut cluster.replicas[0];
    replica.process.set_flag("--listen-chp-api", "0.0.0.0:0");
    replica.process.start()?;
    let status = replica.process.ended(SOON).await?;
    ensure!(status.code() == Some(2), "{status:?}");
    let log = cluster.logs();
    ensure!(log.contains("listen-chp-api") && log.contains("give a token"), "{log}");
    cluster.keep_quiet();
    Ok(())
}

#[tokio::test]
async fn with_a_certificate_it_is_answered_by_tls_alone_and_to_whom_it_knows() -> Result<()> {
    let mut cluster = Cluster::prepare(1)?;
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (authority, next) = (Authority::new(folder.path())?, Authority::new(other.path())?);
    let (own, hub) = (authority.vouch_for("own")?, authority.vouch_for("hub")?);
    let tokens = cluster.folder().join("tokens");
    std::fs::write(&tokens, format!("{TOKEN}\n"))?;
    let api = format!("127.0.0.1:{}", free_port());
    let process = &mut cluster.replicas[0].process;
    process.set_flag("--listen-chp-api", &api);
    process.set_flag("--chp-api-token-file", &tokens);
    process.set_flag("--chp-api-ssl-cert", &own.certificate);
    process.set_flag("--chp-api-ssl-key", &own.key);
    process.set_flag("--chp-api-ssl-ca", &authority.ca);
    process.start()?;
    cluster.ready().await?;
    let asks = async |authority: &Authority, identity: Option<&Identity>, token: &str| -> Result<u16> {
        let stream = authority.connect(&api, identity).await?;
        let asked = request(Method::GET, &api, "/api/routes").header("authorization", format!("token {token}"));
        Ok(exchange(stream, asked, Bytes::new()).await?.status)
    };
    ensure!(asks(&authority, Some(&hub), TOKEN).await? == 200);
    ensure!(
        asks(&authority, Some(&hub), "another").await? == 403,
        "a certificate is no token"
    );
    ensure!(asks(&authority, None, TOKEN).await.is_err(), "who shows nothing");
    ensure!(
        asks(&authority, Some(&next.vouch_for("stranger")?), TOKEN)
            .await
            .is_err()
    );
    ensure!(get(&api, "/api/routes").await.is_err(), "without TLS");

    // One who connects and says nothing holds up nobody.
    let silent = tokio::net::TcpStream::connect(&api).await?;
    ensure!(asks(&authority, Some(&hub), TOKEN).await? == 200);
    drop(silent);

    let renewed = next.vouch_for("renewed")?;
    std::fs::copy(&renewed.key, &own.key)?;
    std::fs::copy(&renewed.certificate, &own.certificate)?;
    until("the new certificate is shown", SOON, async || {
        asks(&next, Some(&hub), TOKEN).await
    })
    .await?;
    ensure!(
        asks(&authority, Some(&hub), TOKEN).await.is_err(),
        "the old one is gone"
    );
    Ok(())
}
