//! `holdfast proxy`: serves users from the table.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use holdfast_proxy::{ConfigError, ProxyConfig};
use tokio::task::JoinSet;

use super::{Common, CommonArgs, block_on};
use crate::config::{Mistakes, Settings, parse};
use crate::limits;
use crate::shutdown::Stop;

/// Runs one proxy: it follows the table, keeps a copy on disk, and passes users' requests to their servers.
///
/// Without a table, neither from a replica nor from its copy, it is not ready and answers 503. Once it has one it never
/// loses it. SIGTERM drains: not ready, wait --drain-delay, accept nothing new, let requests and WebSockets end within
/// --drain-timeout. A second one ends at once.
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

    /// Serves users on this address. [default: every address]
    #[arg(long, env = "HOLDFAST_IP", value_name = "IP")]
    ip: Option<String>,

    /// Serves users on this port: plain HTTP and WebSockets, and /_chp_healthz.
    #[arg(long, env = "HOLDFAST_PORT", value_name = "PORT", default_value = "8000")]
    port: String,

    /// Where probes and monitoring are answered: HTTP /livez, /readyz, /metrics, /status. Empty: nowhere.
    #[arg(
        long,
        env = "HOLDFAST_LISTEN_ADMIN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8002"
    )]
    listen_admin: String,

    /// After SIGTERM, goes on as before for this long, only not ready: time for a load balancer to notice.
    #[arg(long, env = "HOLDFAST_DRAIN_DELAY", value_name = "DURATION", default_value = "10s")]
    drain_delay: String,

    /// After that, how long requests and WebSockets may take to end by themselves.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "60s")]
    drain_timeout: String,

    /// Ends in good order when standard input ends. `holdfast up` holds the other end of it.
    #[arg(long, hide = true)]
    exit_with_parent: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: ProxyArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let (config, common) = read(&args, &mut settings)?;
    common.start_logging();
    limits::raise_open_files();
    block_on(async {
        let mut tasks = JoinSet::new();
        let stop = Stop::on_signals(&mut tasks)?;
        if args.exit_with_parent {
            stop.with_parent(&mut tasks)?;
        }
        let proxy = async {
            let proxy = config.build().await?;
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
    let ip = settings.read("ip", args.ip.as_deref().unwrap_or_default(), parse::ip);
    let port = settings.read("port", &args.port, parse::port);
    let listen_admin = match args.listen_admin.as_str() {
        "" => Some(None),
        address => settings.read("listen-admin", address, parse::listen_address).map(Some),
    };
    if let (Some(port), Some(Some(admin))) = (port, listen_admin)
        && port != 0
        && port == admin.port()
    {
        settings.refuse(
            "port",
            &args.port,
            "--listen-admin has the same port: give each listener its own",
        );
    }
    let drain_delay = settings.read("drain-delay", &args.drain_delay, parse::duration);
    let drain_timeout = settings.read("drain-timeout", &args.drain_timeout, parse::duration);
    let common = args.common.read(settings, "info");
    let config = (|| {
        let mut config = ProxyConfig::new(name?, endpoints?, SocketAddr::new(ip?, port?), data_dir?);
        config.listen_admin = listen_admin?;
        config.drain_delay = drain_delay?;
        config.drain_timeout = drain_timeout?;
        Some((config, common?))
    })();
    if let Some((config, _)) = &config
        && let Err(ConfigError(mistakes)) = config.validate()
    {
        mistakes
            .iter()
            .for_each(|mistake| settings.refuse_as(mistake.to_string()));
    }
    settings.finish(config)
}
