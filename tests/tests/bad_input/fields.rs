//! Through gRPC, past every check of our own clients; and through the command line.

use anyhow::{Context, Result, ensure};
use holdfast_table::batch::{BYTES_MAX, CHANGES_MAX};
use holdfast_table::route::{DATA_BYTES_MAX, SPEC_BYTES_MAX};
use holdfast_tests::fixture::{Cluster, run};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::change::Change as Kind;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{Change, Route, WriteRequest};
use tonic::{Code, Status};

const TARGET: &str = "http://10.0.0.1:8888";

fn put(routespec: &str, target: &str, data: &str) -> Change {
    Change {
        change: Some(Kind::Put(Route {
            routespec: routespec.to_owned(),
            target: target.to_owned(),
            data: data.to_owned(),
            ..Route::default()
        })),
    }
}

fn delete(routespec: &str) -> Change {
    Change {
        change: Some(Kind::Delete(routespec.to_owned())),
    }
}

fn request(changes: Vec<Change>) -> WriteRequest {
    WriteRequest {
        changes,
        ..WriteRequest::default()
    }
}

/// Writes through every replica, for some forward it.
async fn refusals(cluster: &Cluster, request: &WriteRequest) -> Result<Vec<Status>> {
    let mut refusals = Vec::new();
    for endpoint in cluster.endpoints() {
        let mut client = RoutesClient::connect(format!("http://{endpoint}")).await?;
        let refused = client.write(request.clone()).await.err();
        refusals.push(refused.with_context(|| format!("{endpoint} took it"))?);
    }
    Ok(refusals)
}

async fn is_refused(cluster: &Cluster, request: &WriteRequest, field: &str, value: &str) -> Result<()> {
    for refused in refusals(cluster, request).await? {
        let told = format!("{field} {value:?}: {refused:?}");
        ensure!(refused.code() == Code::InvalidArgument, "{told}");
        ensure!(Reason::from_status(&refused) == Some(Reason::Invalid), "{told}");
        ensure!(refused.message().contains(field), "the field is not named: {told}");
        ensure!(refused.message().contains(value), "the value is not named: {told}");
        ensure!(
            refused.message().len() < 1000,
            "too long a message: {}",
            refused.message().len()
        );
    }
    Ok(())
}

#[tokio::test]
async fn bad_routespecs_targets_and_data_are_refused_by_name_and_change_nothing() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let good = [
        "routes",
        "put",
        "/user/alice/",
        TARGET,
        "--endpoints",
        &cluster.endpoints().join(","),
    ]
    .map(str::to_owned);
    ensure!(run(&good).await?.code == Some(0));
    let before = cluster.agree().await?;

    let too_long = format!("/{}/", "x".repeat(SPEC_BYTES_MAX));
    for spec in [
        "",
        "user/bob/",
        "/user/bob",
        "/user/./bob/",
        "/user/../bob/",
        "/user/%2e%2E/bob/",
        "/user/bob%00/",
        "/user/b\u{7}b/",
        "/user/%zz/",
        "/user/%4",
        "/user/%ff/",
        "/user//bob/",
        "/user/bob/?x=1",
        "/user\\bob/",
        &too_long,
    ] {
        let shown = &spec.escape_debug().to_string()[..spec.escape_debug().to_string().len().min(40)].to_owned();
        is_refused(&cluster, &request(vec![put(spec, TARGET, "")]), "routespec", shown).await?;
        is_refused(&cluster, &request(vec![delete(spec)]), "routespec", shown).await?;
    }
    for target in [
        "",
        "10.0.0.1:8888",
        "ftp://10.0.0.1/",
        "http://",
        "http://user:secret@10.0.0.1/",
        "http://10.0.0.1:0",
        "http://10.0.0.1:99999",
        "http://10.0.0.1/ x",
        "http+unix://run.sock",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]:8888",
    ] {
        is_refused(
            &cluster,
            &request(vec![put("/user/bob/", target, "")]),
            "target",
            target,
        )
        .await?;
    }
    let too_large = format!("{{\"x\":\"{}\"}}", "y".repeat(DATA_BYTES_MAX));
    for data in ["[]", "1", "null", "{", "{} {}", &too_large] {
        let shown = data.escape_debug().to_string();
        let shown = &shown[..shown.len().min(40)];
        is_refused(&cluster, &request(vec![put("/user/bob/", TARGET, data)]), "data", shown).await?;
    }
    let namespace = WriteRequest {
        namespace: "a b".to_owned(),
        ..request(vec![put("/user/bob/", TARGET, "")])
    };
    is_refused(&cluster, &namespace, "namespace", "a b").await?;
    let session = WriteRequest {
        session: b"short".to_vec().into(),
        sequence: 1,
        ..request(vec![put("/user/bob/", TARGET, "")])
    };
    is_refused(&cluster, &session, "session", "5 bytes").await?;
    is_refused(&cluster, &request(vec![Change::default()]), "change", "").await?;

    assert_eq!(cluster.agree().await?, before);
    cluster.finish().await
}

