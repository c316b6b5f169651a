//! The same requests to configurable-http-proxy 5.3.0 and to `holdfast chp`, with the same answers.
//!
//! Where the two differ on purpose it says so here: what is not compared is a difference that nobody decided on.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use bytes::Bytes;
use holdfast_tests::fixture::chp::configurable_http_proxy;
use holdfast_tests::fixture::free_port;
use holdfast_tests::http::{Answer, request, send};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mirror::Mirror;
use crate::subject::{Subject, TOKEN};

/// What is compared of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    content_type: String,
    location: String,
    answered: String,
    body: String,
}

/// One request to each, and what both have to see.
enum Step {
    /// To the REST API, with the token.
    Api(Method, &'static str, Value),
    /// To the REST API: a body that is no JSON.
    ApiText(Method, &'static str, &'static str),
    /// To the REST API, with this Authorization.
    ApiAs(&'static str, &'static str),
    /// From a user, by this host.
    Web(Method, &'static str, &'static str),
}

use Step::{Api, ApiAs, ApiText, Web};

impl Step {
    async fn take(&self, subject: &Subject) -> Result<Seen> {
        let answer = match self {
            Api(method, path, Value::Null) => subject.ask(method.clone(), path, "").await?,
            Api(method, path, body) => subject.ask(method.clone(), path, body.to_string()).await?,
            ApiText(method, path, body) => subject.ask(method.clone(), path, *body).await?,
            ApiAs(authorization, path) => {
                let request = request(Method::GET, &subject.api, path).header("authorization", *authorization);
                send(&subject.api, request, Bytes::new()).await?
            }
            Web(method, host, path) => {
                let body = match *method {
                    Method::POST | Method::PUT => Bytes::from_static(b"a body"),
                    _ => Bytes::new(),
                };
                let request = request(method.clone(), host, path)
                    .header("cookie", "a=1; b=2")
                    .header("x-asked", "yes");
                send(&subject.public, request, body).await?
            }
        };
        Ok(self.seen(&answer))
    }

