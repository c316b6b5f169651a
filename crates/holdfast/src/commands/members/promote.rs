//! `holdfast members promote`: gives learners a vote.

use std::process::ExitCode;

use clap::Args;

use super::{CallArgs, change};
use crate::config::Settings;

/// Gives learners a vote, all of them in one change; waits until they have caught up.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Learners, by name.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    call: CallArgs,
}

/// Runs the command.
pub fn run(args: PromoteArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    change(
        &args.call,
        settings,
        Some(args.names),
        |names| format!("{} cannot be promoted", names.join(", ")),
        async |operator, names| operator.promote(&names).await,
    )
}
