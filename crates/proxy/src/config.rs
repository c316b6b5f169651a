//! ProxyConfig: what one proxy is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_client::Endpoints;
use holdfast_table::FieldError;

use crate::proxy::{BuildError, Proxy};

/// The longest name of a proxy, in bytes.
pub const NAME_BYTES_MAX: usize = 253;
/// The longest time a connection to a target may be told to take.
pub const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The longest drain, delay and timeout each.
pub const DRAIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What one proxy is told. [`ProxyConfig::new`] fills in what has a default.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Shown to operators and in lists of lagging proxies; unique by the operator's care.
    pub name: String,
    /// The replicas to follow.
    pub endpoints: Endpoints,
    /// Where users come in, over HTTP/1.1. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz`, `/metrics` and `/status` are served; `None`: nowhere.
    pub listen_admin: Option<SocketAddr>,
    /// Where the table's copy is kept; made if it is missing; one proxy's alone.
    pub data_dir: PathBuf,
    /// How long connections are still accepted once the proxy has said that it is not ready.
    pub drain_delay: Duration,
    /// How long requests and WebSockets may go on after that.
    pub drain_timeout: Duration,
    /// How long a connection to a target may take, name resolution included.
    pub connect_timeout: Duration,
    /// How long a client may take for the head of a request, and stay idle between two requests.
    pub header_read_timeout: Duration,
    /// How long an idle connection to a target is kept for the next request.
    pub target_idle_timeout: Duration,
    /// The most connections of clients at once; further ones wait in the kernel.
    pub connections_max: usize,
}

/// Every mistake in a [`ProxyConfig`], each with field and value. Nothing was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<FieldError>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl ProxyConfig {
    /// The defaults for everything that need not be said.
    pub fn new(name: String, endpoints: Endpoints, listen: SocketAddr, data_dir: PathBuf) -> Self {
        ProxyConfig {
            name,
            endpoints,
            listen,
            listen_admin: None,
            data_dir,
            drain_delay: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            header_read_timeout: Duration::from_secs(30),
            // Less than the 5 s after which Node.js servers close an idle connection, so that we rarely meet a closed one.
            target_idle_timeout: Duration::from_secs(4),
            connections_max: 100_000,
        }
    }

    /// Looks for every mistake that can be seen without opening anything.
    ///
    /// # Errors
    /// [`ConfigError`]: all of them at once.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut mistakes = Vec::new();
        let mut check = |good: bool, field: &'static str, value: &dyn fmt::Display, problem: &str| {
            if !good {
                mistakes.push(FieldError::new(field, &value.to_string(), problem));
            }
        };
        let printable = self.name.bytes().all(|b| b.is_ascii_graphic());
        check(
            !self.name.is_empty() && self.name.len() <= NAME_BYTES_MAX && printable,
            "name",
            &self.name,
            "must have 1 to 253 printable ASCII characters and no spaces",
        );
        check(
            !self.data_dir.as_os_str().is_empty(),
            "data_dir",
            &self.data_dir.display(),
            "must name a directory",
        );
        if let Some(admin) = self.listen_admin {
            check(
                admin.port() == 0 || admin != self.listen,
                "listen_admin",
                &admin,
                "must differ from listen",
            );
        }
        for (field, value, least, most) in [
            ("drain_delay", self.drain_delay, Duration::ZERO, DRAIN_MAX),
            ("drain_timeout", self.drain_timeout, Duration::ZERO, DRAIN_MAX),
            (
                "connect_timeout",
                self.connect_timeout,
                Duration::from_millis(1),
                CONNECT_TIMEOUT_MAX,
            ),
            (
                "header_read_timeout",
                self.header_read_timeout,
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
            (
                "target_idle_timeout",
                self.target_idle_timeout,
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
        ] {
            check(
                (least..=most).contains(&value),
                field,
                &format_args!("{value:?}"),
                &format!("must be from {least:?} to {most:?}"),
            );
        }
        check(
            self.connections_max > 0,
            "connections_max",
            &self.connections_max,
            "must be 1 or more",
        );
        match mistakes.is_empty() {
            true => Ok(()),
            false => Err(ConfigError(mistakes)),
        }
    }

    /// Binds the listeners, takes the data directory and loads the table's copy from it.
    ///
    /// # Errors
    /// [`BuildError`]: nothing is left open; mend the field that it names.
    pub async fn build(self) -> Result<Proxy, BuildError> {
        Proxy::build(self).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let endpoints = Endpoints::parse(&["127.0.0.1:7011"]).unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 8000));
        let good = ProxyConfig::new("p0".into(), endpoints, listen, PathBuf::from("/var/lib/holdfast"));
        assert_eq!(good.validate(), Ok(()));
        let bad = ProxyConfig {
            name: "p 0".into(),
            data_dir: PathBuf::new(),
            listen_admin: Some(listen),
            connect_timeout: Duration::ZERO,
            connections_max: 0,
            ..good
        };
        let said = bad.validate().unwrap_err().to_string();
        for part in [
            "name \"p 0\"",
            "data_dir \"\"",
            "listen_admin \"127.0.0.1:8000\"",
            "connect_timeout \"0ns\"",
            "connections_max \"0\"",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
    }
}