    fn seen(&self, answer: &Answer) -> Seen {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let body = match serde_json::from_str(&text) {
            Ok(routes) => plain(routes).to_string(),
            // What a parser has to say about it is its own.
            Err(_) => text
                .split_once(" JSON:")
                .map_or(text.clone(), |(said, _)| said.to_owned()),
        };
        let is_text = !answer.header("content-type").starts_with("application/json");
        Seen {
            status: answer.status,
            // CHP names none for plain words, Holdfast does.
            content_type: match self {
                Web(..) if answer.status < 400 || answer.header("content-type").starts_with("text/html") => answer
                    .header("content-type")
                    .split(';')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                _ if is_text => String::new(),
                _ => "application/json".to_owned(),
            },
            location: answer.header("location").to_owned(),
            answered: answer.header("x-answered").to_owned(),
            body,
        }
    }
}

/// Without what differs by the moment.
pub fn plain(mut routes: Value) -> Value {
    let is_one = routes.get("target").is_some();
    let objects: Vec<&mut Value> = match &mut routes {
        one if is_one => vec![one],
        Value::Object(all) => all.values_mut().collect(),
        _ => Vec::new(),
    };
    for object in objects {
        if let Value::Object(object) = object {
            object.remove("last_activity");
        }
    }
    routes
}

/// Takes every step at both, in turn, and says all that differs.
async fn compare(folder: &TempDir, flags: &[&str], steps: &[Step]) -> Result<Option<(Subject, Subject)>> {
    let of = |name: &str| -> Result<_> {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    };
    let mut ours = Subject::ours(&of("ours")?, flags)?;
    ours.start().await?;
    let Some(mut theirs) = Subject::theirs(&of("theirs")?, flags)? else {
        // At least that every step is answered.
        for step in steps {
            step.take(&ours).await?;
        }
        return Ok(None);
    };
    theirs.start().await?;
    let mut differences = String::new();
    for (number, step) in steps.iter().enumerate() {
        let (mine, its) = (step.take(&ours).await?, step.take(&theirs).await?);
        // Ports are each subject's own.
        let its_port = theirs.public.rsplit(':').next().unwrap_or_default();
        let my_port = ours.public.rsplit(':').next().unwrap_or_default();
        let its = Seen {
            body: its.body.replace(its_port, my_port),
            location: its.location.replace(its_port, my_port),
            ..its
        };
        if mine != its {
            writeln!(differences, "step {number}:\n  ours   {mine:?}\n  theirs {its:?}")?;
        }
    }
    ensure!(differences.is_empty(), "with {flags:?}:\n{differences}");
    Ok(Some((ours, theirs)))
}

#[tokio::test]
async fn routes_are_written_and_read_alike() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let pages = folder.path().join("pages");
    std::fs::create_dir(&pages)?;
    std::fs::write(pages.join("404.html"), "<p>nothing here")?;
    std::fs::write(pages.join("error.html"), "<p>something is wrong")?;
    let default = mirror.target("/default");
    let pages = pages.to_str().unwrap_or_default();
    let flags = [
        "--default-target",
        &default,
        "--error-path",
        pages,
        "--custom-header",
        " X-Here : yes ",
    ];
    let route = |path: &str| json!({"target": mirror.target(path), "jupyterhub": true, "user": "zoë", "n": 1.5, "deep": {"x": [1, true, null]}});
    let nobody = json!({"target": format!("http://127.0.0.1:{}", free_port())});
    let steps = [
        // The default target is a route, and not a hub's.
        Api(Method::GET, "/api/routes", Value::Null),
        Web(Method::GET, "hub.test", "/anywhere?q=1"),
        Api(Method::POST, "/api/routes/user/zo%C3%AB/", route("/a")),
        Api(Method::GET, "/api/routes/user/zo%C3%AB/", Value::Null),
        Api(Method::GET, "/api/routes/user/zo%C3%AB", Value::Null),
        Api(Method::GET, "/api/routes/user/zo%c3%ab", Value::Null),
        Api(Method::GET, "/api/routes/user", Value::Null),
        Api(Method::GET, "/api/routes/", Value::Null),
        // What reaches the target, and what comes back.
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/x%20y?q=1&z=%2F"),
        Web(Method::GET, "hub.test:8443", "/user/zo%C3%AB"),
        Web(Method::POST, "hub.test", "/user/zo%C3%AB/posted"),
        Web(Method::PUT, "hub.test", "/user/zo%C3%AB/put"),
        Web(Method::DELETE, "hub.test", "/user/zo%C3%AB/deleted"),
        Web(Method::HEAD, "hub.test", "/user/zo%C3%AB/head"),
        Web(Method::OPTIONS, "hub.test", "/user/zo%C3%AB/options"),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/redirects"),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/fails"),
        // Whole segments: this is the default route's.
        Web(Method::GET, "hub.test", "/user/zo%C3%ABx/"),
        Api(Method::POST, "/api/routes/user/zo%C3%AB/", route("/b/")),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/again"),
        Api(Method::POST, "/api/routes/u%2Fv", route("")),
        Api(Method::POST, "/api/routes/user/zo%C3%AB/named", route("/named")),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/named/x"),
        Api(Method::GET, "/api/routes", Value::Null),
        // Mistakes.
        Api(Method::POST, "/api/routes/x", json!({"user": "x"})),
        Api(Method::POST, "/api/routes/x", json!({"target": 1})),
        Api(Method::POST, "/api/routes/x", json!([])),
        ApiText(Method::POST, "/api/routes/x", "null"),
        ApiText(Method::POST, "/api/routes/x", ""),
        ApiText(Method::POST, "/api/routes/x", "{"),
        Api(Method::PUT, "/api/routes/x", Value::Null),
        Api(Method::HEAD, "/api/routes", Value::Null),
        Api(Method::GET, "/", Value::Null),
        Api(Method::GET, "/api", Value::Null),
        Api(Method::GET, "/api/", Value::Null),
        Api(Method::GET, "/api/routesx", Value::Null),
        ApiAs("", "/api/routes"),
        ApiAs("token", "/api/routes"),
        ApiAs("Token a-token-for-the-tests", "/api/routes"),
        ApiAs("Bearer a-token-for-the-tests", "/api/routes"),
        ApiAs("token a-token-for-the-test", "/api/routes"),
        ApiAs("token  a-token-for-the-tests and more", "/api/routes"),
        // Nobody listens there.
        Api(Method::POST, "/api/routes/dead", nobody),
        Web(Method::GET, "hub.test", "/dead/x"),
        Api(Method::DELETE, "/api/routes/user/zo%C3%AB/", Value::Null),
        Api(Method::DELETE, "/api/routes/user/zo%C3%AB/", Value::Null),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/named/x"),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/x"),
        // No route at all.
        Api(Method::DELETE, "/api/routes/", Value::Null),
        Web(Method::GET, "hub.test", "/user/zo%C3%AB/x"),
        Web(Method::GET, "hub.test", "/_chp_healthz"),
        Api(Method::POST, "/api/routes", route("/root")),
        Web(Method::GET, "hub.test", "/"),
    ];
    let Some((ours, theirs)) = compare(&folder, &flags, &steps).await? else {
        return Ok(());
    };
    // What scripts wait for. `Adding route` is said before it is true; that is left out here.
    let (mine, its) = (ours.said("Route added"), theirs.said("Route added"));
    ensure!(!mine.is_empty() && mine == its, "{mine:#?} {its:#?}");
    Ok(())
}

