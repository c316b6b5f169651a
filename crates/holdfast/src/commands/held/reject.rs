//! `holdfast held reject`: held routes stay.

use std::process::ExitCode;

use clap::Args;
use holdfast_table::Settlement;

use super::{SettleArgs, settle};
use crate::config::Settings;

/// Says that routes should not have been deleted: they are listed again, and were served all the time.
///
/// A hub that still does not know them deletes them again when it next checks its routes, and they are held again: mend the
/// hub first, or stop it.
#[derive(Debug, Args)]
pub struct RejectArgs {
    #[command(flatten)]
    settle: SettleArgs,
}

/// Runs the command.
pub fn run(args: RejectArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    settle(&args.settle, settings, Settlement::Reject)
}
