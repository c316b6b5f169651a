//! `holdfast up`: a whole cluster on one machine, by one command.

mod claim;
mod plan;
mod readiness;
mod token;

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use holdfast_client::{Credentials, Endpoints};
use holdfast_proxy::{Address, ConfigError, ProxyConfig};
use holdfast_tls::Tokens;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::claim::Claim;
pub(super) use self::claim::LOCK;
use self::plan::Plan;
use super::proxy::ServingArgs;
use super::together::Together;
use super::{Common, CommonArgs, block_on_threads};
use crate::config::{Mistakes, Settings, parse};
use crate::shutdown::Stop;
use crate::supervise::{States, Supervisor};
use crate::{limits, output};

/// More than this on one machine helps nobody.
const PROXIES_MAX: u16 = 64;

/// Runs a whole Holdfast on this machine, for one hub or to try it.
///
/// One replica and one proxy run within this process; more of them run as processes of their own, each started again
/// when it dies. Replica i listens on 127.0.0.1, on the ports --base-port + 10 i (API), + 1 (peers, if any) and + 2
/// (probes); proxy j serves users on --port + j (and redirects those without TLS on --redirect-port + j) and probes on 127.0.0.1,
/// --proxy-admin-base + j.
///
/// Prints a line, `holdfast is up: URL,... api=HOST:PORT,...`, once all of it answers, and after it what a shell has to be
/// told before other commands can ask it: `export HOLDFAST_ENDPOINTS=... HOLDFAST_ENDPOINTS_TOKEN_FILE=...`. SIGTERM or
/// Ctrl-C stops everything in good order, a second one at once; if this process is killed, the others end by themselves.
/// SIGHUP reads --log-level from the file given by --config again, for this process. The routes stay in --data-dir.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where everything is kept: r0, r1, ... of the replicas, p0, p1, ... of the proxies, and up.json, which says while
    /// this runs what listens where. It is made if it is missing.
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,

    /// A file with the tokens that open the API, one a line: every call must show one of them, for other accounts of this
    /// machine reach it, too. Read again when it changes, within 10 s. The proxies show the first one.
    /// [default: api-token in --data-dir, made with a new token if it is missing]
    #[arg(long, env = "HOLDFAST_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<String>,

    /// How many replicas: 1, or 3 so that it goes on when one process dies. For good: the data directory keeps it.
    #[arg(long, env = "HOLDFAST_REPLICAS", value_name = "1|3", default_value = "1")]
    replicas: String,

    /// How many proxies, from 1 to 64.
    #[arg(long, env = "HOLDFAST_PROXIES", value_name = "COUNT", default_value = "1")]
    proxies: String,

    /// Serves users on this address. [default: every address]
    #[arg(long, env = "HOLDFAST_IP", value_name = "IP")]
    ip: Option<String>,

    /// Serves users on this port, and on those after it if there are more proxies.
    #[arg(long, env = "HOLDFAST_PORT", value_name = "PORT", default_value = "8000")]
    port: String,

    /// Serves users on this unix socket instead of --ip and --port, given by its whole path; further proxies on FILE.1, FILE.2, ...
    #[arg(long, env = "HOLDFAST_SOCKET", value_name = "FILE")]
    socket: Option<String>,

    /// The first port of the replicas.
    #[arg(long, env = "HOLDFAST_BASE_PORT", value_name = "PORT", default_value = "7011")]
    base_port: String,

    /// The first port of the proxies' probes, metrics and status.
    #[arg(long, env = "HOLDFAST_PROXY_ADMIN_BASE", value_name = "PORT", default_value = "8100")]
    proxy_admin_base: String,

    /// When stopping: how long the proxies go on as before. For a load balancer before them, which one machine rarely
    /// has.
    #[arg(long, env = "HOLDFAST_DRAIN_DELAY", value_name = "DURATION", default_value = "0s")]
    drain_delay: String,

    /// When stopping: how long requests and WebSockets may take to end by themselves.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    drain_timeout: String,

    /// How long routes are served on that were deleted in numbers that look like an accident; `holdfast held` shows them. 0s:
    /// no deletion is held.
    #[arg(
        long,
        env = "HOLDFAST_HOLD_DELETES_FOR",
        value_name = "DURATION",
        default_value = "10m"
    )]
    hold_deletes_for: String,

    #[command(flatten)]
    serving: ServingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: UpArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let (plan, common) = read(&args, &mut settings)?;
    common.start_logging();
    limits::raise_open_files();
    let claim = Claim::take(&plan)?;
    plan.check_ports()?;
    token::make(&plan.api_token_file)?;
    block_on_threads(async {
        let mut tasks = JoinSet::new();
        let stop = Stop::on_signals(&mut tasks)?;
        super::log_level_follows_its_file(&mut tasks)?;
        let result = match plan.is_embedded() {
            true => stop.run(embedded(&plan, &claim, &stop.gracefully)).await,
            false => supervised(&plan, &claim, &stop).await,
        };
        claim.release();
        result
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read(args: &UpArgs, settings: &mut Settings) -> Result<(Plan, Common), Mistakes> {
    let data_dir = args.data_dir.as_deref();
    let data_dir = settings.read_required(
        "data-dir",
        data_dir,
        "give a directory, like holdfast-data",
        parse::directory,
    );
    let api_token_file = match args.api_token_file.as_deref() {
        Some(file) => settings.read("api-token-file", file, token::parse),
        None => data_dir.as_deref().and_then(|data_dir| {
            let file = token::of(data_dir);
            file.map_err(|problem| settings.refuse_as(problem)).ok()
        }),
    };
    let replicas = settings.read("replicas", &args.replicas, |text| match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("must be 1 or 3: two or four bear no more failures than one or three".to_owned()),
    });
    let proxies = settings.read("proxies", &args.proxies, |text| match text.parse() {
        Ok(count @ 1..=PROXIES_MAX) => Ok(count),
        _ => Err(format!("must be a number from 1 to {PROXIES_MAX}")),
    });
    let ip = settings.read("ip", args.ip.as_deref().unwrap_or_default(), parse::ip);
    let serving = args.serving.read(settings, ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into()));
    let port = settings.read("port", &args.port, parse::first_port);
    let socket = settings.read_optional("socket", args.socket.as_deref(), |path| {
        Address::parse(&format!("unix:{path}")).map(|_| PathBuf::from(path))
    });
    let base_port = settings.read("base-port", &args.base_port, parse::first_port);
    let proxy_admin_base = settings.read("proxy-admin-base", &args.proxy_admin_base, parse::first_port);
    let drain_delay = settings.read("drain-delay", &args.drain_delay, parse::duration);
    let drain_timeout = settings.read("drain-timeout", &args.drain_timeout, parse::duration);
    let hold = settings.read("hold-deletes-for", &args.hold_deletes_for, parse::hold_policy);
    let common = args.common.read(settings, "info");
    let redirect = serving.as_ref().and_then(|serving| serving.redirect);
    if redirect.is_some_and(|redirect| redirect.listen.port() == 0) {
        let problem = "must be a port from 1 to 65535: those of further proxies are counted from it";
        settings.refuse("redirect-port", "0", problem);
    }
    let is_shared = |flag: &OsString| !flag.as_encoded_bytes().starts_with(b"--redirect-port=");
    let serving_flags = settings.flags::<ServingArgs>().into_iter().filter(is_shared);
    let plan = (|| {
        Some(Plan {
            data_dir: data_dir?,
            api_token_file: api_token_file?,
            replicas: replicas?,
            proxies: proxies?,
            ip: ip?,
            port: port?,
            socket: socket?,
            base_port: base_port?,
            proxy_admin_base: proxy_admin_base?,
            drain_delay: drain_delay?,
            drain_timeout: drain_timeout?,
            serving: serving?,
            serving_flags: serving_flags.collect(),
            hold: hold?,
            log_format: args.common.log_format.clone(),
            log_level: args.common.log_level.clone().unwrap_or_else(|| "info".to_owned()),
        })
    })();
    for (flag, value, problem) in plan.iter().flat_map(Plan::problems) {
        settings.refuse(flag, &value.to_string(), &problem);
    }
    if !settings.has_mistakes() {
        let proxies = plan.as_ref().and_then(|plan| {
            let endpoints = Endpoints::parse(&plan.endpoints()).ok()?;
            Some(plan.proxy_configs(&endpoints))
        });
        if let Some(Err(ConfigError(mistakes))) = proxies.iter().flatten().next().map(ProxyConfig::validate) {
            mistakes
                .iter()
                .for_each(|mistake| settings.refuse_as(mistake.to_string()));
        }
    }
    settings.finish(plan.zip(common))
}

