//! `holdfast members remove`: takes members away.

use std::process::ExitCode;

use clap::Args;

use super::change;
use crate::commands::ClientArgs;
use crate::config::Settings;
use crate::output::Format;

/// Takes members away, all of them in one change. Refused if the others would be no quorum.
///
/// A leader among them hands over first. Their ids are retired: they serve nothing any more and say so. Stop them, and
/// take them off --peers: a replica in the --peers of the leader is added again as soon as its data directory is empty.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Members, by name, or by id where two have the same name.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// table, or json: the members afterwards, as `holdfast members list`.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: RemoveArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (format, client) = settings.finish(format.zip(client))?;
    let what = format!("{} cannot be removed", args.names.join(", "));
    change(&client, format, &what, async |operator| {
        operator.remove(&args.names).await
    })
}
