//! `holdfast held confirm`: held routes go.

use std::process::ExitCode;

use clap::Args;
use holdfast_table::Settlement;

use super::{SettleArgs, settle};
use crate::config::Settings;

/// Says that routes were deleted on purpose: they go now, from the proxies too.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    settle: SettleArgs,
}

/// Runs the command.
pub fn run(args: ConfirmArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    settle(&args.settle, settings, Settlement::Confirm)
}
