//! Started, stopped, killed, started again.

use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::fixture::{Process, holdfast, run, until};
use holdfast_tests::http::{self, Connection, request};
use http_body_util::Full;
use hyper::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::mirror::Mirror;
use crate::side_by_side::plain;
use crate::subject::{SOON, Subject};

#[tokio::test]
async fn routes_on_disk_survive_kill_9_and_those_in_memory_go() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let data = folder.path().join("data");
    let data = data.to_str().context("a plain path")?;
    let default = mirror.target("/default");
    for (flags, stays) in [
        (&["--data-dir", data, "--default-target", &default][..], true),
        (&[][..], false),
    ] {
        let mut subject = Subject::ours(folder.path(), flags)?;
        subject.start().await?;
        subject.add("/user/alice", &mirror.target("/alice")).await?;
        if stays {
            // As a hub does with the route that the flag has made.
            subject.add("/", &mirror.target("/hub")).await?;
        }
        let before = plain(subject.ask(Method::GET, "/api/routes", "").await?.json()?);
        subject.process.kill();
        subject.start().await?;
        let after = plain(subject.ask(Method::GET, "/api/routes", "").await?.json()?);
        match stays {
            true => ensure!(
                before == after && after["/"]["jupyterhub"] == json!(true),
                "{before} {after}"
            ),
            false => ensure!(after == json!({}), "{after}"),
        }
        let answer = http::get(&subject.public, "/user/alice/x").await?;
        let asked = if stays {
            answer.json()?["target"].clone()
        } else {
            json!(answer.status)
        };
        ensure!(
            asked
                == if stays {
                    json!("/alice/user/alice/x")
                } else {
                    json!(404)
                },
            "{asked}"
        );
        let ended = subject.process.terminate(SOON).await?;
        ensure!(ended.code() == Some(0), "{ended}: {}", subject.process.log_tail(20));
    }
    Ok(())
}

#[tokio::test]
async fn what_is_in_memory_leaves_nothing_behind() -> Result<()> {
    let folder = TempDir::new()?;
    let pid_file = folder.path().join("proxy.pid");
    let pid_flag = pid_file.to_str().context("a plain path")?;
    let mut subject = Subject::ours(folder.path(), &["--pid-file", pid_flag])?;
    let temporary = folder.path().join("temporary");
    let left = || Ok::<_, std::io::Error>(std::fs::read_dir(&temporary)?.count());
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        subject.start().await?;
        ensure!(left()? == 1, "{}", left()?);
        let pid = std::fs::read_to_string(&pid_file)?;
        ensure!(
            pid.trim() == subject.process.pid().context("it runs")?.to_string(),
            "{pid}"
        );
        subject.process.signal(signal);
        let ended = subject.process.ended(SOON).await?;
        ensure!(ended.code() == Some(0), "{ended}: {}", subject.process.log_tail(20));
        ensure!(left()? == 0 && !pid_file.exists(), "{}", left()?);
    }
    Ok(())
}

