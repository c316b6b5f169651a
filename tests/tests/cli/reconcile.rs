use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_client::RouteWriter;
use holdfast_table::{Route, RouteSpec};
use holdfast_tests::fixture::{Cluster, Finished, free_port};
use hyper::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::ask;
use crate::stand_in::{Asked, StandIn};

const TOKEN: &str = "a-token-for-the-tests";

/// As much of a hub as its REST API shows.
struct Hub {
    shown: Arc<Mutex<Shown>>,
    api: StandIn,
}

struct Shown {
    /// Where each user's server is, and what is pending about it.
    servers: BTreeMap<String, (String, Option<&'static str>)>,
    scopes: Vec<&'static str>,
    page: usize,
    /// What becomes of the users' page from this offset on.
    spoil: Option<(usize, Spoil)>,
    writer: RouteWriter,
}

#[derive(Clone, Copy, Debug)]
enum Spoil {
    Error,
    NoJson,
    /// One user less than there should be.
    Short,
    NoServers,
    /// The first four have left since the page before.
    Leave,
}

impl Hub {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let shown = Arc::new(Mutex::new(Shown {
            servers: BTreeMap::new(),
            scopes: vec!["list:users", "read:servers", "list:services", "read:services", "proxy"],
            page: 100,
            spoil: None,
            writer: cluster.writer("default", Duration::ZERO)?,
        }));
        let state = shown.clone();
        let api = StandIn::start(move |asked| {
            let state = state.clone();
            async move { answer(&state, asked).await }
        })
        .await?;
        let hub = Hub { shown, api };
        hub.show(|shown| shown.writer.clone())
            .put(Route::parse("/", &hub.api.url(), r#"{"hub":true}"#, "")?)
            .await?;
        Ok(hub)
    }

    fn show<T>(&self, change: impl FnOnce(&mut Shown) -> T) -> T {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn server(&self, user: &str, target: &str, pending: Option<&'static str>) {
        self.show(|shown| shown.servers.insert(user.to_owned(), (target.to_owned(), pending)));
    }

    async fn reconcile(&self, cluster: &Cluster, more: &[&str]) -> Result<Finished> {
        let token = cluster.folder().join("hub-token").display().to_string();
        std::fs::write(&token, format!("{TOKEN}\n"))?;
        let url = self.api.url();
        let command = ["reconcile", "--hub-url", &url, "--token-file", &token, "-o", "json"];
        ask(cluster, &[&command[..], more].concat()).await
    }
}

async fn answer(state: &Mutex<Shown>, asked: Asked) -> (u16, String) {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    if asked.authorization != format!("token {TOKEN}") {
        return (403, "{}".to_owned());
    }
    match (asked.method.clone(), asked.path.as_str()) {
        (Method::GET, "/hub/api/user") => (200, json!({"scopes": lock().scopes}).to_string()),
        (Method::GET, "/hub/api/services") => (200, json!({"idle-culler": {"url": "", "prefix": ""}}).to_string()),
        (Method::GET, "/hub/api/users") => users(&mut lock(), &asked),
        (Method::POST, "/hub/api/proxy") => {
            let (writer, servers) = {
                let shown = lock();
                (shown.writer.clone(), shown.servers.clone())
            };
            for (user, (target, _)) in servers.iter().filter(|(_, (_, pending))| pending.is_none()) {
                let written = match route(user, target) {
                    Ok(route) => writer.put(route).await.map(drop).map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = written {
                    return (500, error);
                }
            }
            (200, String::new())
        }
        _ => (404, "{}".to_owned()),
    }
}

fn users(shown: &mut Shown, asked: &Asked) -> (u16, String) {
    let offset = asked.number("offset").unwrap_or(0);
    let limit = asked.number("limit").unwrap_or(200).min(shown.page);
    let spoil = shown.spoil.filter(|(from, _)| offset >= *from).map(|(_, spoil)| spoil);
    match spoil {
        Some(Spoil::Error) => return (500, "{}".to_owned()),
        Some(Spoil::NoJson) => return (200, "<html>".to_owned()),
        Some(Spoil::Leave) => {
            shown.spoil = None;
            let first: Vec<_> = shown.servers.keys().take(4).cloned().collect();
            shown.servers.retain(|user, _| !first.contains(user));
        }
        _ => {}
    }
    let total = shown.servers.len();
    let page = shown.servers.iter().skip(offset).take(limit);
    let mut items: Vec<Value> = page
        .map(|(user, (_, pending))| {
            let server = json!({"url": format!("/user/{user}/"), "ready": pending.is_none(), "pending": pending});
            json!({"name": user, "servers": {"": server}})
        })
        .collect();
    match spoil {
        Some(Spoil::Short) => drop(items.pop()),
        Some(Spoil::NoServers) => items
            .iter_mut()
            .for_each(|user| drop(user.as_object_mut().map(|user| user.remove("servers")))),
        _ => {}
    }
    let next = (offset + limit < total).then(|| json!({"offset": offset + limit}));
    let position = json!({"offset": offset, "limit": limit, "total": total, "next": next});
    (200, json!({"items": items, "_pagination": position}).to_string())
}

fn route(user: &str, target: &str) -> Result<Route> {
    let data = json!({"user": user, "server_name": ""});
    Ok(Route::parse(&format!("/user/{user}/"), target, &data.to_string(), "")?)
}

/// The kinds that were found with what each is about, and whether it was repaired.
fn found(finished: &Finished) -> Result<Vec<(String, String, bool)>> {
    let report: Value = serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = report["disagreements"].as_array().context("no disagreements")?;
    let found: Vec<_> = found
        .iter()
        .map(|one| (text(&one["kind"]), text(&one["about"]), one["repaired"] == true))
        .collect();
    let left = found.iter().filter(|(.., repaired)| !repaired).count();
    ensure!(
        report["left"] == left && finished.code == Some(i32::from(left > 0)),
        "{finished:?}"
    );
    Ok(found)
}

fn expect(found: &[(String, String, bool)], expected: &[(&str, &str, bool)]) -> Result<()> {
    let found: Vec<_> = found
        .iter()
        .map(|(kind, about, repaired)| (kind.as_str(), about.as_str(), *repaired))
        .collect();
    ensure!(found == expected, "found {found:#?}, expected {expected:#?}");
    Ok(())
}

/// A target that accepts connections as long as the listener lives, and one that refuses them.
async fn targets() -> Result<(TcpListener, String, String)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let alive = format!("http://{}", listener.local_addr()?);
    let gone = format!("http://127.0.0.1:{}", free_port());
    Ok((listener, alive, gone))
}

#[tokio::test]
async fn every_disagreement_is_found_and_the_safe_ones_are_repaired() -> Result<()> {
    let cluster = Cluster::start_with_proxies(3, 1).await?;
    let hub = Hub::start(&cluster).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    let (_alice, alices, _) = targets().await?;
    let (_bob, bobs, _) = targets().await?;
    let (_shared, shared, gone) = targets().await?;

    for (user, target, pending) in [
        ("alice", &alices, None),
        ("bob", &bobs, None),
        ("dave", &gone, None),
        ("erin", &gone, Some("spawn")),
        ("frank", &shared, None),
        ("grace", &shared, None),
    ] {
        hub.server(user, target, pending);
    }
    for (user, target) in [
        ("alice", &alices),
        ("carol", &gone),
        ("dave", &gone),
        ("frank", &shared),
        ("grace", &shared),
    ] {
        writer.put(route(user, target)?).await?;
    }
    // bob has no route, carol no server, dave's does not answer, and nobody has done with erin's yet.
    let before = cluster.routes("default").await?;
    let seen = found(&hub.reconcile(&cluster, &[]).await?)?;
    let unrepaired = [
        ("two-users-one-target", gone.as_str(), false),
        ("two-users-one-target", shared.as_str(), false),
        ("server-without-route", "/user/bob/", false),
        ("route-without-server", "/user/carol/", false),
        ("dead-target", "/user/dave/", false),
    ];
    let mut expected = unrepaired.to_vec();
    expected[..2].sort();
    expect(&seen, &expected)?;
    ensure!(
        cluster.routes("default").await? == before,
        "looking has changed something"
    );

    // The hub would remove heidi's route too, and somebody is at its target.
    let (_heidi, heidis, _) = targets().await?;
    writer.put(route("heidi", &heidis)?).await?;
    let seen = found(&hub.reconcile(&cluster, &["--repair"]).await?)?;
    expect(
        &seen[seen.len() - 3..],
        &[
            ("route-without-server", "/user/carol/", true),
            ("route-without-server", "/user/heidi/", false),
            ("dead-target", "/user/dave/", false),
        ],
    )?;
    ensure!(
        seen.contains(&("server-without-route".into(), "/user/bob/".into(), false)),
        "{seen:?}"
    );
    let specs: Vec<String> = cluster
        .routes("default")
        .await?
        .iter()
        .map(|route| route.spec.to_string())
        .collect();
    ensure!(
        specs
            == [
                "/",
                "/user/alice/",
                "/user/dave/",
                "/user/frank/",
                "/user/grace/",
                "/user/heidi/"
            ],
        "{specs:?}"
    );

    // An operator has decided; what is left is repaired by the hub.
    writer.delete(RouteSpec::parse("/user/heidi/")?).await?;
    hub.server("dave", &bobs, Some("stop"));
    let (_grace, graces, _) = targets().await?;
    hub.server("grace", &graces, None);
    writer.put(route("grace", &graces)?).await?;
    let seen = found(&hub.reconcile(&cluster, &["--repair"]).await?)?;
    expect(&seen, &[("server-without-route", "/user/bob/", true)])?;
    let admin = cluster.proxies[0].admin();
    let seen = found(&hub.reconcile(&cluster, &["--proxy-admin", &admin]).await?)?;
    expect(&seen, &[])?;
    cluster.finish().await
}

#[tokio::test]
async fn nothing_is_concluded_from_a_hub_that_does_not_tell_everything() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let hub = Hub::start(&cluster).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    let (_listener, alive, gone) = targets().await?;
    writer.put(route("stale", &gone)?).await?;
    for n in 0..12 {
        hub.server(&format!("user-{n:02}"), &alive, Some("check"));
    }
    hub.show(|shown| shown.page = 5);
    let before = cluster.routes("default").await?;
    for (spoil, from, part) in [
        (Spoil::Error, 0, "500"),
        (Spoil::Error, 5, "500"),
        (Spoil::NoJson, 0, "cannot be read"),
        (Spoil::Short, 5, "does not see all of them"),
        (Spoil::NoServers, 0, "read:servers"),
    ] {
        hub.show(|shown| shown.spoil = Some((from, spoil)));
        let refused = hub.reconcile(&cluster, &["--repair"]).await?;
        ensure!(
            refused.code == Some(2) && refused.stderr.contains(part),
            "{spoil:?}: {refused:?}"
        );
        ensure!(
            refused.stdout.is_empty() && cluster.routes("default").await? == before,
            "{spoil:?}"
        );
    }
    hub.show(|shown| (shown.spoil, shown.scopes) = (None, vec!["list:users!group=a", "read:servers", "proxy"]));
    let refused = hub.reconcile(&cluster, &["--repair"]).await?;
    ensure!(refused.code == Some(2), "{refused:?}");
    ensure!(
        refused
            .stderr
            .contains("lacks list:users, list:services, read:services"),
        "{refused:?}"
    );
    hub.show(|shown| shown.scopes = vec!["list:users", "read:servers", "list:services", "read:services", "proxy"]);

    // A hub that lost its database knows nobody either.
    let servers = hub.show(|shown| std::mem::take(&mut shown.servers));
    let refused = hub.reconcile(&cluster, &["--repair"]).await?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("--empty-hub-ok"),
        "{refused:?}"
    );
    ensure!(cluster.routes("default").await? == before);
    expect(
        &found(&hub.reconcile(&cluster, &["--empty-hub-ok"]).await?)?,
        &[("route-without-server", "/user/stale/", false)],
    )?;

