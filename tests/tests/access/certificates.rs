use std::fs;

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, run, until};
use holdfast_tests::tls::{Authority, Identity};

use crate::Guarded;

const LIST: &[&str] = &["routes", "list", "--timeout", "2s"];

fn replace(old: &Identity, new: &Identity) -> Result<()> {
    fs::copy(&new.key, &old.key)?;
    fs::copy(&new.certificate, &old.certificate)?;
    Ok(())
}

#[tokio::test]
async fn who_does_not_know_the_replicas_is_told_what_to_do() -> Result<()> {
    let guarded = Guarded::start(1).await?;
    let strangers = tempfile::tempdir()?;
    let stranger = Authority::new(strangers.path())?;
    let other = stranger.ca.display().to_string();
    let wrong_ca = [["--endpoints-ssl-ca", other.as_str()]];
    guarded.is_told(LIST, &wrong_ca, "is of another authority").await?;
    guarded
        .is_told(
            LIST,
            &[["--endpoints-server-name", "elsewhere.example"]],
            "is not for elsewhere.example",
        )
        .await?;
    let plain = [["--endpoints-ssl-ca", ""], ["--endpoints-server-name", ""]];
    guarded.is_told(LIST, &plain, "this port wants TLS").await?;
    guarded.has_counted("tls").await?;
    let no_ca = [["--endpoints-ssl-ca", "/nonexistent"]];
    guarded
        .is_told(LIST, &no_ca, "--endpoints-ssl-ca \"/nonexistent\": cannot be read")
        .await?;
    let no_pem = [["--endpoints-ssl-ca", guarded.token.to_str().unwrap_or_default()]];
    guarded.is_told(LIST, &no_pem, "holds no certificate in PEM").await?;

    replace(&guarded.own, &guarded.authority.vouched_for("expired")?)?;
    until("the expired one is shown", SOON, async || {
        guarded.is_told(LIST, &[], "has expired").await
    })
    .await?;
    replace(&guarded.own, &guarded.authority.vouch_for("renewed")?)?;
    until("the renewed one is shown", SOON, async || {
        let finished = guarded.ask(LIST, &[]).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        Ok(())
    })
    .await?;
    guarded.cluster.finish().await
}

#[tokio::test]
async fn who_asks_for_tls_where_there_is_none_is_told_so() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let authority = Authority::new(cluster.folder())?;
    let endpoint = cluster.replicas[0].endpoint();
    let ca = authority.ca.display().to_string();
    let line = [
        "routes",
        "list",
        "--timeout",
        "2s",
        "--endpoints",
        &endpoint,
        "--endpoints-ssl-ca",
        &ca,
    ];
    let finished = run(line).await?;
    ensure!(
        finished.code == Some(1) && finished.stderr.contains("it does not speak TLS there"),
        "{finished:?}"
    );
    for (endpoints, expected) in [
        (format!("http://{endpoint}"), "leave http:// and unix: out"),
        (
            format!("https://{endpoint},http://127.0.0.1:1"),
            "leave http:// and unix: out",
        ),
    ] {
        let finished = run(["routes", "list", "--endpoints", &endpoints, "--endpoints-ssl-ca", &ca]).await?;
        ensure!(
            finished.code == Some(2) && finished.stderr.contains(expected),
            "{finished:?}"
        );
    }
    cluster.finish().await
}

#[tokio::test]
async fn with_an_authority_for_callers_only_they_are_let_in_and_certificates_change_on_both_sides() -> Result<()> {
    let mut guarded = Guarded::prepare(3)?;
    let ca = guarded.authority.ca.clone();
    for replica in &mut guarded.cluster.replicas {
        replica.process.set_flag("--api-ssl-ca", &ca);
    }
    let hub = guarded.authority.vouch_for("hub")?;
    let mut credentials = guarded.credentials();
    if let Some(tls) = &mut credentials.tls {
        tls.identity = Some((hub.certificate.clone(), hub.key.clone()));
    }
    guarded.cluster.ask_with(&credentials);
    guarded.start_replicas().await?;
    let shown = |identity: &Identity| {
        let of = |path: &std::path::Path| path.display().to_string();
        (of(&identity.certificate), of(&identity.key))
    };
    let ours = shown(&hub);
    let ours = [
        ["--endpoints-ssl-cert", ours.0.as_str()],
        ["--endpoints-ssl-key", ours.1.as_str()],
    ];
    let finished = guarded.ask(LIST, &ours).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    guarded.is_told(LIST, &[], "it wants a certificate").await?;
    let strangers = tempfile::tempdir()?;
    let stranger = Authority::new(strangers.path())?;
    let theirs = shown(&stranger.vouch_for("stranger")?);
    let theirs = [
        ["--endpoints-ssl-cert", theirs.0.as_str()],
        ["--endpoints-ssl-key", theirs.1.as_str()],
    ];
    guarded
        .is_told(LIST, &theirs, "it does not believe our certificate")
        .await?;
    let no_token = [ours[0], ours[1], ["--endpoints-token-file", ""]];
    guarded.is_told(LIST, &no_token, "this replica wants a token").await?;

    // Another authority for all of it: both are believed for a while, and nobody is restarted. A reader that has been there
    // from the start goes through it all.
    let reader = RouteReader::new(Endpoints::parse(&guarded.cluster.endpoints())?.with(credentials)?, SOON);
    reader.list(None, "").await?;
    let both = format!("{}{}", fs::read_to_string(&ca)?, fs::read_to_string(&stranger.ca)?);
    fs::write(&ca, both)?;
    replace(&guarded.own, &stranger.vouch_for("next")?)?;
    let connects = async |at: usize| {
        let address = guarded.cluster.replicas[at].endpoint();
        stranger.connect(&address, Some(&hub)).await
    };
    for at in 0..3 {
        until("the next certificate is shown", SOON, async || connects(at).await).await?;
    }
    replace(&hub, &stranger.vouch_for("next-hub")?)?;
    fs::copy(&stranger.ca, &ca)?;
    let finished = guarded.ask(LIST, &ours).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    for replica in &mut guarded.cluster.replicas {
        replica.process.terminate(SOON).await?;
        replica.process.start()?;
        replica.ready().await?;
    }
    reader.list(None, "").await?;
    guarded.cluster.finish().await
}

#[tokio::test]
async fn a_certificate_without_its_key_is_a_mistake_that_is_named() -> Result<()> {
    let mut guarded = Guarded::prepare(1)?;
    let stranger = guarded.authority.vouch_for("another")?;
    let replica = &mut guarded.cluster.replicas[0].process;
    replica.set_flag("--api-ssl-key", &stranger.key);
    replica.start()?;
    let ended = replica.ended(SOON).await?;
    ensure!(
        ended.code() == Some(1) && replica.log().contains("api-ssl-cert"),
        "{}",
        replica.log()
    );
    guarded.cluster.keep_quiet();

    let mut cluster = Cluster::prepare(1)?;
    let replica = &mut cluster.replicas[0].process;
    replica.set_flag("--api-ssl-ca", &guarded.authority.ca);
    replica.start()?;
    let ended = replica.ended(SOON).await?;
    let log = replica.log();
    ensure!(
        ended.code() == Some(2) && log.contains("--api-ssl-ca needs a certificate"),
        "{log}"
    );
    cluster.keep_quiet();
    Ok(())
}
