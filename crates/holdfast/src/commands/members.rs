//! `holdfast members`: who keeps the table together, and changes of that.

mod add;
mod list;
mod promote;
mod remove;
mod replace;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use holdfast_client::{Operator, OperatorError};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::{Member, MemberListResponse};
use serde::Serialize;

use super::{Client, ClientArgs, block_on};
use crate::config::Settings;
use crate::output::{self, Format};

/// Shows the cluster's members and changes them.
///
/// Any replica can be asked. Where members change, a quorum must be there; a change that would lose it is refused. The
/// id of a member that was removed or replaced is never given again: its data directory has to be emptied before a
/// replica can join with it.
#[derive(Debug, Args)]
pub struct MembersArgs {
    #[command(subcommand)]
    command: MembersCommand,
}

#[derive(Debug, Subcommand)]
enum MembersCommand {
    List(list::ListArgs),
    Add(add::AddArgs),
    Promote(promote::PromoteArgs),
    Remove(remove::RemoveArgs),
    Replace(replace::ReplaceArgs),
}

/// Runs the command.
pub fn run(args: MembersArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    match args.command {
        MembersCommand::List(args) => list::run(args, settings),
        MembersCommand::Add(args) => add::run(args, settings),
        MembersCommand::Promote(args) => promote::run(args, settings),
        MembersCommand::Remove(args) => remove::run(args, settings),
        MembersCommand::Replace(args) => replace::run(args, settings),
    }
}

/// How each of these commands asks, and shows what it is told.
#[derive(Debug, Args)]
struct CallArgs {
    /// table, or json: {"cluster_id", "leader_id", "node_id_max", "waits_for", "members": [...]}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Asks for `input`, `None` if it is among the mistakes of the command line, and shows the members as they are then.
///
/// `what` says what cannot be done if it fails.
fn change<T>(
    call: &CallArgs,
    mut settings: Settings,
    input: Option<T>,
    what: impl FnOnce(&T) -> String,
    ask: impl AsyncFnOnce(Operator, T) -> Result<MemberListResponse, OperatorError>,
) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &call.output, Format::parse);
    let client = call.client.read(&mut settings);
    let ((input, format), client) = settings.finish(input.zip(format).zip(client))?;
    client.common.start_logging();
    let what = what(&input);
    let members = block_on(async {
        let answer = ask(Operator::new(client.endpoints.clone(), client.timeout), input).await;
        answer.map_err(|error| failed(&error, &what, &client))
    })?;
    show(&members, format)?;
    Ok(ExitCode::SUCCESS)
}

/// What happened, whom we asked, and what to do next.
pub(super) fn failed(error: &OperatorError, what: &str, client: &Client) -> anyhow::Error {
    let next = match error {
        OperatorError::Rejected {
            reason: Some(Reason::Quorum),
            ..
        } => {
            "start the replicas it names, then ask again; if their disks are gone, see `holdfast members replace --help`"
        }
        OperatorError::Rejected { .. } => "mend what it names; nothing was changed",
        OperatorError::Unavailable { .. } => "nothing was changed; look with `holdfast status`, and check --endpoints",
        OperatorError::Unknown { .. } => "look with `holdfast members list` what came of it, then decide",
    };
    anyhow!("{what}: asked {}: {error}\nWhat to do: {next}.", client.asked())
}

#[derive(Serialize)]
struct MembersJson<'a> {
    cluster_id: &'a str,
    leader_id: u64,
    node_id_max: u64,
    waits_for: &'a str,
    members: Vec<MemberJson<'a>>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    id: u64,
    name: &'a str,
    role: &'static str,
    peer_address: &'a str,
    client_address: &'a str,
    matched_index: Option<u64>,
    contact_age_ms: Option<u64>,
}

fn show(list: &MemberListResponse, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&MembersJson {
            cluster_id: &list.cluster_id,
            leader_id: list.leader_id,
            node_id_max: list.node_id_max,
            waits_for: &list.waits_for,
            members: list
                .members
                .iter()
                .map(|member| MemberJson {
                    id: member.node_id,
                    name: &member.name,
                    role: role(list, member),
                    peer_address: &member.peer_address,
                    client_address: &member.client_address,
                    matched_index: member.matched_index,
                    contact_age_ms: member.contact_age_ms,
                })
                .collect(),
        });
    }
    let rows = list.members.iter().map(|member| {
        vec![
            member.node_id.to_string(),
            member.name.clone(),
            role(list, member).to_owned(),
            member.peer_address.clone(),
            member.client_address.clone(),
            member
                .matched_index
                .map_or_else(|| "-".to_owned(), |index| index.to_string()),
            contact(list, member),
        ]
    });
    let header = [
        "id",
        "name",
        "role",
        "peer address",
        "client address",
        "log until",
        "answered",
    ];
    output::table(&header, &[0, 5], rows.collect())?;
    if list.leader_id == 0 {
        output::line("no leader known: this is what one replica knows, and may be old")?;
    }
    if !list.waits_for.is_empty() {
        output::line(&format!("the leader waits for {}", list.waits_for))?;
    }
    Ok(())
}

fn role(list: &MemberListResponse, member: &Member) -> &'static str {
    match (member.node_id == list.leader_id, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    }
}

fn contact(list: &MemberListResponse, member: &Member) -> String {
    match member.contact_age_ms {
        // Who asks is not asked.
        _ if member.node_id == list.leader_id || list.leader_id == 0 => "-".to_owned(),
        None => "never".to_owned(),
        Some(ms) if ms < 10_000 => format!("{ms} ms ago"),
        Some(ms) => format!("{} s ago", ms / 1000),
    }
}
