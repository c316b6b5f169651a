//! `holdfast members list`: who they are and how they do.

use std::process::ExitCode;

use clap::Args;

use super::change;
use crate::commands::ClientArgs;
use crate::config::Settings;
use crate::output::Format;

/// Lists the members as the leader sees them, and what it waits for before it changes them by itself.
///
/// Without a leader it is what one replica knows.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// table, or json: {"cluster_id", "leader_id", "node_id_max", "waits_for", "members": [...]}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: ListArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (format, client) = settings.finish(format.zip(client))?;
    change(&client, format, "the members cannot be listed", async |operator| {
        operator.members().await
    })
}
