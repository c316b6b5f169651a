//! `holdfast routes`: looks at routes and changes them.

mod delete;
mod get;
mod list;
mod put;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use holdfast_client::{Answer, ReadError, RouteReader, RouteWriter, WriteError, WriterOptions};
use holdfast_table::Namespace;
use serde::Serialize;

use super::Client;
use crate::config::Settings;
use crate::output::{self, Format};

/// Looks at routes and changes them.
#[derive(Debug, Args)]
pub struct RoutesArgs {
    #[command(subcommand)]
    command: RoutesCommand,
}

#[derive(Debug, Subcommand)]
enum RoutesCommand {
    List(list::ListArgs),
    Get(get::GetArgs),
    Put(put::PutArgs),
    Delete(delete::DeleteArgs),
    Watch(watch::WatchArgs),
}

/// Runs the command.
pub fn run(args: RoutesArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    match args.command {
        RoutesCommand::List(args) => list::run(args, settings),
        RoutesCommand::Get(args) => get::run(args, settings),
        RoutesCommand::Put(args) => put::run(args, settings),
        RoutesCommand::Delete(args) => delete::run(args, settings),
        RoutesCommand::Watch(args) => watch::run(args, settings),
    }
}

pub(super) fn reader(client: &Client) -> RouteReader {
    RouteReader::new(client.endpoints.clone(), client.timeout)
}

pub(super) fn writer(client: &Client, namespace: Namespace, wait_for_proxies: Duration) -> RouteWriter {
    let options = WriterOptions {
        namespace,
        timeout: client.timeout,
        wait_for_proxies,
    };
    RouteWriter::new(client.endpoints.clone(), options)
}

/// What happened, whom we asked, and what to do next.
pub(super) fn read_failed(error: ReadError, what: &str, client: &Client) -> anyhow::Error {
    let next = match &error {
        ReadError::Rejected { .. } => "mend what it names",
        ReadError::Unavailable { .. } => {
            "this says nothing about the routes; look with `holdfast status`, and check --endpoints"
        }
        ReadError::Endpoint(_) => "check --endpoints",
    };
    anyhow!("{what}: asked {}: {error}\nWhat to do: {next}.", client.asked())
}

/// Likewise for a write.
pub(super) fn write_failed(error: WriteError, what: &str, client: &Client) -> anyhow::Error {
    let next = match &error {
        WriteError::Rejected { .. } => "mend what it names; nothing changed",
        WriteError::Unavailable { .. } => "nothing changed; look with `holdfast status`, and check --endpoints",
        WriteError::Unknown { .. } => "look with `holdfast routes get` whether it was written, then decide",
    };
    anyhow!("{what}: asked {}: {error}\nWhat to do: {next}.", client.asked())
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    revision: u64,
    epoch: u64,
    changed: bool,
    proxies_live: u32,
    proxies_synced: u32,
    proxies_lagging: &'a [String],
}

/// A proxy that lags is a warning: the change is durable and will reach it.
pub(super) fn warn_of_lagging(answer: &Answer, waited: Duration) {
    if !answer.proxies_lagging.is_empty() || answer.proxies_synced < answer.proxies_live {
        output::complain(&format!(
            "holdfast: after {waited:?} only {} of {} live proxies serve revision {}; these lag: {}. The change is safe; \
             `holdfast status` shows when they have it.",
            answer.proxies_synced,
            answer.proxies_live,
            answer.revision,
            answer.proxies_lagging.join(", "),
        ));
    }
}

/// Says what a write led to.
fn written(answer: &Answer, what: &str, waited: Duration, format: Format) -> anyhow::Result<()> {
    warn_of_lagging(answer, waited);
    if format == Format::Json {
        return output::json(&AnswerJson {
            revision: answer.revision.0,
            epoch: answer.epoch.0,
            changed: answer.changed,
            proxies_live: answer.proxies_live,
            proxies_synced: answer.proxies_synced,
            proxies_lagging: &answer.proxies_lagging,
        });
    }
    let proxies = match waited.is_zero() {
        true => String::new(),
        false => format!(
            ", {} of {} live proxies serve it",
            answer.proxies_synced, answer.proxies_live
        ),
    };
    output::line(&format!("{what}: revision {}{proxies}", answer.revision))
}
