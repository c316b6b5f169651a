//! Flags about targets, and about how requests and answers are changed on their way.

use clap::Args;
use holdfast_proxy::policy::parse_header;
use holdfast_proxy::{ErrorPages, Policy, Protocol, ProxyConfig, TargetTls, TrustedProxies};
use holdfast_table::Target;

use crate::config::{Settings, parse};

#[derive(Debug, Args)]
#[command(next_help_heading = "Where requests go, and how")]
pub struct ForwardingArgs {
    /// Sends requests that no route takes to this URL instead of answering them with 404, once the table is known.
    #[arg(long, env = "HOLDFAST_DEFAULT_TARGET", value_name = "URL")]
    pub(in crate::commands) default_target: Option<String>,

    /// Asks this URL for error pages: GET URL/STATUS?url=ASKED-FOR. JupyterHub's is HUB/error.
    #[arg(long, env = "HOLDFAST_ERROR_TARGET", value_name = "URL")]
    pub(in crate::commands) error_target: Option<String>,

    /// Shows STATUS.html, for example 503.html, or else error.html, of this directory.
    #[arg(long, env = "HOLDFAST_ERROR_PATH", value_name = "DIR")]
    pub(in crate::commands) error_path: Option<String>,

    /// Connects to these targets alone: comma-separated ranges, if need be with scheme and ports, like 10.0.0.0/8:8888,
    /// https://10.0.0.0/8:8000-9000, http+unix:///run/servers. Link-local and metadata addresses, and the ports of this
    /// proxy and its replicas, are never connected to. [default: all others]
    #[arg(long, env = "HOLDFAST_ALLOW_TARGETS", value_name = "TARGETS")]
    pub(in crate::commands) allow_targets: Option<String>,

    /// Believes what reverse proxies at these addresses say of their users (X-Forwarded-For and its like), and adds to
    /// it: comma-separated ranges, or unix for who comes by a unix socket. What others say is overwritten.
    #[arg(long, env = "HOLDFAST_TRUSTED_PROXIES", value_name = "RANGE,...")]
    pub(in crate::commands) trusted_proxies: Option<String>,

    /// Tells targets nothing of users: no X-Forwarded-For and its like.
    #[arg(
        long,
        env = "HOLDFAST_NO_X_FORWARD",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) no_x_forward: String,

    /// Leaves out the path of the target's URL.
    #[arg(
        long,
        env = "HOLDFAST_NO_PREPEND_PATH",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) no_prepend_path: String,

    /// Leaves out the routespec of a request's path.
    #[arg(
        long,
        env = "HOLDFAST_NO_INCLUDE_PREFIX",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) no_include_prefix: String,

    /// Replaces Host by the target's own.
    #[arg(
        long,
        env = "HOLDFAST_CHANGE_ORIGIN",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) change_origin: String,

    /// In a target's redirects to itself, writes the host that the user asked.
    #[arg(
        long,
        env = "HOLDFAST_AUTO_REWRITE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) auto_rewrite: String,

    /// In a target's redirects to itself, writes this protocol: http or https.
    #[arg(long, env = "HOLDFAST_PROTOCOL_REWRITE", value_name = "PROTOCOL")]
    pub(in crate::commands) protocol_rewrite: Option<String>,

    /// Sets a header in every request, as in "X-Here: yes". May be given again; in a file or the environment, one a line.
    #[arg(
        long,
        env = "HOLDFAST_CUSTOM_HEADER",
        value_name = "NAME: VALUE",
        value_delimiter = '\n'
    )]
    pub(in crate::commands) custom_header: Vec<String>,

    /// Gives up when a target is silent for this long, before its answer or within it; WebSockets aside. [default: never]
    #[arg(long, env = "HOLDFAST_PROXY_TIMEOUT", value_name = "DURATION")]
    pub(in crate::commands) proxy_timeout: Option<String>,

    /// Authorities that vouch for targets with https, PEM. [default: the system's]
    #[arg(long, env = "HOLDFAST_CLIENT_SSL_CA", value_name = "FILE")]
    pub(in crate::commands) client_ssl_ca: Option<String>,

    /// Certificate to show to them, PEM.
    #[arg(long, env = "HOLDFAST_CLIENT_SSL_CERT", value_name = "FILE")]
    pub(in crate::commands) client_ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_CLIENT_SSL_KEY", value_name = "FILE")]
    pub(in crate::commands) client_ssl_key: Option<String>,

    /// Believes every target's certificate, whoever made it and for whomever.
    #[arg(
        long,
        env = "HOLDFAST_INSECURE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(in crate::commands) insecure: String,
}

