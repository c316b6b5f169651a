//! TLS and tokens of the client listener, that of `holdfast up` too: who is let in, who is not, and what they are told.

mod certificates;
mod every_method;
mod tokens;
mod up;
mod whole;

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use holdfast_client::{Credentials, ReplicaTls};
use holdfast_tests::fixture::{Cluster, Finished, run};
use holdfast_tests::http;
use holdfast_tests::tls::{Authority, Identity};

const TOKEN: &str = "the-token-of-the-tests";

/// A cluster that asks for a token, over TLS, with the files that this takes.
struct Guarded {
    cluster: Cluster,
    authority: Authority,
    /// What the replicas show.
    own: Identity,
    /// What the replicas take.
    tokens: PathBuf,
    /// What callers show.
    token: PathBuf,
}

impl Guarded {
    /// Nothing is started.
    fn prepare(replicas: usize) -> Result<Self> {
        let mut cluster = Cluster::prepare(replicas)?;
        let authority = Authority::new(cluster.folder())?;
        let own = authority.vouch_for("own")?;
        let (tokens, token) = (cluster.folder().join("tokens"), cluster.folder().join("token"));
        fs::write(&tokens, format!("{TOKEN}\n"))?;
        fs::write(&token, format!("{TOKEN}\n"))?;
        for replica in &mut cluster.replicas {
            replica.process.set_flag("--api-token-file", &tokens);
            replica.process.set_flag("--api-ssl-cert", &own.certificate);
            replica.process.set_flag("--api-ssl-key", &own.key);
        }
        let mut guarded = Guarded {
            cluster,
            authority,
            own,
            tokens,
            token,
        };
        let credentials = guarded.credentials();
        guarded.cluster.ask_with(&credentials);
        Ok(guarded)
    }

    async fn start(replicas: usize) -> Result<Self> {
        let mut guarded = Guarded::prepare(replicas)?;
        guarded.start_replicas().await?;
        Ok(guarded)
    }

    async fn start_replicas(&mut self) -> Result<()> {
        for replica in &mut self.cluster.replicas {
            replica.process.start()?;
        }
        self.cluster.ready().await
    }

    async fn start_proxy(&mut self) -> Result<usize> {
        let at = self.cluster.add_proxy()?;
        for [flag, value] in self.flags() {
            self.cluster.proxies[at].process.set_flag(&flag, value);
        }
        self.cluster.proxies[at].process.start()?;
        self.cluster.proxies[at].ready().await?;
        Ok(at)
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            tls: Some(ReplicaTls {
                ca: Some(self.authority.ca.clone()),
                identity: None,
                server_name: Some("localhost".to_owned()),
            }),
            token_file: Some(self.token.clone()),
        }
    }

    /// The same, as a command takes them.
    fn flags(&self) -> [[String; 2]; 3] {
        let path = |path: &PathBuf| path.display().to_string();
        [
            ["--endpoints-ssl-ca".to_owned(), path(&self.authority.ca)],
            ["--endpoints-server-name".to_owned(), "localhost".to_owned()],
            ["--endpoints-token-file".to_owned(), path(&self.token)],
        ]
    }

    /// Runs a command against all replicas, with all flags but those that are named here, or with these in their place.
    async fn ask(&self, command: &[&str], other: &[[&str; 2]]) -> Result<Finished> {
        let kept = self.flags();
        let kept = kept
            .iter()
            .filter(|[flag, _]| other.iter().all(|[other, _]| other != flag));
        let mut line: Vec<String> = command.iter().map(ToString::to_string).collect();
        line.extend(["--endpoints".to_owned(), self.cluster.endpoints().join(",")]);
        line.extend(kept.flatten().cloned());
        let given = other.iter().filter(|[_, value]| !value.is_empty());
        line.extend(given.flatten().map(ToString::to_string));
        run(line).await
    }

    /// As [`ask`](Self::ask), of a command that must fail, saying so.
    async fn is_told(&self, command: &[&str], other: &[[&str; 2]], expected: &str) -> Result<()> {
        let finished = self.ask(command, other).await?;
        ensure!(finished.code != Some(0), "{command:?} {other:?}: {finished:?}");
        // Tables wrap their lines.
        let said = format!("{} {}", finished.stdout, finished.stderr);
        ensure!(
            said.contains(expected),
            "{command:?} {other:?} is not told {expected:?}: {finished:?}"
        );
        Ok(())
    }

    /// That some replica has counted callers whom it did not let in for this reason, and said so.
    async fn has_counted(&self, reason: &str) -> Result<()> {
        let (mut counted, mut said) = (false, false);
        for replica in &self.cluster.replicas {
            let address = format!("{}:{}", replica.address, replica.admin_port);
            let metrics = http::get(&address, "/metrics").await?.body;
            let line = format!("holdfast_replica_api_calls_refused_total{{reason=\"{reason}\"}}");
            counted |= String::from_utf8_lossy(&metrics).contains(&line);
            said |= replica
                .process
                .log()
                .contains("others like it in the next seconds are only counted");
        }
        ensure!(counted && said, "{reason}: counted {counted}, said {said}");
        Ok(())
    }
}
