//! ProxyConfig: what one proxy is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_client::Endpoints;
use holdfast_table::{FieldError, Target, TargetRule};
use holdfast_tls::{ServerTls, TargetTls};

use crate::access_log::AccessLogTo;
use crate::activity::WebsocketActivity;
use crate::error_pages::ErrorPages;
use crate::listen::Address;
use crate::policy::Policy;
use crate::proxy::{BuildError, Proxy};

/// The longest name of a proxy, in bytes.
pub const NAME_BYTES_MAX: usize = 253;
/// The longest time a connection to a target may be told to take.
pub const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The longest time that the head of a request or a TLS handshake may be told to take: strangers hold a connection for
/// it.
pub const HEADER_TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);
/// The shortest time after which a table may be too old. Replicas vouch for it once a second.
pub const MAX_STALE_MIN: Duration = Duration::from_secs(5);
/// The longest drain, delay and timeout each.
pub const DRAIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What one proxy is told. [`ProxyConfig::new`] fills in what has a default.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Shown to operators and in lists of lagging proxies; unique by the operator's care.
    pub name: String,
    /// The replicas to follow.
    pub endpoints: Endpoints,
    /// Where users come in, by HTTP/1.1 or HTTP/2. At least one.
    pub listen: Vec<Address>,
    /// The certificate that users are shown at all of these; `None`: they come without TLS.
    pub tls: Option<ServerTls>,
    /// Where users who come without TLS are sent to where it is; `None`: nowhere. Needs `tls`.
    pub redirect: Option<Redirect>,
    /// Where `/livez`, `/readyz`, `/metrics`, `/status` and `POST /drain` are served; `None`: nowhere.
    pub listen_admin: Option<SocketAddr>,
    /// Whether `POST /drain` is among them, by which whoever gets there takes the proxy out of service.
    pub drain_on_request: bool,
    /// Where `/metrics` is served and nothing else; `None`: nowhere but at `listen_admin`.
    pub listen_metrics: Option<Address>,
    /// Where the table's copy is kept; made if it is missing; one proxy's alone.
    pub data_dir: PathBuf,
    /// How long the table is served after a replica last vouched for it; then 503, and not ready. `None`: for ever, as is best
    /// nearly everywhere: old routes serve all users but the newest.
    pub max_stale: Option<Duration>,
    /// How long connections are still accepted once the proxy has said that it is not ready.
    pub drain_delay: Duration,
    /// How long requests and WebSockets may go on after that. In its last half, a minute at most, WebSockets are told to end.
    pub drain_timeout: Duration,
    /// How long a connection to a target may take, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// How long a target may be silent before its answer, and within it; `None`: for ever. WebSockets may be silent.
    pub target_timeout: Option<Duration>,
    /// How long a client may take for a TLS handshake, and for the head of a request: from its first byte on, the first
    /// one from the connection's begin on.
    pub header_timeout: Duration,
    /// How long a client may take for the next 1024 bytes of a request's body, or its end, while its target waits for it.
    pub body_timeout: Duration,
    /// How long a client may be idle between two requests. A head must be there by then, too.
    pub keep_alive_timeout: Duration,
    /// How long nothing may pass on a client's connection of HTTP/1.1, or of a client's request of HTTP/2, neither way,
    /// even while its target works; `None`: for ever. WebSockets may be silent.
    pub client_timeout: Option<Duration>,
    /// How long an idle connection to a target is kept for the next request.
    pub target_idle_timeout: Duration,
    /// The most connections of clients at once; further ones wait in the kernel. Fewer if the system lets the process
    /// have too few files open for so many, and as many to targets.
    pub connections_max: usize,
    /// The most of them from one address, or one half of an IPv6 address; further ones are closed. `None`: no such limit.
    /// Trusted proxies have none.
    pub connections_per_address_max: Option<usize>,
    /// What is said to targets with the scheme `https`, and asked of them.
    pub target_tls: TargetTls,
    /// Which targets routes may lead to; empty: all. Link-local and metadata addresses, and the control ports of this proxy
    /// and its replicas, are never connected to.
    pub allow_targets: Vec<TargetRule>,
    /// Control ports on this machine that are never connected to either.
    pub control_ports: Vec<SocketAddr>,
    /// Where requests go that no route takes, once the table is known; `None`: they are answered with 404.
    pub default_target: Option<Target>,
    /// What users read when there is no route, or its target does not answer.
    pub error_pages: ErrorPages,
    /// How requests and answers are changed on their way.
    pub policy: Policy,
    /// Where a line is written for each request; `None`: nowhere.
    pub access_log: Option<AccessLogTo>,
    /// What makes a WebSocket an activity of its route.
    pub websocket_activity: WebsocketActivity,
    /// How often the replica that is followed is told which routes were active, on average.
    pub activity_interval: Duration,
    /// How often the files of certificates are looked at.
    pub reload_interval: Duration,
}