impl ForwardingArgs {
    /// Puts what was given in its place.
    pub(super) fn read(&self, settings: &mut Settings, config: &mut ProxyConfig) {
        let target = |text: &str| Target::parse(text).map_err(|error| error.problem);
        let default = self.default_target.as_deref();
        settings.set(&mut config.default_target, "default-target", default, |text| {
            target(text).map(Some)
        });
        settings.set(
            &mut config.error_pages,
            "error-target",
            self.error_target.as_deref(),
            |text| target(text).map(ErrorPages::Target),
        );
        settings.set(
            &mut config.error_pages,
            "error-path",
            self.error_path.as_deref(),
            |text| parse::directory(text).map(ErrorPages::Directory),
        );
        if self.error_target.is_some() && self.error_path.is_some() {
            settings.refuse_as("--error-target and --error-path exclude each other".into());
        }
        let allowed = self.allow_targets.as_deref();
        settings.set(&mut config.allow_targets, "allow-targets", allowed, parse::target_rules);
        settings.set(
            &mut config.target_timeout,
            "proxy-timeout",
            self.proxy_timeout.as_deref(),
            |text| parse::positive_duration(text).map(Some),
        );
        self.read_policy(settings, &mut config.policy);
        config.target_tls = self.read_tls(settings);
    }

    fn read_policy(&self, settings: &mut Settings, policy: &mut Policy) {
        let trusted = self.trusted_proxies.as_deref();
        settings.set(
            &mut policy.trusted_proxies,
            "trusted-proxies",
            trusted,
            TrustedProxies::parse,
        );
        for (flag, text, place, wanted) in [
            ("no-x-forward", &self.no_x_forward, &mut policy.x_forward, false),
            (
                "no-prepend-path",
                &self.no_prepend_path,
                &mut policy.prepend_path,
                false,
            ),
            (
                "no-include-prefix",
                &self.no_include_prefix,
                &mut policy.include_prefix,
                false,
            ),
            ("change-origin", &self.change_origin, &mut policy.change_origin, true),
            ("auto-rewrite", &self.auto_rewrite, &mut policy.auto_rewrite, true),
        ] {
            settings.set(place, flag, Some(text), |text| Ok(parse::boolean(text)? == wanted));
        }
        let protocol = self.protocol_rewrite.as_deref();
        settings.set(&mut policy.protocol_rewrite, "protocol-rewrite", protocol, |text| {
            Protocol::parse(text).map(Some)
        });
        for line in self.custom_header.iter().filter(|line| !line.trim().is_empty()) {
            if let Some((name, value)) = settings.read("custom-header", line, parse_header) {
                policy.custom_headers.insert(name, value);
            }
        }
    }

    fn read_tls(&self, settings: &mut Settings) -> TargetTls {
        let ca = settings.read_optional("client-ssl-ca", self.client_ssl_ca.as_deref(), parse::file);
        let certificate = settings.read_optional("client-ssl-cert", self.client_ssl_cert.as_deref(), parse::file);
        let key = settings.read_optional("client-ssl-key", self.client_ssl_key.as_deref(), parse::file);
        let insecure = settings.read("insecure", &self.insecure, parse::boolean);
        if self.client_ssl_cert.is_some() != self.client_ssl_key.is_some() {
            settings.refuse_as("--client-ssl-cert and --client-ssl-key go together".into());
        }
        TargetTls {
            ca: ca.flatten(),
            identity: certificate.flatten().zip(key.flatten()),
            insecure: insecure == Some(true),
        }
    }
}
