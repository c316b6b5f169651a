use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Finished, Process, free_ports, holdfast, run, until};
use holdfast_tests::http;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::TOKEN;

const LIST: [&str; 2] = ["routes", "list"];
const PUT: [&str; 4] = ["routes", "put", "/user/alice/", "http://10.0.0.1:8888"];

/// `holdfast up` with one replica: in one process with its proxy, or a process for each if there are more of those.
struct Up {
    process: Process,
    first_port: u16,
    proxies: u16,
    folder: PathBuf,
    _kept: TempDir,
}

impl Up {
    fn prepare(proxies: u16) -> Result<Self> {
        let kept = tempfile::Builder::new().prefix("holdfast-").tempdir()?;
        let folder = kept.path().canonicalize()?;
        let first_port = free_ports(3 + 2 * proxies);
        let flags = [
            ("--data-dir", "data".to_owned()),
            ("--proxies", proxies.to_string()),
            ("--ip", "127.0.0.1".to_owned()),
            ("--base-port", first_port.to_string()),
            ("--port", (first_port + 3).to_string()),
            ("--proxy-admin-base", (first_port + 3 + proxies).to_string()),
        ];
        let mut process = Process::new("up", holdfast()?, &folder).args(["up"]);
        for (flag, value) in flags {
            process.set_flag(flag, value);
        }
        Ok(Up {
            process,
            first_port,
            proxies,
            folder,
            _kept: kept,
        })
    }

    /// Returns when it says that it is up, with the line that it tells a shell.
    async fn start(&mut self) -> Result<String> {
        let before = self.process.log().len();
        self.process.start()?;
        until("Holdfast is up", SOON, async || {
            let log = self.process.log()[before..].to_owned();
            let told = log.lines().find(|line| line.starts_with("export ")).map(str::to_owned);
            told.context(log)
        })
        .await
    }

    /// Where a token is that it has made.
    fn token_file(&self) -> PathBuf {
        self.folder.join("data").join("api-token")
    }

    fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.first_port)
    }

    async fn ask(&self, command: &[&str], token_file: Option<&Path>) -> Result<Finished> {
        let mut line: Vec<String> = command.iter().map(ToString::to_string).collect();
        line.extend(["--endpoints".to_owned(), self.endpoint()]);
        let token_file = token_file.map(|file| file.display().to_string());
        line.extend(
            token_file
                .into_iter()
                .flat_map(|file| ["--endpoints-token-file".to_owned(), file]),
        );
        run(line).await
    }

    async fn takes(&self, command: &[&str], token_file: &Path) -> Result<String> {
        let finished = self.ask(command, Some(token_file)).await?;
        ensure!(finished.code == Some(0), "{command:?}: {finished:?}");
        Ok(finished.stdout)
    }

    async fn refuses(&self, command: &[&str], token_file: Option<&Path>, words: &str) -> Result<()> {
        let finished = self.ask(command, token_file).await?;
        ensure!(finished.code == Some(1), "{command:?}: {finished:?}");
        ensure!(finished.stderr.contains(words), "{words} is missing in: {finished:?}");
        Ok(())
    }

    fn admin(&self, proxy: u16) -> String {
        format!("127.0.0.1:{}", self.first_port + 3 + self.proxies + proxy)
    }

    async fn proxies_follow(&self) -> Result<()> {
        for proxy in 0..self.proxies {
            until("the proxy follows the table", SOON, async || {
                let status = http::get(&self.admin(proxy), "/status").await?.json()?;
                ensure!(status["connected"] == true, "{status}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Nothing is changed by who has no token: not by the peers' port, nor by those for probes.
    async fn has_no_other_doors(&self) -> Result<()> {
        let peers = TcpStream::connect(("127.0.0.1", self.first_port + 1)).await;
        ensure!(peers.is_err(), "the peers' port is open");
        for proxy in 0..self.proxies {
            let drain = http::get(&self.admin(proxy), "/drain").await?;
            ensure!(drain.status == 404, "{drain:?}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn up_makes_a_token_without_which_nothing_is_written_and_keeps_it() -> Result<()> {
    let mut up = Up::prepare(1)?;
    let told = up.start().await?;
    let made = up.token_file();
    let token = fs::read_to_string(&made)?;
    ensure!(token.len() == 65 && token.trim().bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mode = fs::metadata(&made)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");

    let where_it_is = "api-token in its data directory";
    up.refuses(&PUT, None, where_it_is).await?;
    up.refuses(&LIST, None, where_it_is).await?;
    let another = up.folder.join("another");
    fs::write(&another, format!("{TOKEN}\n"))?;
    up.refuses(&PUT, Some(&another), "the token is none of this replica's")
        .await?;
    ensure!(!up.takes(&LIST, &made).await?.contains("/user/alice/"));
    up.takes(&PUT, &made).await?;
    up.proxies_follow().await?;
    up.has_no_other_doors().await?;

    // What it has told is all that a shell needs.
    let said = format!(
        "export HOLDFAST_ENDPOINTS={} HOLDFAST_ENDPOINTS_TOKEN_FILE={}",
        up.endpoint(),
        made.display()
    );
    ensure!(told == said, "{told}");
    let line = format!("{told}; exec {} routes list", holdfast()?.display());
    let mut shell = Process::new("shell", "sh", &up.folder).args(["-c".to_owned(), line]);
    shell.start()?;
    let ended = shell.ended(SOON).await?;
    ensure!(
        ended.success() && shell.log().contains("/user/alice/"),
        "{}",
        shell.log()
    );

    up.process.terminate(SOON).await?;
    up.start().await?;
    ensure!(fs::read_to_string(&made)? == token);
    ensure!(up.takes(&LIST, &made).await?.contains("/user/alice/"));
    up.refuses(&PUT, None, where_it_is).await
}

#[tokio::test]
async fn processes_of_their_own_go_by_a_token_file_that_is_given_and_that_changes() -> Result<()> {
    let mut up = Up::prepare(2)?;
    let given = up.folder.join("tokens");
    fs::write(&given, format!("{TOKEN}\nanother\n"))?;
    up.process.set_flag("--api-token-file", "tokens");
    let told = up.start().await?;
    let named = format!(" HOLDFAST_ENDPOINTS_TOKEN_FILE={}", given.display());
    ensure!(told.ends_with(&named), "{told}");
    ensure!(!up.token_file().exists());
    up.proxies_follow().await?;
    up.has_no_other_doors().await?;
    up.refuses(&PUT, None, "this replica wants a token").await?;
    up.takes(&PUT, &given).await?;
    let another = up.folder.join("another");
    fs::write(&another, "another\n")?;
    up.takes(&LIST, &another).await?;

    fs::write(&given, "the-next-one\n")?;
    until("the old ones are refused", SOON, async || {
        up.refuses(&LIST, Some(&another), "the token is none of this replica's")
            .await
    })
    .await?;
    up.takes(&LIST, &given).await?;
    up.proxies_follow().await
}

#[tokio::test]
async fn a_file_that_is_no_tokens_is_told_with_all_other_mistakes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing");
    let line = ["up", "--replicas", "2", "--api-token-file"].map(str::to_owned);
    let line = line
        .into_iter()
        .chain([missing.display().to_string(), "--data-dir".to_owned()]);
    let finished = run(line.chain([folder.path().display().to_string()])).await?;
    ensure!(finished.code == Some(2), "{finished:?}");
    for part in ["2 mistakes", "--api-token-file", "cannot be read", "--replicas \"2\""] {
        ensure!(finished.stderr.contains(part), "{part} is missing in: {finished:?}");
    }
    Ok(())
}
