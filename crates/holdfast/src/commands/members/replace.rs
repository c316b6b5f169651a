//! `holdfast members replace`: an empty replica in the place of one that is lost.

use std::process::ExitCode;

use clap::Args;

use super::change;
use crate::commands::ClientArgs;
use crate::config::Settings;
use crate::output::Format;

/// Puts an empty replica of the same name in the place of a voter that does not answer.
///
/// One voter that lost its disk is replaced without being asked for, as soon as a replica of its name answers with an
/// empty data directory while all others are well. This command is for the rest: several are lost, one after the other,
/// or --auto-replace is false. Start the new one first. Refused if the others would be no quorum; without a quorum
/// nothing can be replaced, and what is left has to be recovered (docs/operating.md).
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// The voter that is lost, by name.
    #[arg(value_name = "NAME")]
    name: String,

    /// table, or json: the members afterwards, as `holdfast members list`.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: ReplaceArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (format, client) = settings.finish(format.zip(client))?;
    let what = format!("{} cannot be replaced", args.name);
    change(&client, format, &what, async |operator| {
        operator.replace(&args.name).await
    })
}
