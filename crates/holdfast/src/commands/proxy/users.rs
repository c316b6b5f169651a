//! Flags about how users are received.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use holdfast_proxy::{ClientCertificates, ProxyConfig, Redirect, ServerTls, TlsCiphers, TlsVersions};

use crate::config::{Settings, parse};

#[derive(Debug, Args)]
#[command(next_help_heading = "How users are received")]
pub struct UserArgs {
    /// Certificate for users, PEM, with those that lead to its authority. Users then come by TLS alone. Read again when it
    /// changes.
    #[arg(long, env = "HOLDFAST_SSL_CERT", value_name = "FILE")]
    pub(in crate::commands) ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_SSL_KEY", value_name = "FILE")]
    pub(in crate::commands) ssl_key: Option<String>,

    /// Authorities that vouch for users' own certificates, PEM.
    #[arg(long, env = "HOLDFAST_SSL_CA", value_name = "FILE")]
    pub(in crate::commands) ssl_ca: Option<String>,

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
    pub(in crate::commands) ssl_request_cert: String,

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
    pub(in crate::commands) ssl_reject_unauthorized: String,

    /// Versions of TLS that are spoken with users: TLSv1_2, TLSv1_3, or both with a comma. [default: both]
    #[arg(long, env = "HOLDFAST_SSL_PROTOCOL", value_name = "VERSION,...")]
    pub(in crate::commands) ssl_protocol: Option<String>,

    /// Ciphers for users, with colons between them, by OpenSSL's names (ECDHE-RSA-AES128-GCM-SHA256) or rustls's own.
    /// [default: all that rustls has]
    #[arg(long, env = "HOLDFAST_SSL_CIPHERS", value_name = "CIPHER:...")]
    pub(in crate::commands) ssl_ciphers: Option<String>,

    /// Sends users who come to this port without TLS to where it is.
    #[arg(long, env = "HOLDFAST_REDIRECT_PORT", value_name = "PORT")]
    pub(in crate::commands) redirect_port: Option<String>,

    /// The port that they are sent to. [default: the one with TLS]
    #[arg(long, env = "HOLDFAST_REDIRECT_TO", value_name = "PORT")]
    pub(in crate::commands) redirect_to: Option<String>,

    /// The most connections of users at once; further ones wait.
    #[arg(
        long,
        env = "HOLDFAST_MAX_CONNECTIONS",
        value_name = "NUMBER",
        default_value = "100000"
    )]
    pub(in crate::commands) max_connections: String,

    /// The most of them from one address; further ones are closed. Trusted proxies have no such limit. [default: none]
    #[arg(long, env = "HOLDFAST_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
    pub(in crate::commands) max_connections_per_address: Option<String>,

    /// How long a user may take for a TLS handshake, and for the head of a request once it has begun; 5m at most.
    #[arg(
        long,
        env = "HOLDFAST_HEADER_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s"
    )]
    pub(in crate::commands) header_timeout: String,

    /// How long a user may take for the next 1024 bytes of a request's body, or for its end, while the server waits for it.
    /// Then 408 is answered.
    #[arg(long, env = "HOLDFAST_BODY_TIMEOUT", value_name = "DURATION", default_value = "60s")]
    pub(in crate::commands) body_timeout: String,

    /// How long a user's connection may be idle between two requests.
    #[arg(
        long,
        env = "HOLDFAST_KEEP_ALIVE_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    pub(in crate::commands) keep_alive_timeout: String,

    /// Closes a user's connection of HTTP/1.1 when no byte has passed for this long, even while the server works; of
    /// HTTP/2 it ends the request on which nothing has passed. WebSockets aside. [default: never]
    #[arg(
        long,
        visible_alias = "timeout",
        env = "HOLDFAST_CLIENT_TIMEOUT",
        value_name = "DURATION"
    )]
    pub(in crate::commands) client_timeout: Option<String>,
}

