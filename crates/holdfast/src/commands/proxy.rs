//! `holdfast proxy`: serves users from the table.

mod doors;
pub(super) mod forwarding;
pub(super) mod seen;
pub(super) mod serving;
pub(super) mod users;

use std::net::Ipv6Addr;
use std::process::ExitCode;

use clap::Args;
use holdfast_proxy::{Address, ConfigError, ProxyConfig};
use tokio::task::JoinSet;

use self::doors::DoorArgs;
pub(super) use self::serving::ServingArgs;
use super::credentials::CredentialsArgs;
use super::pid_file::PidFile;
use super::{Common, CommonArgs, block_on_two_threads};
use crate::config::{Mistakes, Settings, parse};
use crate::limits;
use crate::shutdown::Stop;

/// Runs one proxy: it follows the table, keeps a copy on disk, and passes users' requests to their servers.
///
/// Without a table, neither from a replica nor from its copy, it is not ready and answers 503. Once it has one it never
/// loses it. SIGTERM drains: not ready, wait --drain-delay, accept nothing new, let requests and WebSockets end within
/// --drain-timeout. A second one ends at once. SIGHUP reads --log-level from the file given by --config again; certificates and
/// error pages are followed without being told.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// This proxy's name, as operators see it and as a write reports it when it lags. Each proxy its own.
    #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Where it keeps its copy of the table. Each proxy its own.
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,

    /// Client addresses of the replicas, comma-separated: all of them.
    #[arg(long, env = "HOLDFAST_ENDPOINTS", value_name = "HOST:PORT,...")]
    endpoints: Option<String>,

    /// Where probes and monitoring are answered: HTTP /livez, /readyz, /metrics, /status, and
    /// POST /drain. Empty: nowhere.
    #[arg(
        long,
        env = "HOLDFAST_LISTEN_ADMIN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8002"
    )]
    listen_admin: String,

    /// Answers 503, and is not ready, once no replica has vouched for the table for this long. By default an old table is served
    /// for ever: it is right for all users but the newest, and without it the whole site is away.
    #[arg(long, env = "HOLDFAST_MAX_STALE", value_name = "DURATION")]
    max_stale: Option<String>,

    /// After SIGTERM, goes on as before for this long, only not ready: time for a load balancer to notice.
    #[arg(long, env = "HOLDFAST_DRAIN_DELAY", value_name = "DURATION", default_value = "10s")]
    drain_delay: String,

    /// After that, how long requests and WebSockets may take to end by themselves. In the last half of it, a minute at most,
    /// WebSockets are told to end, one after the other.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "60s")]
    drain_timeout: String,

    /// Writes the process id into this file, and removes it at the end.
    #[arg(long, env = "HOLDFAST_PID_FILE", value_name = "FILE")]
    pid_file: Option<String>,

    /// Ends in good order when standard input ends, and takes no `POST /drain`. `holdfast up` holds the other end of it.
    #[arg(long, hide = true)]
    exit_with_parent: bool,

    #[command(flatten)]
    credentials: CredentialsArgs,

    #[command(flatten)]
    doors: DoorArgs,

    #[command(flatten)]
    serving: ServingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: ProxyArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let (config, common) = read(&args, &mut settings)?;
    common.start_logging();
    limits::raise_open_files();
    block_on_two_threads(async {
        let mut tasks = JoinSet::new();
        let stop = Stop::on_signals(&mut tasks)?;
        super::log_level_follows_its_file(&mut tasks)?;
        if args.exit_with_parent {
            stop.with_parent(&mut tasks)?;
        }
        let proxy = async {
            let proxy = config.build().await?;
            let _pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
            proxy.run(stop.gracefully.clone()).await?;
            anyhow::Ok(())
        };
        stop.run(proxy).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read(args: &ProxyArgs, settings: &mut Settings) -> Result<(ProxyConfig, Common), Mistakes> {
    let name = settings.read_required(
        "name",
        args.name.as_deref(),
        "give this proxy's name, like p0",
        parse::name,
    );
    let data_dir = args.data_dir.as_deref();
    let data_dir = settings.read_required(
        "data-dir",
        data_dir,
        "give a directory of this proxy alone",
        parse::directory,
    );
    let hint = "list the replicas' client addresses, like 10.0.0.1:7011,10.0.0.2:7011,10.0.0.3:7011";
    let endpoints = settings.read_required("endpoints", args.endpoints.as_deref(), hint, parse::endpoints);
    let endpoints = args.credentials.read(settings, "endpoints", endpoints);
    let doors = args.doors.read(settings);
    let ip = doors.as_ref().map_or(Ipv6Addr::UNSPECIFIED.into(), |doors| doors.ip);
    let serving = args.serving.read(settings, ip);
    let listen_admin = match args.listen_admin.as_str() {
        "" => Some(None),
        address => settings.read("listen-admin", address, parse::listen_address).map(Some),
    };
    if let Some(Some(admin)) = listen_admin {
        let mut ports = doors.iter().flat_map(|doors| &doors.listen).filter_map(Address::port);
        if ports.any(|port| port != 0 && port == admin.port()) {
            let problem = "users come in by the same port: give each listener its own";
            settings.refuse("listen-admin", &args.listen_admin, problem);
        }
    }
    let max_stale = settings.read_optional("max-stale", args.max_stale.as_deref(), parse::duration);
    let drain_delay = settings.read("drain-delay", &args.drain_delay, parse::duration);
    let drain_timeout = settings.read("drain-timeout", &args.drain_timeout, parse::duration);
    let common = args.common.read(settings, "info");
    let config = (|| {
        let config = ProxyConfig {
            name: name?,
            endpoints: endpoints?,
            listen: doors?.listen,
            data_dir: data_dir?,
            listen_admin: listen_admin?,
            // Other accounts of the parent's machine get there, too.
            drain_on_request: !args.exit_with_parent,
            max_stale: max_stale?,
            drain_delay: drain_delay?,
            drain_timeout: drain_timeout?,
            ..serving?
        };
        Some((config, common?))
    })();
    if let Some((config, _)) = &config
        && !settings.has_mistakes()
        && let Err(ConfigError(mistakes)) = config.validate()
    {
        mistakes
            .iter()
            .for_each(|mistake| settings.refuse_as(mistake.to_string()));
    }
    settings.finish(config)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::time::Duration;

    use clap::{Command, FromArgMatches};
    use holdfast_proxy::{AccessLogTo, ErrorPages, WebsocketActivity};

    use super::*;
    use crate::config;

    fn told(flags: &[&str]) -> Result<ProxyConfig, String> {
        let required = ["--name", "p0", "--data-dir", "/tmp", "--endpoints", "127.0.0.1:7011"];
        let line = ["holdfast", "proxy"].iter().chain(&required).chain(flags);
        let line: Vec<OsString> = line.map(OsString::from).collect();
        let command = || Command::new("holdfast").subcommand(ProxyArgs::augment_args(Command::new("proxy")));
        let (matches, mut settings) = config::load(command, &line).unwrap();
        let args = ProxyArgs::from_arg_matches(matches.subcommand().unwrap().1).unwrap();
        read(&args, &mut settings)
            .map(|(config, _)| config)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn without_flags_a_proxy_changes_nothing_on_the_way() {
        let config = told(&[]).unwrap();
        assert!(matches!(config.listen[..], [Address::Tcp(address)] if address.port() == 8000));
        assert!(config.tls.is_none() && config.redirect.is_none() && config.default_target.is_none());
        assert!(config.max_stale.is_none() && config.drain_on_request);
        assert!(!told(&["--exit-with-parent"]).unwrap().drain_on_request);
        let seconds = Duration::from_secs;
        assert_eq!(
            (config.header_timeout, config.body_timeout, config.keep_alive_timeout),
            (seconds(10), seconds(60), seconds(30))
        );
        assert!(config.allow_targets.is_empty() && config.client_timeout.is_none() && config.target_timeout.is_none());
        let policy = config.policy;
        assert!(policy.x_forward && policy.prepend_path && policy.include_prefix);
        assert!(!policy.change_origin && !policy.auto_rewrite && policy.custom_headers.is_empty());
        assert_eq!(config.error_pages, ErrorPages::BuiltIn);
        assert!(config.access_log.is_none());
    }

    #[test]
    fn what_configurable_http_proxy_is_told_a_proxy_may_be_told() {
        let config = told(&[
            "--socket=/run/x.sock",
            "--listen=127.0.0.1:9000,unix:/run/y.sock",
            "--default-target=http://127.0.0.1:8081",
            "--error-target",
            "http://127.0.0.1:8081/hub/error",
            "--no-x-forward",
            "--no-prepend-path",
            "--no-include-prefix",
            "--change-origin",
            "--auto-rewrite",
            "--protocol-rewrite=https",
            "--custom-header",
            "X-A: 1",
            "--custom-header",
            "X-B: 2, 3",
            "--insecure",
            "--timeout=5s",
            "--proxy-timeout=6s",
            "--header-timeout=3s",
            "--body-timeout=4s",
            "--keep-alive-timeout=7s",
            "--trusted-proxies=10.0.0.0/8,unix",
            "--allow-targets=10.0.0.0/8:8888,http+unix:///run",
            "--max-connections=10",
            "--max-connections-per-address=2",
            "--max-stale=1m",
            "--access-log=/var/log/holdfast.json",
            "--ws-activity=connection",
            "--activity-interval=100ms",
        ])
        .unwrap();
        let listen: Vec<String> = config.listen.iter().map(Address::to_string).collect();
        assert_eq!(listen, ["unix:/run/x.sock", "127.0.0.1:9000", "unix:/run/y.sock"]);
        assert!(config.default_target.is_some() && matches!(config.error_pages, ErrorPages::Target(_)));
        let policy = &config.policy;
        assert!(!policy.x_forward && !policy.prepend_path && !policy.include_prefix);
        assert!(policy.change_origin && policy.auto_rewrite && policy.protocol_rewrite.is_some());
        assert_eq!(
            (policy.custom_headers.len(), &policy.custom_headers["x-b"]),
            (2, &"2, 3".parse().unwrap())
        );
        assert!(config.target_tls.insecure);
        assert_eq!(config.client_timeout, Some(Duration::from_secs(5)));
        assert_eq!(config.target_timeout, Some(Duration::from_secs(6)));
        assert_eq!(config.header_timeout, Duration::from_secs(3));
        assert_eq!(config.body_timeout, Duration::from_secs(4));
        assert_eq!(config.keep_alive_timeout, Duration::from_secs(7));
        assert_eq!(config.allow_targets.len(), 2);
        assert_eq!(config.max_stale, Some(Duration::from_secs(60)));
        assert_eq!(
            (config.connections_max, config.connections_per_address_max),
            (10, Some(2))
        );
        assert_eq!(
            config.access_log,
            Some(AccessLogTo::File("/var/log/holdfast.json".into()))
        );
        assert_eq!(config.websocket_activity, WebsocketActivity::Connection);
        assert_eq!(config.activity_interval, Duration::from_millis(100));
    }

    #[test]
    fn every_mistake_in_the_flags_is_reported_at_once() {
        let said = told(&[
            "--port=x",
            "--listen=here",
            "--ssl-cert=/nonexistent",
            "--ssl-request-cert",
            "--ssl-protocol=SSLv3",
            "--ssl-ciphers=HIGH",
            "--redirect-port=80000",
            "--redirect-to=x",
            "--error-target=x",
            "--error-path=/dev/null",
            "--custom-header=none",
            "--trusted-proxies=everybody",
            "--allow-targets=ftp://x",
            "--protocol-rewrite=gopher",
            "--client-ssl-key=/nonexistent",
            "--max-connections=0",
            "--proxy-timeout=5",
            "--ws-activity=all",
            "--activity-interval=0s",
        ])
        .unwrap_err();
        for part in [
            "--port \"x\"",
            "--ssl-cert and --ssl-key go together",
            "--ssl-protocol \"SSLv3\": must be TLSv1_2",
            "--ssl-ciphers \"HIGH\": \"HIGH\" is none of the ciphers",
            "--listen \"here\"",
            "--ssl-cert \"/nonexistent\": cannot be read",
            "--ssl-request-cert and --ssl-reject-unauthorized need --ssl-ca",
            "--redirect-port \"80000\"",
            "--redirect-to \"x\"",
            "--error-target \"x\"",
            "--error-path \"/dev/null\"",
            "--error-target and --error-path exclude each other",
            "--custom-header \"none\": a colon is expected",
            "--trusted-proxies \"everybody\"",
            "--allow-targets \"ftp://x\"",
            "--protocol-rewrite \"gopher\"",
            "--client-ssl-key \"/nonexistent\"",
            "--max-connections \"0\"",
            "--proxy-timeout \"5\": has no unit",
            "--ws-activity \"all\"",
            "--activity-interval \"0s\"",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        let alone = told(&["--redirect-port=8080", "--ssl-request-cert", "--ssl-protocol=TLSv1_3"]).unwrap_err();
        for flag in ["redirect-port", "ssl-request-cert", "ssl-protocol"] {
            assert!(alone.contains(&format!("--{flag} needs a certificate")), "{alone}");
        }
        let long = told(&["--header-timeout=1h"]).unwrap_err();
        assert!(
            long.contains("header_timeout \"3600s\": must be from 1ms to 300s"),
            "{long}"
        );
        let same = told(&["--listen=127.0.0.1:8002"]).unwrap_err();
        assert!(
            same.contains("--listen-admin \"127.0.0.1:8002\": users come in"),
            "{same}"
        );
    }
}