#[tokio::test]
async fn a_target_that_is_not_allowed_is_refused_when_it_is_written() -> Result<()> {
    let mut cluster = Cluster::prepare(3)?;
    for replica in &mut cluster.replicas {
        let flag = "10.0.0.0/8:8888,http+unix:///run/servers";
        replica.process.set_flag("--allow-targets", flag);
        replica.process.start()?;
    }
    cluster.ready().await?;
    for target in [
        "http://10.0.0.1:8889",
        "https://192.168.0.1:8888",
        "http+unix://%2Frun%2Fx.sock",
    ] {
        let write = request(vec![put("/user/a/", TARGET, ""), put("/user/bob/", target, "")]);
        is_refused(&cluster, &write, "target", target).await?;
        is_refused(&cluster, &write, "/user/bob/", "--allow-targets does not name it").await?;
    }
    // Where a name leads, only a proxy knows, each time it connects.
    for target in [TARGET, "http://a-name:1", "http+unix://%2Frun%2Fservers%2Fx.sock"] {
        let mut client = RoutesClient::connect(format!("http://{}", cluster.endpoints()[0])).await?;
        client.write(request(vec![put("/user/alice/", target, "")])).await?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_batch_over_its_bounds_is_refused_whole() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let before = cluster.agree().await?;

    let many = (0..=CHANGES_MAX)
        .map(|number| put(&format!("/u/{number}/"), TARGET, ""))
        .collect();
    is_refused(&cluster, &request(many), "changes", &(CHANGES_MAX + 1).to_string()).await?;
    let data = format!("{{\"x\":\"{}\"}}", "y".repeat(DATA_BYTES_MAX - 100));
    let large = (0..=BYTES_MAX / data.len())
        .map(|number| put(&format!("/u/{number}/"), TARGET, &data))
        .collect();
    is_refused(&cluster, &request(large), "changes", "bytes").await?;
    // One bad change among good ones, and one route twice in two spellings.
    let one_bad = vec![
        put("/user/a/", TARGET, ""),
        put("/user/b/", "nowhere", ""),
        put("/user/c/", TARGET, ""),
    ];
    is_refused(&cluster, &request(one_bad), "target", "nowhere").await?;
    let twice = vec![put("/user/%40a/", TARGET, ""), delete("/user/@a/")];
    is_refused(&cluster, &request(twice), "routespec", "/user/@a").await?;
    assert_eq!(cluster.agree().await?, before);

    // The largest ones that are allowed are taken.
    let most = (0..CHANGES_MAX)
        .map(|number| put(&format!("/u/{number}/"), TARGET, ""))
        .collect();
    let mut client = RoutesClient::connect(format!("http://{}", cluster.endpoints()[0])).await?;
    let answer = client.write(request(most)).await?.into_inner();
    ensure!(answer.changed && answer.revision == before.0 + 1, "{answer:?}");
    ensure!(cluster.routes("default").await?.len() == CHANGES_MAX);
    cluster.finish().await
}

#[tokio::test]
async fn the_command_line_names_the_field_and_the_value() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let before = cluster.agree().await?;
    let endpoints = cluster.endpoints().join(",");
    for (arguments, field, value) in [
        (vec!["put", "user/bob/", TARGET], "SPEC", "user/bob/"),
        (vec!["put", "/user/../bob/", TARGET], "SPEC", "/user/../bob/"),
        (vec!["put", "/user/bob/", "bob:80"], "TARGET", "bob:80"),
        (vec!["put", "/user/bob/", TARGET, "--data", "[1]"], "--data", "[1]"),
        (
            vec!["put", "/user/bob/", TARGET, "--namespace", "a b"],
            "--namespace",
            "a b",
        ),
        (vec!["get", "/user/bob"], "SPEC", "/user/bob"),
        (vec!["delete", "/user/bob"], "SPEC", "/user/bob"),
        (vec!["list", "--namespace", "a/b"], "--namespace", "a/b"),
    ] {
        let command = [vec!["routes"], arguments, vec!["--endpoints", &endpoints]].concat();
        let finished = run(&command).await?;
        ensure!(
            finished.code == Some(2) && finished.stdout.is_empty(),
            "{command:?}: {finished:?}"
        );
        ensure!(finished.stderr.contains(field), "the field is not named: {finished:?}");
        ensure!(finished.stderr.contains(value), "the value is not named: {finished:?}");
    }
    assert_eq!(cluster.agree().await?, before);
    cluster.finish().await
}
