//! Flags about where users come in, and what they find there.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use clap::Args;
use holdfast_proxy::{Address, ProxyConfig, Redirect, UserCertificates, UserTls};
use listenfd::ListenFd;

use crate::config::{Settings, parse};

#[derive(Debug, Args)]
#[command(next_help_heading = "Where users come in")]
pub(super) struct DoorArgs {
    /// Serves users on this address. [default: every address]
    #[arg(long, env = "HOLDFAST_IP", value_name = "IP")]
    ip: Option<String>,

    /// Serves users on this port: HTTP/1.1, HTTP/2, WebSockets, and /_chp_healthz. Sockets that systemd hands over take
    /// the place of --ip and --port.
    #[arg(long, env = "HOLDFAST_PORT", value_name = "PORT", default_value = "8000")]
    pub(super) port: String,

    /// Serves users on this unix socket instead of --ip and --port.
    #[arg(long, env = "HOLDFAST_SOCKET", value_name = "FILE")]
    socket: Option<String>,

    /// Serves users here as well: comma-separated IP:PORT, or unix:FILE.
    #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDRESS,...")]
    listen: Option<String>,

    /// Certificate for users, PEM, with those that lead to its authority. Users then come by TLS alone. Read again when it
    /// changes.
    #[arg(long, env = "HOLDFAST_SSL_CERT", value_name = "FILE")]
    ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_SSL_KEY", value_name = "FILE")]
    ssl_key: Option<String>,

    /// Authorities that vouch for users' own certificates, PEM.
    #[arg(long, env = "HOLDFAST_SSL_CA", value_name = "FILE")]
    ssl_ca: Option<String>,

    /// Asks users for certificates of their own. Needs --ssl-ca.
    #[arg(
        long,
        env = "HOLDFAST_SSL_REQUEST_CERT",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    ssl_request_cert: String,

    /// Lets nobody in without one. A wrong one never lets in.
    #[arg(
        long,
        env = "HOLDFAST_SSL_REJECT_UNAUTHORIZED",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    ssl_reject_unauthorized: String,

    /// Sends users who come to this port without TLS to where it is.
    #[arg(long, env = "HOLDFAST_REDIRECT_PORT", value_name = "PORT")]
    redirect_port: Option<String>,

    /// The port that they are sent to. [default: --port]
    #[arg(long, env = "HOLDFAST_REDIRECT_TO", value_name = "PORT")]
    redirect_to: Option<String>,

    /// The most connections of users at once; further ones wait.
    #[arg(
        long,
        env = "HOLDFAST_MAX_CONNECTIONS",
        value_name = "NUMBER",
        default_value = "100000"
    )]
    max_connections: String,

    /// The most of them from one address; further ones are closed. Trusted proxies have no such limit. [default: none]
    #[arg(long, env = "HOLDFAST_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
    max_connections_per_address: Option<String>,

    /// How long a user's connection may be idle between two requests, and take for the head of one.
    #[arg(
        long,
        env = "HOLDFAST_KEEP_ALIVE_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    keep_alive_timeout: String,

    /// Closes a user's connection when no byte has passed for this long, even while the server works; WebSockets aside.
    /// [default: never]
    #[arg(
        long,
        visible_alias = "timeout",
        env = "HOLDFAST_CLIENT_TIMEOUT",
        value_name = "DURATION"
    )]
    client_timeout: Option<String>,
}