    // Users who leave while they are listed push others to where nobody looks any more: then it is begun anew.
    hub.show(|shown| {
        shown.servers = servers;
        shown.spoil = Some((3, Spoil::Leave));
    });
    for n in 4..12 {
        writer.put(route(&format!("user-{n:02}"), &gone)?).await?;
    }
    let seen = found(&hub.reconcile(&cluster, &["--repair"]).await?)?;
    let about: Vec<_> = seen
        .iter()
        .filter(|(kind, ..)| kind == "route-without-server")
        .collect();
    ensure!(
        about.len() == 1 && about[0].1 == "/user/stale/" && about[0].2,
        "{seen:?}"
    );
    ensure!(
        cluster.routes("default").await?.len() == 9,
        "{:?}",
        cluster.routes("default").await?
    );
    cluster.finish().await
}

#[tokio::test]
async fn proxies_and_replicas_that_cannot_be_asked_are_told() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(3, 1).await?;
    let hub = Hub::start(&cluster).await?;
    let admin = cluster.proxies[0].admin();
    cluster.proxies[0].process.kill();
    let follower = cluster.follower().await?;
    cluster.replicas[follower].process.kill();
    let silent = cluster.replicas[follower].endpoint();
    let seen = found(&hub.reconcile(&cluster, &["--proxy-admin", &admin]).await?)?;
    expect(
        &seen,
        &[
            ("proxy-behind", admin.as_str(), false),
            ("replica-silent", silent.as_str(), false),
        ],
    )?;
    cluster.finish().await
}