impl UserArgs {
    /// Puts what was given in its place; those without TLS who are redirected come in by `ip`.
    pub(super) fn read(&self, settings: &mut Settings, ip: IpAddr, config: &mut ProxyConfig) {
        config.tls = self.read_tls(settings);
        let mut to = None;
        settings.set(&mut to, "redirect-to", self.redirect_to.as_deref(), |text| {
            parse::first_port(text).map(Some)
        });
        let from = self.redirect_port.as_deref();
        settings.set(&mut config.redirect, "redirect-port", from, |text| {
            let listen = SocketAddr::new(ip, parse::port(text)?);
            Ok(Some(Redirect { listen, to }))
        });
        if self.redirect_to.is_some() && from.is_none() {
            settings.refuse_as("--redirect-to needs --redirect-port: where do they come from?".into());
        }
        let most = Some(self.max_connections.as_str());
        settings.set(&mut config.connections_max, "max-connections", most, parse::count);
        settings.set(
            &mut config.connections_per_address_max,
            "max-connections-per-address",
            self.max_connections_per_address.as_deref(),
            |text| parse::count(text).map(Some),
        );
        settings.set(
            &mut config.header_timeout,
            "header-timeout",
            Some(&self.header_timeout),
            parse::positive_duration,
        );
        settings.set(
            &mut config.body_timeout,
            "body-timeout",
            Some(&self.body_timeout),
            parse::positive_duration,
        );
        settings.set(
            &mut config.keep_alive_timeout,
            "keep-alive-timeout",
            Some(&self.keep_alive_timeout),
            parse::positive_duration,
        );
        settings.set(
            &mut config.client_timeout,
            "client-timeout",
            self.client_timeout.as_deref(),
            |text| parse::positive_duration(text).map(Some),
        );
    }

    fn read_tls(&self, settings: &mut Settings) -> Option<ServerTls> {
        let certificate = settings.read_optional("ssl-cert", self.ssl_cert.as_deref(), parse::file);
        let key = settings.read_optional("ssl-key", self.ssl_key.as_deref(), parse::file);
        let ca = settings.read_optional("ssl-ca", self.ssl_ca.as_deref(), parse::file);
        let asked = settings.read("ssl-request-cert", &self.ssl_request_cert, parse::boolean);
        let required = &self.ssl_reject_unauthorized;
        let required = settings.read("ssl-reject-unauthorized", required, parse::boolean);
        let (asked, required) = (asked == Some(true), required == Some(true));
        let (mut versions, mut ciphers) = (TlsVersions::default(), TlsCiphers::default());
        let named = self.ssl_protocol.as_deref();
        settings.set(&mut versions, "ssl-protocol", named, TlsVersions::parse);
        let named = self.ssl_ciphers.as_deref();
        settings.set(&mut ciphers, "ssl-ciphers", named, TlsCiphers::parse);

        if self.ssl_cert.is_some() != self.ssl_key.is_some() {
            settings.refuse_as("--ssl-cert and --ssl-key go together".into());
        }
        if (asked || required) && self.ssl_ca.is_none() {
            settings.refuse_as("--ssl-request-cert and --ssl-reject-unauthorized need --ssl-ca: who vouches?".into());
        }
        // Without a certificate there is no TLS, and who asks for a part of it must not be left without all of it.
        for (flag, given) in [
            ("ssl-ca", self.ssl_ca.is_some()),
            ("ssl-request-cert", asked),
            ("ssl-reject-unauthorized", required),
            ("ssl-protocol", self.ssl_protocol.is_some()),
            ("ssl-ciphers", self.ssl_ciphers.is_some()),
            ("redirect-port", self.redirect_port.is_some()),
        ] {
            if given && self.ssl_cert.is_none() && self.ssl_key.is_none() {
                settings.refuse_as(format!("--{flag} needs a certificate: give --ssl-cert and --ssl-key"));
            }
        }
        let mut tls = ServerTls::new(certificate??, key??);
        if asked || required {
            tls.clients = ca?.map(|ca| ClientCertificates { ca, required });
        }
        (tls.versions, tls.ciphers) = (versions, ciphers);
        Some(tls)
    }
}
