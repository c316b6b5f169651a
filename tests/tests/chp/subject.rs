//! A running configurable-http-proxy, or what takes its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_tests::fixture::chp::configurable_http_proxy;
use holdfast_tests::fixture::{Process, free_port, holdfast, until};
use holdfast_tests::http::{self, Answer, request, send};
use hyper::Method;

pub const TOKEN: &str = "a-token-for-the-tests";
pub const SOON: Duration = Duration::from_secs(20);

/// One process, with users at `public` and the REST API at `api`.
pub struct Subject {
    pub process: Process,
    pub public: String,
    pub api: String,
}

impl Subject {
    /// `holdfast chp`, not started; `flags` come after those of the ports. Temporary files go below `folder`.
    pub fn ours(folder: &Path, flags: &[&str]) -> Result<Self> {
        Subject::new("holdfast", holdfast()?, &["chp"], folder, flags)
    }

    /// configurable-http-proxy 5.3.0, not started; `None`, and a loud word, where it is not installed.
    pub fn theirs(folder: &Path, flags: &[&str]) -> Result<Option<Self>> {
        let Some(program) = configurable_http_proxy() else {
            eprintln!(
                "\n!!! NOT COMPARED: configurable-http-proxy is not installed; `scripts/install_chp.sh` does it (it needs Node.js)\n"
            );
            return Ok(None);
        };
        Subject::new("configurable-http-proxy", program, &[], folder, flags).map(Some)
    }

    fn new(name: &str, program: PathBuf, command: &[&str], folder: &Path, flags: &[&str]) -> Result<Self> {
        let (port, api_port) = (free_port().to_string(), free_port().to_string());
        let temporary = folder.join("temporary");
        std::fs::create_dir_all(&temporary)?;
        let ports = [
            "--ip",
            "127.0.0.1",
            "--port",
            &port,
            "--api-ip",
            "127.0.0.1",
            "--api-port",
            &api_port,
        ];
        let process = Process::new(name, program, folder)
            .args(command)
            .args(ports)
            .args(flags)
            .env("CONFIGPROXY_AUTH_TOKEN", TOKEN)
            .env("TMPDIR", temporary);
        Ok(Subject {
            process,
            public: format!("127.0.0.1:{port}"),
            api: format!("127.0.0.1:{api_port}"),
        })
    }

    /// Returns when both doors answer.
    pub async fn start(&mut self) -> Result<()> {
        self.process.start()?;
        let answers = until("it answers", SOON, async || {
            ensure!(self.process.is_running(), "it has ended");
            let healthy = http::get(&self.public, "/_chp_healthz").await?;
            let routes = self.ask(Method::GET, "/api/routes", "").await?;
            ensure!(healthy.status == 200 && routes.status == 200, "{healthy:?} {routes:?}");
            Ok(())
        });
        let answers = answers.await;
        answers.with_context(|| self.process.log_tail(20))
    }

    /// Asks the REST API.
    pub async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let request = request(method, &self.api, path).header("authorization", format!("token {TOKEN}"));
        send(&self.api, request, body.into()).await
    }

    /// Writes a route.
    pub async fn add(&self, path: &str, target: &str) -> Result<()> {
        let body = serde_json::json!({"target": target, "jupyterhub": true}).to_string();
        let answer = self.ask(Method::POST, &format!("/api/routes{path}"), body).await?;
        ensure!(answer.status == 201, "{answer:?}");
        Ok(())
    }

    /// The lines of its log that a script may wait for, without their times and colours.
    pub fn said(&self, word: &str) -> Vec<String> {
        let log = self.process.log();
        let plain = |line: &str| line.replace("\u{1b}[32m", "").replace("\u{1b}[39m", "");
        let lines = log.lines().map(plain).filter(|line| line.contains(word));
        lines
            .map(|line| {
                line.split_once(' ')
                    .map_or_else(String::new, |(_, said)| said.to_owned())
            })
            .collect()
    }
}