impl DoorArgs {
    /// The address that a proxy is made with, and what else the flags say of it.
    pub(super) fn read(&self, settings: &mut Settings) -> Option<(SocketAddr, impl FnOnce(&mut ProxyConfig) + use<>)> {
        let ip = settings.read("ip", self.ip.as_deref().unwrap_or_default(), parse::ip);
        let port = settings.read("port", &self.port, parse::port);
        let socket = settings.read_optional("socket", self.socket.as_deref(), |path| {
            Address::parse(&format!("unix:{path}"))
        });
        let listen = settings.read_optional("listen", self.listen.as_deref(), |list| {
            list.split(',')
                .map(str::trim)
                .map(Address::parse)
                .collect::<Result<Vec<_>, _>>()
        });
        let tls = self.read_tls(settings);
        let redirect_port = settings.read_optional("redirect-port", self.redirect_port.as_deref(), parse::port);
        let redirect_to = settings.read_optional("redirect-to", self.redirect_to.as_deref(), parse::first_port);
        let connections_max = settings.read("max-connections", &self.max_connections, parse::count);
        let per_address = self.max_connections_per_address.as_deref();
        let per_address = settings.read_optional("max-connections-per-address", per_address, parse::count);
        let idle = settings.read("keep-alive-timeout", &self.keep_alive_timeout, parse::positive_duration);
        let timeout = self.client_timeout.as_deref();
        let timeout = settings.read_optional("client-timeout", timeout, parse::positive_duration);

        let (ip, port, socket, listen, tls) = (ip?, port?, socket?, listen?, tls?);
        let (redirect_port, redirect_to) = (redirect_port?, redirect_to?);
        let (connections_max, per_address, idle, timeout) = (connections_max?, per_address?, idle?, timeout?);
        let first = SocketAddr::new(ip, port);
        let change = move |config: &mut ProxyConfig| {
            let inherited = inherited();
            config.listen = match (inherited.is_empty(), socket) {
                (false, _) => inherited,
                (true, Some(socket)) => vec![socket],
                (true, None) => vec![Address::Tcp(first)],
            };
            config.listen.extend(listen.into_iter().flatten());
            config.tls = tls;
            config.redirect = redirect_port.map(|port| Redirect {
                listen: SocketAddr::new(ip, port),
                to: redirect_to,
            });
            config.connections_max = connections_max;
            config.connections_per_address_max = per_address;
            config.header_read_timeout = idle;
            config.client_timeout = timeout;
        };
        Some((first, change))
    }

    fn read_tls(&self, settings: &mut Settings) -> Option<Option<UserTls>> {
        let certificate = settings.read_optional("ssl-cert", self.ssl_cert.as_deref(), parse::file);
        let key = settings.read_optional("ssl-key", self.ssl_key.as_deref(), parse::file);
        let ca = settings.read_optional("ssl-ca", self.ssl_ca.as_deref(), parse::file);
        let asked = settings.read("ssl-request-cert", &self.ssl_request_cert, parse::boolean);
        let required = &self.ssl_reject_unauthorized;
        let required = settings.read("ssl-reject-unauthorized", required, parse::boolean);
        let (ca, asked, required) = (ca?, asked?, required?);
        let users = match (ca, asked || required) {
            (Some(ca), true) => Some(UserCertificates { ca, required }),
            (None, true) => {
                settings.refuse_as("--ssl-request-cert needs --ssl-ca: who vouches for users?".into());
                None
            }
            (_, false) => None,
        };
        let (certificate, key) = (certificate?, key?);
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Some(UserTls {
                certificate,
                key,
                users,
            })),
            (None, None) => Some(None),
            _ => {
                settings.refuse_as("--ssl-cert and --ssl-key go together".into());
                None
            }
        }
    }
}

/// Sockets that whoever started this process listens on for it.
fn inherited() -> Vec<Address> {
    let mut handed = ListenFd::from_env();
    let mut addresses = Vec::new();
    for at in 0..handed.len() {
        let tcp = handed.take_tcp_listener(at).ok().flatten().map(OwnedFd::from);
        let socket = tcp.or_else(|| handed.take_unix_listener(at).ok().flatten().map(OwnedFd::from));
        match socket {
            Some(socket) => addresses.push(Address::Inherited(Arc::new(socket))),
            None => tracing::warn!(at, "an inherited socket is neither TCP nor unix: nobody listens on it"),
        }
    }
    addresses
}