/// The replicas, called with the token that opens their API.
fn reachable(plan: &Plan) -> anyhow::Result<Endpoints> {
    let credentials = Credentials {
        tls: None,
        token_file: Some(plan.api_token_file.clone()),
    };
    Ok(Endpoints::parse(&plan.endpoints())?.with(credentials)?)
}

/// One replica and one proxy as tasks of this process.
async fn embedded(plan: &Plan, claim: &Claim, stop: &CancellationToken) -> anyhow::Result<()> {
    claim.note(&States::new())?;
    let api_tokens = Tokens::read(plan.api_token_file.clone())?;
    let endpoints = reachable(plan)?;
    let mut roles = Together::until(stop);
    for config in plan.replica_configs(&api_tokens) {
        let name = config.name.clone();
        let replica = config
            .build()
            .await
            .with_context(|| format!("replica {name} cannot start"))?;
        let stop = stop.clone();
        roles.start(async move { replica.run(stop).await.with_context(|| format!("replica {name} ended")) });
    }
    for config in plan.proxy_configs(&endpoints) {
        let name = config.name.clone();
        let proxy = config
            .build()
            .await
            .with_context(|| format!("proxy {name} cannot start"))?;
        let stop = stop.clone();
        roles.start(async move { proxy.run(stop).await.with_context(|| format!("proxy {name} ended")) });
    }
    let saying_so = async {
        if let Some(ready) = stop.run_until_cancelled(readiness::wait(plan, endpoints, None)).await {
            ready?;
            announce(plan);
            stop.cancelled().await;
        }
        Ok(())
    };
    roles.run(saying_so).await
}