/// A hub that is restarted stops its proxy, does not wait for it, and starts the next one at once.
#[tokio::test]
async fn the_next_one_may_start_while_the_last_one_drains() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let data = folder.path().join("data");
    let flags = [
        "--data-dir",
        data.to_str().context("a plain path")?,
        "--drain-timeout",
        "60s",
    ];
    let mut first = Subject::ours(folder.path(), &flags)?;
    first.start().await?;
    first.add("/user/alice", &mirror.target("")).await?;
    let mut connection = Connection::open(&first.public).await?;
    let waiting = request(Method::GET, &first.public, "/user/alice/waits").body(Full::default())?;
    let release = async {
        mirror.asked().await;
        first.process.signal(nix::sys::signal::Signal::SIGTERM);
        until("nothing new is let in", SOON, async || {
            match http::get(&first.public, "/_chp_healthz").await {
                Ok(answer) => Err(answer.status),
                Err(_) => Ok(()),
            }
        })
        .await?;
        let mut next = Process::new("next", holdfast()?, folder.path())
            .args(["chp", "--ip=127.0.0.1", "--api-ip=127.0.0.1"])
            .args([
                format!("--port={}", port(&first.public)),
                format!("--api-port={}", port(&first.api)),
            ])
            .args(flags)
            .env("CONFIGPROXY_AUTH_TOKEN", crate::subject::TOKEN);
        next.start()?;
        until("the next one serves the same routes", SOON, async || {
            ensure!(next.is_running(), "it ended: {}", next.log_tail(20));
            let answer = http::get(&first.public, "/user/alice/x").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
        .await?;
        mirror.let_go();
        next.terminate(SOON).await
    };
    let (answered, ended) = tokio::join!(connection.ask(waiting), release);
    ensure!(answered?.status == 200, "what was under way is finished");
    ensure!(ended?.code() == Some(0));
    Ok(())
}

/// Whoever closes a terminal, or asks all daemons for a reload, cuts off nobody.
#[tokio::test]
async fn a_hangup_changes_nothing() -> Result<()> {
    let mirror = Mirror::start().await?;
    let folder = TempDir::new()?;
    let mut subject = Subject::ours(folder.path(), &[])?;
    subject.start().await?;
    subject.add("/user/alice", &mirror.target("")).await?;
    let pid = subject.process.pid();
    for times in 1..=2 {
        subject.process.signal(nix::sys::signal::Signal::SIGHUP);
        until("it says so", SOON, async || {
            let said = subject.said("SIGHUP").len();
            ensure!(said == times, "{said} times: {}", subject.process.log_tail(20));
            Ok(())
        })
        .await?;
    }
    let answer = http::get(&subject.public, "/user/alice/x").await?;
    ensure!(answer.status == 200 && subject.process.pid() == pid, "{answer:?}");
    let ended = subject.process.terminate(SOON).await?;
    ensure!(ended.code() == Some(0), "{ended}: {}", subject.process.log_tail(20));
    Ok(())
}

#[tokio::test]
async fn it_goes_by_the_other_name_too_and_ends_with_its_codes() -> Result<()> {
    let folder = TempDir::new()?;
    let name = folder.path().join("configurable-http-proxy");
    symlink(holdfast()?, &name)?;
    for (program, command) in [(name, &[][..]), (holdfast()?, &["chp"][..])] {
        let ends = async |flags: &[&str]| -> Result<(Option<i32>, String)> {
            let mut process = Process::new("named", &program, folder.path()).args(command).args(flags);
            let before = process.log().len();
            process.start()?;
            let ended = process.ended(SOON).await?;
            Ok((ended.code(), process.log()[before..].to_owned()))
        };
        let (code, said) = ends(&["--version"]).await?;
        ensure!(code == Some(0) && said.starts_with("5.3.0"), "{said}");
        let (code, said) = ends(&["--help"]).await?;
        ensure!(
            code == Some(0) && said.contains("--api-ssl-reject-unauthorized"),
            "{said}"
        );
        for flags in [
            &["--unknown"][..],
            &["--port=x"],
            &["--storage-backend=x"],
            &["--custom-header=x"],
        ] {
            let (code, said) = ends(flags).await?;
            ensure!(
                code == Some(1) && said.contains(flags[0].split('=').next().unwrap_or_default()),
                "{said}"
            );
        }
    }
    let finished = run(["chp", "--port", "1", "--socket", "/x"]).await?;
    ensure!(finished.code == Some(1), "{finished:?}");
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_ends_it_and_is_named() -> Result<()> {
    let folder = TempDir::new()?;
    let mut subject = Subject::ours(folder.path(), &[])?;
    for at in [subject.public.clone(), subject.api.clone()] {
        let taken = std::net::TcpListener::bind(&at)?;
        subject.process.start()?;
        let ended = subject.process.ended(Duration::from_secs(10)).await?;
        let log = subject.process.log();
        ensure!(ended.code() == Some(1) && log.contains(&at), "{ended}: {log}");
        drop(taken);
    }
    ensure!(std::fs::read_dir(folder.path().join("temporary"))?.count() == 0);
    Ok(())
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or(address)
}