#[tokio::test]
async fn hosts_are_routed_alike() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let error = mirror.target("/error");
    let flags = [
        "--host-routing",
        "--no-x-forward",
        "--auto-rewrite",
        "--error-target",
        &error,
    ];
    let route = |path: &str| json!({"target": mirror.target(path), "jupyterhub": true});
    let dead = json!({"target": format!("http://127.0.0.1:{}", free_port()), "jupyterhub": true});
    let steps = [
        Api(Method::POST, "/api/routes/", route("/hub")),
        Api(Method::POST, "/api/routes/alice.hub.test/user/alice", route("/alice")),
        Api(Method::POST, "/api/routes/dead.hub.test", dead),
        Api(Method::GET, "/api/routes", Value::Null),
        Api(Method::GET, "/api/routes/alice.hub.test/user/alice", Value::Null),
        Web(Method::GET, "alice.hub.test", "/user/alice/x"),
        Web(Method::GET, "alice.hub.test:8000", "/user/alice/x"),
        Web(Method::GET, "bob.hub.test", "/user/alice/x"),
        Web(Method::GET, "alice.hub.test", "/user/bob/x"),
        // Without a port in Host, CHP sends the user to the target's.
        Web(Method::GET, "alice.hub.test:8000", "/user/alice/redirects"),
        Web(Method::GET, "dead.hub.test", "/x?y=z&u=%2F"),
        Web(Method::POST, "dead.hub.test", "/x"),
        Api(Method::DELETE, "/api/routes/", Value::Null),
        Web(Method::GET, "bob.hub.test", "/x"),
        Api(Method::DELETE, "/api/routes/alice.hub.test/user/alice", Value::Null),
        Api(Method::GET, "/api/routes", Value::Null),
    ];
    compare(&folder, &flags, &steps).await?;
    Ok(())
}

#[tokio::test]
async fn paths_and_origins_are_changed_alike() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let route = |path: &str| json!({"target": mirror.target(path)});
    let steps = || {
        [
            Api(Method::POST, "/api/routes/user/alice", route("/base")),
            Api(Method::POST, "/api/routes/q", route("/base?t=1")),
            Web(Method::GET, "hub.test", "/user/alice/x?q=1"),
            Web(Method::GET, "hub.test:8000", "/user/alice/redirects"),
            Web(Method::GET, "hub.test", "/q/x?q=1"),
        ]
    };
    for flags in [
        &["--no-include-prefix", "--change-origin", "--protocol-rewrite", "https"][..],
        &["--no-prepend-path", "--auto-rewrite", "--protocol-rewrite=http"],
        &["--no-prepend-path", "--no-include-prefix"],
    ] {
        compare(&folder, flags, &steps()).await?;
    }
    Ok(())
}

/// The command line that the unit tests hold ours against is the one that is installed.
#[tokio::test]
async fn the_help_that_our_flags_are_held_against_is_the_real_one() -> Result<()> {
    let Some(program) = configurable_http_proxy() else {
        eprintln!("\n!!! NOT COMPARED: configurable-http-proxy is not installed\n");
        return Ok(());
    };
    let kept = include_str!("../../../crates/holdfast/src/commands/chp/help-5.3.0.txt");
    let output = std::process::Command::new(&program).arg("--help").output()?;
    ensure!(
        String::from_utf8(output.stdout)? == kept,
        "another version? {}",
        program.display()
    );
    Ok(())
}

/// Differences that are meant.
#[tokio::test]
async fn what_chp_gets_wrong_is_right_here() -> Result<()> {
    let folder = TempDir::new()?;
    let mut ours = Subject::ours(folder.path(), &[])?;
    ours.start().await?;
    let bare = request(Method::POST, &ours.api, "/api/routes/x");
    let refused = send(&ours.api, bare, Bytes::from_static(b"{")).await?;
    ensure!(refused.status == 403, "CHP reads a body before the token: {refused:?}");
    let malformed = ours.ask(Method::GET, "/api/routes/%", "").await?;
    ensure!(malformed.status == 400, "CHP never answers: {malformed:?}");
    let pathless = ours.ask(Method::DELETE, "/api/routes", "").await?;
    ensure!(pathless.status == 404, "CHP never answers: {pathless:?}");
    // Its own doors are no targets, whatever they are called.
    let own = serde_json::json!({"target": format!("http://{}", ours.api)}).to_string();
    let refused = ours.ask(Method::POST, "/api/routes/control", own).await?;
    ensure!(refused.status == 400, "{refused:?}");
    let port = ours.api.rsplit(':').next().unwrap_or_default();
    ours.add("/control", &format!("http://localhost:{port}")).await?;
    let asked =
        request(Method::GET, &ours.public, "/control/api/routes").header("authorization", format!("token {TOKEN}"));
    let answer = send(&ours.public, asked, Bytes::new()).await?;
    ensure!(answer.status == 503, "{answer:?}");
    Ok(())
}
