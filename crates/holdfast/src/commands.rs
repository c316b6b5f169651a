//! The commands; the path of a file is the command.

mod backup;
mod chp;
mod completion;
mod credentials;
mod export;
mod held;
mod import;
mod leader;
mod members;
mod pid_file;
mod proxy;
mod reconcile;
mod recover;
mod replica;
mod restore;
mod routes;
mod status;
mod together;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use holdfast_client::Endpoints;
use holdfast_table::Namespace;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use self::credentials::CredentialsArgs;
use crate::config::{self, Settings, parse};
use crate::logging::{self, LogFormat, LogLevel};

/// A highly available routing table for JupyterHub: three small replicas keep it, thin proxies serve from it.
///
/// Every flag `--some-thing` is also the environment variable HOLDFAST_SOME_THING and the key `some-thing` of a TOML
/// file given by --config. Flags win over the environment, the environment over the file.
///
/// Exit codes: 0 done, 1 failed, 2 a mistake in the settings (see `holdfast status --help` for that command's own).
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replica(replica::ReplicaArgs),
    Proxy(proxy::ProxyArgs),
    Up(up::UpArgs),
    Chp(chp::ChpArgs),
    Status(status::StatusArgs),
    Routes(routes::RoutesArgs),
    Reconcile(reconcile::ReconcileArgs),
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Held(held::HeldArgs),
    Members(members::MembersArgs),
    Leader(leader::LeaderArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Recover(recover::RecoverArgs),
    Completion(completion::CompletionArgs),
}

/// Runs what the command line asks for.
///
/// # Errors
/// [`config::Mistakes`] in the settings, or why the command failed.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut line: Vec<OsString> = std::env::args_os().collect();
    if chp::is_called_by_name(&line) {
        line.splice(..1, ["holdfast".into(), "chp".into()]);
    }
    let loaded = config::load(Cli::command, &line)
        .and_then(|(matches, settings)| Ok((Cli::from_arg_matches(&matches)?, settings)));
    let (cli, settings) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            // Help as well. Nobody reads what a closed pipe does not take.
            let _ = error.print();
            let code = match error.use_stderr() {
                true if line.get(1).is_some_and(|command| command == "chp") => crate::FAILED,
                true => crate::USAGE,
                false => return Ok(ExitCode::SUCCESS),
            };
            return Ok(ExitCode::from(code));
        }
    };
    match cli.command {
        Command::Replica(args) => replica::run(args, settings),
        Command::Proxy(args) => proxy::run(args, settings),
        Command::Up(args) => up::run(args, settings),
        Command::Chp(args) => chp::run(args, settings),
        Command::Status(args) => status::run(args, settings),
        Command::Routes(args) => routes::run(args, settings),
        Command::Reconcile(args) => reconcile::run(args, settings),
        Command::Import(args) => import::run(args, settings),
        Command::Export(args) => export::run(args, settings),
        Command::Held(args) => held::run(args, settings),
        Command::Members(args) => members::run(args, settings),
        Command::Leader(args) => leader::run(args, settings),
        Command::Backup(args) => backup::run(args, settings),
        Command::Restore(args) => restore::run(args, settings),
        Command::Recover(args) => recover::run(args, settings),
        Command::Completion(args) => completion::run(args, settings),
    }
}

/// At each SIGHUP reads the log level again, from where it was read at the start.
///
/// # Errors
/// The signal cannot be handled.
fn log_level_follows_its_file(tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be handled")?;
    tasks.spawn(async move {
        while hangup.recv().await.is_some() {
            match log_level() {
                Ok(level) => {
                    logging::change_level(&level);
                    tracing::info!(%level, "SIGHUP: the log level is read again");
                }
                Err(error) => tracing::error!("SIGHUP: the log level stays: {error:#}"),
            }
        }
    });
    Ok(())
}

/// Goes on at each SIGHUP, for a role that has nothing to read again.
///
/// # Errors
/// The signal cannot be handled.
fn hangups_change_nothing(tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be handled")?;
    tasks.spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: nothing changes; SIGTERM stops");
        }
    });
    Ok(())
}

fn log_level() -> anyhow::Result<LogLevel> {
    let line: Vec<OsString> = std::env::args_os().collect();
    let (matches, mut settings) = config::load(Cli::command, &line)?;
    let (_, role) = matches.subcommand().context("no role")?;
    let common = CommonArgs::from_arg_matches(role)?.read(&mut settings, "info");
    Ok(settings.finish(common)?.level)
}

/// Runs to its end what has tasks that must not wait for it: a role, or what prints to a pipe and follows a stream.
fn block_on_threads(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    run_on(Builder::new_multi_thread(), command)
}

