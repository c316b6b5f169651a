use std::fs;

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::until;

use crate::{Guarded, TOKEN};

const COMMANDS: [&[&str]; 6] = [
    &["status"],
    &["routes", "list"],
    &["routes", "put", "/user/eve/", "http://10.0.0.66:8888"],
    &["held"],
    &["members", "list"],
    &["leader", "move"],
];

#[tokio::test]
async fn who_shows_no_token_or_a_wrong_one_changes_nothing_and_is_told_what_to_do() -> Result<()> {
    let mut guarded = Guarded::start(3).await?;
    let wrong = guarded.cluster.folder().join("wrong");
    fs::write(&wrong, format!("{TOKEN}x\n"))?;
    let before = guarded.cluster.agree().await?;
    for command in COMMANDS {
        let without = [["--endpoints-token-file", ""]];
        guarded.is_told(command, &without, "this replica wants a token").await?;
        let with = [["--endpoints-token-file", wrong.to_str().unwrap_or_default()]];
        guarded
            .is_told(command, &with, "the token is none of this replica's")
            .await?;
    }
    ensure!(guarded.cluster.agree().await? == before, "something was changed");
    for reason in ["no_token", "wrong_token"] {
        guarded.has_counted(reason).await?;
    }
    for (content, problem) in [
        ("", "has no token in its first line"),
        ("two words", "a first line that is no token"),
    ] {
        fs::write(&wrong, content)?;
        let with = [["--endpoints-token-file", wrong.to_str().unwrap_or_default()]];
        guarded.is_told(&["status"], &with, problem).await?;
    }
    guarded.cluster.finish().await
}

#[tokio::test]
async fn tokens_change_while_everything_runs() -> Result<()> {
    let mut guarded = Guarded::start(3).await?;
    let at = guarded.start_proxy().await?;
    let next = guarded.cluster.folder().join("next");
    fs::write(&next, "the-next-one\n")?;
    let mut credentials = guarded.credentials();
    credentials.token_file = Some(next);
    // One reader for each replica: all of them have to know.
    let readers: Vec<RouteReader> = guarded
        .cluster
        .endpoints()
        .iter()
        .map(|endpoint| {
            let endpoints = Endpoints::parse(&[endpoint])?.with(credentials.clone())?;
            Ok(RouteReader::new(endpoints, SOON))
        })
        .collect::<Result<_>>()?;

    fs::write(&guarded.tokens, format!("{TOKEN}\nthe-next-one\n"))?;
    for reader in &readers {
        until("both are taken", SOON, async || reader.list(None, "").await).await?;
    }
    fs::write(&guarded.token, "the-next-one\n")?;
    let old = guarded.cluster.folder().join("old");
    fs::write(&old, format!("{TOKEN}\n"))?;
    fs::write(&guarded.tokens, "the-next-one\n")?;
    let with = [["--endpoints-token-file", old.to_str().unwrap_or_default()]];
    until("the old one is refused by all", SOON, async || {
        guarded
            .is_told(&["routes", "list"], &with, "the token is none of this replica's")
            .await
    })
    .await?;

    // A file that has lost its tokens opens nothing.
    fs::write(&guarded.tokens, "\n")?;
    until("the log says so", SOON, async || {
        let log = guarded.cluster.replicas[0].process.log();
        ensure!(log.contains("has no token in it"), "{log}");
        Ok(())
    })
    .await?;
    guarded
        .is_told(&["routes", "list"], &with, "the token is none of this replica's")
        .await?;
    readers[0].list(None, "").await?;
    let status = guarded.cluster.proxies[at].status().await?;
    ensure!(status["connected"] == true, "{status}");

    // And a replica does not start with such a file.
    let replica = &mut guarded.cluster.replicas[2].process;
    replica.terminate(SOON).await?;
    replica.start()?;
    let ended = replica.ended(SOON).await?;
    ensure!(
        ended.code() == Some(2) && replica.log().contains("--api-token-file"),
        "{}",
        replica.log()
    );
    fs::write(&guarded.tokens, "the-next-one\n")?;
    guarded.cluster.replicas[2].process.start()?;
    guarded.cluster.ready().await?;
    guarded.cluster.finish().await
}
