//! `holdfast backup`: the whole state of a cluster in one file.

mod save;
mod verify;

use std::fs::File;
use std::io::{BufReader, Read, stdin};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};
use holdfast_replica::backup::{self, Backup};
use serde::Serialize;

use super::ClientArgs;
use crate::config::Settings;
use crate::output::{self, Format};

/// Writes everything that the cluster has agreed on into one file, or checks such a file.
///
/// The backup is taken from one replica's memory while writes go on, and holds every write that was acknowledged before.
/// It is checked while it is written, and stands under its name only when it is whole and on disk. `holdfast restore`
/// makes a new cluster of it.
#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,

    /// The file to write; - is standard output.
    #[arg(value_name = "FILE")]
    file: Option<String>,

    /// Replaces a file of this name.
    #[arg(long, env = "HOLDFAST_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,

    /// Takes what a replica has if no leader confirms within a second that it is the newest. For a cluster without a
    /// quorum.
    #[arg(long, env = "HOLDFAST_STALE_OK", value_parser = FalseyValueParser::new())]
    stale_ok: bool,

    /// table, or json: everything that the backup says of itself. With -, it goes to standard error.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    Verify(verify::VerifyArgs),
}

/// Runs the command.
pub fn run(args: BackupArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(BackupCommand::Verify(args)) => verify::run(args, settings),
        None => save::run(args, settings),
    }
}

/// Reads a backup from a file, or from standard input if it is called `-`.
pub fn read(file: &str) -> anyhow::Result<Backup> {
    let from: Box<dyn Read> = match file {
        "-" => Box::new(stdin().lock()),
        file => Box::new(File::open(file).with_context(|| format!("file {file:?}: cannot be opened"))?),
    };
    backup::read(BufReader::new(from)).with_context(|| format!("file {file:?}"))
}

/// What a backup says of itself.
#[derive(Serialize)]
struct BackupJson<'a> {
    file: &'a str,
    bytes: u64,
    version: &'a str,
    cluster_id: &'a str,
    lineage: Vec<&'a str>,
    epoch: u64,
    revision: u64,
    digest: String,
    routes: u64,
    sessions: usize,
    created_ms: u64,
    replica: &'a str,
    linearizable: bool,
    leader_contact_age_ms: Option<u128>,
}

/// The report on a backup.
fn report(backup: &Backup, file: &str, format: Format) -> anyhow::Result<String> {
    let about = &backup.description;
    let json = BackupJson {
        file,
        bytes: backup.bytes,
        version: &about.version,
        cluster_id: &about.cluster_id,
        lineage: about.lineage.iter().collect(),
        epoch: about.epoch.0,
        revision: about.revision.0,
        digest: about.digest.to_string(),
        routes: about.routes,
        sessions: backup.state.sessions.len(),
        created_ms: about.created_ms,
        replica: &about.replica,
        linearizable: about.linearizable,
        leader_contact_age_ms: about.leader_contact_age.map(|age| age.as_millis()),
    };
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(&json)?);
    }
    let confirmed = match (about.linearizable, about.leader_contact_age) {
        (true, _) => "every write acknowledged before it was taken is in it".to_owned(),
        (false, Some(age)) => {
            format!("NOT confirmed by a leader: the replica last knew one {age:?} before; newer writes may be missing")
        }
        (false, None) => {
            "NOT confirmed by a leader, which the replica did not know; newer writes may be missing".into()
        }
    };
    let facts = [
        ("file", format!("{file} ({} bytes)", json.bytes)),
        ("cluster", about.cluster_id.clone()),
        ("epoch", about.epoch.to_string()),
        ("revision", about.revision.to_string()),
        ("routes", about.routes.to_string()),
        ("digest", about.digest.to_string()),
        (
            "taken",
            format!(
                "{} by replica {} ({})",
                ago(about.created_ms),
                about.replica,
                about.version
            ),
        ),
        ("complete", confirmed),
    ];
    Ok(output::facts(&facts))
}

/// How long ago a moment was, by this machine's clock.
fn ago(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match now.checked_sub(Duration::from_millis(unix_ms)) {
        Some(age) if age.as_secs() < 2 * 60 => format!("{} s ago", age.as_secs()),
        Some(age) if age.as_secs() < 2 * 3600 => format!("{} min ago", age.as_secs() / 60),
        Some(age) if age.as_secs() < 48 * 3600 => format!("{} h ago", age.as_secs() / 3600),
        Some(age) => format!("{} days ago", age.as_secs() / 86_400),
        None => "at a time that has not come yet here".to_owned(),
    }
}