/// Runs a proxy to its end, which serves its users on threads of its own.
fn block_on_two_threads(proxy: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(1);
    run_on(runtime, proxy)
}

/// Runs an operator's command to its end, on this thread alone: most take longer to start than to be answered.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    run_on(Builder::new_current_thread(), command)
}

fn run_on<T>(mut runtime: Builder, future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = runtime.enable_all().build();
    runtime
        .context("the asynchronous runtime cannot start")?
        .block_on(future)
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration and logs")]
struct CommonArgs {
    /// Reads settings from this TOML file; its keys are the flags' names without dashes in front. An unknown key is an
    /// error.
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// How log lines look on standard error: text, or json (one object per line).
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: String,

    /// What is logged: off, error, warn, info, debug or trace, or directives like info,holdfast_proxy=debug.
    /// [default: info for replica, proxy and up; warn for the others]
    #[arg(long, env = "HOLDFAST_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
}

/// How to log.
#[derive(Debug)]
struct Common {
    format: LogFormat,
    level: LogLevel,
}

impl CommonArgs {
    fn read(&self, settings: &mut Settings, default_level: &str) -> Option<Common> {
        // Named by clap already, read by `config::load`.
        let _ = &self.config;
        let format = settings.read("log-format", &self.log_format, LogFormat::parse);
        let level = self.log_level.as_deref().unwrap_or(default_level);
        let level = settings.read("log-level", level, LogLevel::parse);
        Some(Common {
            format: format?,
            level: level?,
        })
    }
}

impl Common {
    fn start_logging(&self) {
        logging::start(self.format, &self.level);
    }
}

/// What every command takes that asks a cluster.
#[derive(Debug, Args)]
struct ClientArgs {
    /// Client addresses of the replicas, comma-separated. Any of them will do; more of them help when one is down.
    #[arg(
        long,
        env = "HOLDFAST_ENDPOINTS",
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:7011"
    )]
    endpoints: String,

    /// Gives up after this long. An election takes well under a second, so this is for what does not heal by itself.
    #[arg(long, env = "HOLDFAST_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    timeout: String,

    #[command(flatten)]
    credentials: CredentialsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Whom to ask, and for how long.
#[derive(Debug)]
struct Client {
    endpoints: Endpoints,
    timeout: Duration,
    common: Common,
}

impl ClientArgs {
    fn read(&self, settings: &mut Settings) -> Option<Client> {
        let endpoints = settings.read("endpoints", &self.endpoints, parse::endpoints);
        let endpoints = self.credentials.read(settings, "endpoints", endpoints);
        let timeout = settings.read("timeout", &self.timeout, parse::positive_duration);
        let common = self.common.read(settings, "warn");
        Some(Client {
            endpoints: endpoints?,
            timeout: timeout?,
            common: common?,
        })
    }
}

impl Client {
    /// For error texts: whom we asked.
    fn asked(&self) -> String {
        self.endpoints.addresses().collect::<Vec<_>>().join(", ")
    }
}

/// `*` means every namespace: `None`.
fn any_namespace(text: &str) -> Result<Option<Namespace>, String> {
    match text {
        "*" => Ok(None),
        text => one_namespace(text).map(Some),
    }
}

fn one_namespace(text: &str) -> Result<Namespace, String> {
    Namespace::parse(text).map_err(|error| error.problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_a_variable_too() {
        fn check(command: &clap::Command, seen: &mut usize) {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let Some(flag) = arg.get_long().filter(|flag| !matches!(*flag, "help" | "version")) else {
                    continue;
                };
                // Its flags are another program's, which has no such variables.
                let own = ["data-dir", "drain-timeout", "trusted-proxies", "allow-targets"];
                let is_chps = command.get_name() == "chp" && !own.contains(&flag);
                if is_chps {
                    assert_eq!(arg.get_env(), None, "chp --{flag}");
                    continue;
                }
                let expected = config::variable(flag);
                assert_eq!(
                    arg.get_env(),
                    Some(expected.as_ref()),
                    "{} --{flag}",
                    command.get_name()
                );
                assert_eq!(arg.get_id().as_str(), flag.replace('-', "_"), "{}", command.get_name());
                assert!(
                    arg.get_help().is_some(),
                    "{} --{flag} explains nothing",
                    command.get_name()
                );
                *seen += 1;
            }
            command.get_subcommands().for_each(|deeper| check(deeper, seen));
        }
        let mut seen = 0;
        check(&Cli::command(), &mut seen);
        assert!(seen > 40, "{seen}");
    }
}
