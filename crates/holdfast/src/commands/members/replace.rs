//! `holdfast members replace`: an empty replica in the place of one that is lost.

use std::process::ExitCode;

use clap::Args;

use super::{CallArgs, change};
use crate::config::Settings;

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

    #[command(flatten)]
    call: CallArgs,
}

/// Runs the command.
pub fn run(args: ReplaceArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    change(
        &args.call,
        settings,
        Some(args.name),
        |name| format!("{name} cannot be replaced"),
        async |operator, name| operator.replace(&name).await,
    )
}
