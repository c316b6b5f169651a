//! `holdfast members list`: who they are and how they do.

use std::process::ExitCode;

use clap::Args;

use super::{CallArgs, change};
use crate::config::Settings;

/// Lists the members as the leader sees them, and what it waits for before it changes them by itself.
///
/// Without a leader it is what one replica knows.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    call: CallArgs,
}

/// Runs the command.
pub fn run(args: ListArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    change(
        &args.call,
        settings,
        Some(()),
        |()| "the members cannot be listed".to_owned(),
        async |operator, ()| operator.members().await,
    )
}
