//! A real JupyterHub with real single-user servers.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use holdfast_tests::fixture::{Process, free_port, until};
use holdfast_tests::http;
use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const START_WITHIN: Duration = Duration::from_secs(90);
const SPAWN_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const END_SERVERS_WITHIN: Duration = Duration::from_secs(5);
/// With the scopes that `holdfast reconcile` asks for.
const TOKEN: &str = "a-token-for-the-demo";

/// The hub, and the users' servers, which live on when it stops. Dropping it ends them all.
pub struct Hub {
    process: Process,
    address: String,
    folder: PathBuf,
}

impl Hub {
    /// Describes a hub in `folder` whose users come in at `public_url`; `settings` go into its environment.
    ///
    /// # Errors
    /// There is no JupyterHub in the virtual environment.
    pub fn new(folder: &Path, public_url: &str, settings: &[(&str, String)]) -> Result<Self> {
        let python = venv()?.join("bin/python");
        ensure!(
            python.is_file(),
            "no JupyterHub: {} is missing; make it with python/make_venv.sh, or name another one in HOLDFAST_VENV",
            python.display()
        );
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let address = format!("127.0.0.1:{}", free_port());
        let mut process = Process::new("hub", python, folder)
            .args(["-m", "jupyterhub", "--config"])
            .args([demo.join("jupyterhub_config.py")])
            .env("INCIDENT_DIR", folder)
            .env("INCIDENT_PUBLIC_URL", public_url)
            .env("INCIDENT_HUB_URL", format!("http://{address}"))
            .env("INCIDENT_TOKEN", TOKEN);
        for (name, value) in settings {
            process = process.env(name, value);
        }
        for folder in [folder.join("homes"), folder.join("pids")] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(Hub {
            process,
            address,
            folder: folder.to_owned(),
        })
    }

    /// Where it listens itself.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts it; returns when it runs and has compared its routes with the proxy's.
    ///
    /// # Errors
    /// It does not, in time; the text has the end of its log.
    pub async fn start(&mut self) -> Result<()> {
        let before = self.process.log().len();
        self.process.start()?;
        let process = &mut self.process;
        let started = until("the hub runs", START_WITHIN, async || {
            if let Some(status) = process.exited() {
                return Ok(Err(anyhow!("the hub has ended with {status}")));
            }
            // The last line of its start.
            let runs = process.log()[before..].contains("JupyterHub is now running");
            runs.then_some(Ok(())).context("it starts")
        });
        started.await?.with_context(|| self.process.log_tail(30))
    }

    /// Ends it as an operator would; its users' servers live on.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.terminate(STOP_WITHIN).await.map(drop)
    }

    /// Starts the servers of these users and returns when all are ready, so that their routes have been added.
    ///
    /// # Errors
    /// One does not become ready; the text has the end of the hub's log.
    pub async fn start_servers(&self, users: &[&str]) -> Result<()> {
        for user in users {
            std::fs::create_dir_all(self.folder.join("homes").join(user))?;
            self.api(Method::POST, &format!("/users/{user}")).await?;
            self.api(Method::POST, &format!("/users/{user}/server")).await?;
        }
        for user in users {
            let ready = until(format!("{user}'s server is ready"), SPAWN_WITHIN, async || {
                let user = self.api(Method::GET, &format!("/users/{user}")).await?;
                let server = &user["servers"][""];
                if server["ready"] == true {
                    Ok(())
                } else {
                    Err(anyhow!("{server}"))
                }
            });
            ready.await.with_context(|| self.process.log_tail(30))?;
        }
        Ok(())
    }

    /// A file with a token for its API.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn token_file(&self) -> Result<PathBuf> {
        let path = self.folder.join("token");
        std::fs::write(&path, TOKEN)?;
        Ok(path)
    }

    async fn api(&self, method: Method, path: &str) -> Result<Value> {
        let request = http::request(method.clone(), &self.address, &format!("/hub/api{path}"))
            .header("authorization", format!("token {TOKEN}"));
        let answer = http::send(&self.address, request, Bytes::new()).await?;
        ensure!(
            (200..300).contains(&answer.status),
            "{method} {path}: {} {:?}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        if answer.body.is_empty() {
            Ok(Value::Null)
        } else {
            answer.json()
        }
    }

    /// The servers that run for this hub. A server writes its process id into a file when it starts; the folder in its
    /// environment proves that the id was not given to another process since.
    fn servers(&self) -> Vec<Pid> {
        let files = std::fs::read_dir(self.folder.join("pids"))
            .into_iter()
            .flatten()
            .flatten();
        let pids = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
        let folder = self.folder.as_os_str().as_bytes();
        let is_ours = |pid: &i32| match std::fs::read(format!("/proc/{pid}/environ")) {
            Ok(environment) => environment.windows(folder.len()).any(|window| window == folder),
            // No /proc on this system: the file alone has to do.
            Err(_) => !Path::new("/proc/self").exists(),
        };
        pids.filter(is_ours).map(Pid::from_raw).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // First the hub, or it would start what we end.
        self.process.kill();
        let servers = self.servers();
        for server in &servers {
            let _ = kill(*server, Signal::SIGTERM);
        }
        let deadline = std::time::Instant::now() + END_SERVERS_WITHIN;
        while !self.servers().is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        for server in self.servers() {
            let _ = kill(server, Signal::SIGKILL);
        }
    }
}

fn venv() -> Result<PathBuf> {
    if let Some(venv) = std::env::var_os("HOLDFAST_VENV") {
        return Ok(venv.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    Ok(cache
        .context("neither HOLDFAST_VENV nor HOME is set")?
        .join("holdfast/venv"))
}