/// Every replica and proxy as a process of its own.
async fn supervised(plan: &Plan, claim: &Claim, stop: &Stop) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program cannot be found")?;
    let endpoints = reachable(plan)?;
    let supervisor = Supervisor::start(plan.children(&program), &stop.gracefully, &stop.now);
    let mut states = supervisor.states();
    let mut ended = std::pin::pin!(supervisor.ended());
    let mut coming_up = std::pin::pin!(readiness::wait(plan, endpoints, Some(states.clone())));
    let mut is_up = false;
    let mut result = Ok(());
    loop {
        // Written again with every change, so that it names the processes that run now.
        let now = states.borrow_and_update().clone();
        if let Err(error) = claim.note(&now) {
            tracing::warn!("{error:#}");
        }
        tokio::select! {
            () = &mut ended => break,
            ready = &mut coming_up, if !is_up => {
                is_up = true;
                match ready {
                    Ok(()) => announce(plan),
                    Err(error) => {
                        tracing::error!("stopping: {error:#}");
                        result = Err(error);
                        stop.gracefully.cancel();
                    }
                }
            }
            changed = states.changed() => if changed.is_err() {
                ended.await;
                break;
            }
        }
    }
    if stop.now.is_cancelled() && result.is_ok() {
        bail!("stopped at once by a second signal");
    }
    result
}

