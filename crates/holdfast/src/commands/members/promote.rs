//! `holdfast members promote`: gives learners a vote.

use std::process::ExitCode;

use clap::Args;

use super::change;
use crate::commands::ClientArgs;
use crate::config::Settings;
use crate::output::Format;

/// Gives learners a vote, all of them in one change; waits until they have caught up.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Learners, by name.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// table, or json: the members afterwards, as `holdfast members list`.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: PromoteArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (format, client) = settings.finish(format.zip(client))?;
    let what = format!("{} cannot be promoted", args.names.join(", "));
    change(&client, format, &what, async |operator| {
        operator.promote(&args.names).await
    })
}