/// A listener without TLS that sends users to where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The port that users reach the listener with TLS at; 443 is not mentioned to them. `None`: its own.
    pub to: Option<u16>,
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
            listen: vec![Address::Tcp(listen)],
            tls: None,
            redirect: None,
            listen_admin: None,
            drain_on_request: true,
            listen_metrics: None,
            data_dir,
            max_stale: None,
            drain_delay: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            target_timeout: None,
            client_timeout: None,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(30),
            // Less than the 5 s after which Node.js servers close an idle connection, so that we rarely meet a closed one.
            target_idle_timeout: Duration::from_secs(4),
            connections_max: 100_000,
            connections_per_address_max: None,
            target_tls: TargetTls::default(),
            allow_targets: Vec::new(),
            control_ports: Vec::new(),
            default_target: None,
            error_pages: ErrorPages::BuiltIn,
            policy: Policy::default(),
            access_log: None,
            websocket_activity: WebsocketActivity::default(),
            activity_interval: Duration::from_secs(5),
            reload_interval: Duration::from_secs(10),
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
        check(
            !self.listen.is_empty(),
            "listen",
            &"",
            "must have at least one address for users to come in by",
        );
        let is_users =
            |address: SocketAddr| (self.listen.iter()).any(|own| matches!(own, Address::Tcp(own) if *own == address));
        if let Some(admin) = self.listen_admin {
            let redirects = self.redirect.is_some_and(|redirect| redirect.listen == admin);
            check(
                admin.port() == 0 || !(is_users(admin) || redirects),
                "listen_admin",
                &admin,
                "must differ from where users come in",
            );
        }
        if let Some(Redirect { listen, .. }) = self.redirect {
            check(
                listen.port() == 0 || !is_users(listen),
                "redirect",
                &listen,
                "must differ from where users come in with TLS",
            );
            check(
                self.tls.is_some(),
                "redirect",
                &listen,
                "needs a certificate, for there is nothing else to redirect to",
            );
        }
        if let Some(tls) = &self.tls {
            check(
                tls.ciphers.fit(&tls.versions),
                "tls.ciphers",
                &tls.ciphers,
                "must have one that belongs to a version of TLS that is spoken",
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
                "header_timeout",
                self.header_timeout,
                Duration::from_millis(1),
                HEADER_TIMEOUT_MAX,
            ),
            ("body_timeout", self.body_timeout, Duration::from_millis(1), DRAIN_MAX),
            (
                "keep_alive_timeout",
                self.keep_alive_timeout,
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
            (
                "target_timeout",
                self.target_timeout.unwrap_or(DRAIN_MAX),
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
            (
                "client_timeout",
                self.client_timeout.unwrap_or(DRAIN_MAX),
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
            (
                "max_stale",
                self.max_stale.unwrap_or(DRAIN_MAX),
                MAX_STALE_MIN,
                Duration::MAX,
            ),
            (
                "activity_interval",
                self.activity_interval,
                Duration::from_millis(1),
                DRAIN_MAX,
            ),
            (
                "reload_interval",
                self.reload_interval,
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
                &match most {
                    Duration::MAX => format!("must be {least:?} or more"),
                    most => format!("must be from {least:?} to {most:?}"),
                },
            );
        }
        check(
            self.connections_max > 0,
            "connections_max",
            &self.connections_max,
            "must be 1 or more",
        );
        check(
            self.connections_per_address_max != Some(0),
            "connections_per_address_max",
            &0,
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
            header_timeout: Duration::from_secs(3600),
            max_stale: Some(Duration::from_secs(1)),
            redirect: Some(Redirect { listen, to: None }),
            ..good
        };
        let said = bad.validate().unwrap_err().to_string();
        for part in [
            "name \"p 0\"",
            "data_dir \"\"",
            "listen_admin \"127.0.0.1:8000\"",
            "connect_timeout \"0ns\"",
            "connections_max \"0\"",
            "header_timeout \"3600s\": must be from 1ms to 300s",
            "max_stale \"1s\": must be 5s or more",
            "redirect \"127.0.0.1:8000\": must differ",
            "redirect \"127.0.0.1:8000\": needs a certificate",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
    }
}