/// Says that we are up, and how others ask us. If nobody listens we are up all the same.
fn announce(plan: &Plan) {
    let line = plan.is_up();
    tracing::info!("{line}");
    if let Err(error) = output::line(&format!("{line}\n{}", plan.environment())) {
        tracing::warn!("standard output is closed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{Command, FromArgMatches};

    use super::*;
    use crate::config;

    fn told(flags: &[&str]) -> Result<Plan, String> {
        told_in("/nonexistent", flags)
    }

    fn told_in(data_dir: &str, flags: &[&str]) -> Result<Plan, String> {
        let required = ["holdfast", "up", "--data-dir", data_dir];
        let line: Vec<OsString> = required.iter().chain(flags).map(OsString::from).collect();
        let command = || Command::new("holdfast").subcommand(UpArgs::augment_args(Command::new("up")));
        let (matches, mut settings) = config::load(command, &line).unwrap();
        let args = UpArgs::from_arg_matches(matches.subcommand().unwrap().1).unwrap();
        read(&args, &mut settings)
            .map(|(plan, _)| plan)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn proxies_are_told_what_up_is_told() {
        let plan = told(&[
            "--proxies=2",
            "--default-target=http://127.0.0.1:8081",
            "--custom-header=X-A: 1, 2",
            "--no-x-forward",
            "--timeout=5s",
        ])
        .unwrap();
        let endpoints = Endpoints::parse(&plan.endpoints()).unwrap();
        let config = &plan.proxy_configs(&endpoints)[1];
        assert!(config.default_target.is_some() && !config.policy.x_forward && config.client_timeout.is_some());
        let arguments = plan.children(Path::new("/bin/holdfast")).pop().unwrap().arguments;
        for flag in [
            "--default-target=http://127.0.0.1:8081",
            "--custom-header=X-A: 1, 2",
            "--no-x-forward=true",
            "--client-timeout=5s",
        ] {
            assert!(
                arguments.iter().any(|argument| argument == flag),
                "{flag}: {arguments:?}"
            );
        }
    }

    #[test]
    fn mistakes_about_proxies_are_found_before_anything_starts() {
        let said = told(&[
            "--redirect-port=0",
            "--proxies=65",
            "--custom-header=none",
            "--socket=x",
        ])
        .unwrap_err();
        for part in [
            "--socket \"x\": must name a socket by its whole path",
            "--redirect-port needs a certificate",
            "--redirect-port \"0\": must be a port from 1",
            "--proxies \"65\"",
            "--custom-header \"none\"",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        let long = told(&["--keep-alive-timeout=48h"]).unwrap_err();
        assert!(long.contains("keep_alive_timeout"), "{long}");
    }

    #[test]
    fn the_api_always_has_a_token_and_one_that_is_none_is_a_mistake_among_others() {
        assert_eq!(told(&[]).unwrap().api_token_file, Path::new("/nonexistent/api-token"));
        let folder = tempfile::tempdir().unwrap();
        let (data_dir, given) = (folder.path().to_str().unwrap(), folder.path().join("given"));
        let flag = format!("--api-token-file={}", given.display());
        let said = told_in(data_dir, &[&flag, "--replicas=2"]).unwrap_err();
        for part in ["2 mistakes", "--api-token-file", "cannot be read", "--replicas \"2\""] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        std::fs::write(&given, "one\n").unwrap();
        assert_eq!(told_in(data_dir, &[&flag]).unwrap().api_token_file, given);

        std::fs::write(folder.path().join("api-token"), "").unwrap();
        let said = told_in(data_dir, &["--replicas=2"]).unwrap_err();
        for part in ["2 mistakes", "api-token: has no token in it", "--replicas \"2\""] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        // Another one is told instead.
        assert!(told_in(data_dir, &[&flag]).is_ok());
    }
}
