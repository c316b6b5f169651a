//! `holdfast members remove`: takes members away.

use std::process::ExitCode;

use clap::Args;

use super::{CallArgs, change};
use crate::config::Settings;

/// Takes members away, all of them in one change. Refused if the others would be no quorum.
///
/// A leader among them hands over first. Their ids are retired: they serve nothing any more and say so. Stop them, and
/// take them off --peers: a replica in the --peers of the leader is added again as soon as its data directory is empty.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Members, by name, or by id where two have the same name.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    call: CallArgs,
}

/// Runs the command.
pub fn run(args: RemoveArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    change(
        &args.call,
        settings,
        Some(args.names),
        |names| format!("{} cannot be removed", names.join(", ")),
        async |operator, names| operator.remove(&names).await,
    )
}
