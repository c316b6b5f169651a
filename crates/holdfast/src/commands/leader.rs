//! `holdfast leader`: who leads.

mod r#move;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::config::Settings;

/// Moves the leadership.
#[derive(Debug, Args)]
pub struct LeaderArgs {
    #[command(subcommand)]
    command: LeaderCommand,
}

#[derive(Debug, Subcommand)]
enum LeaderCommand {
    Move(r#move::MoveArgs),
}

/// Runs the command.
pub fn run(args: LeaderArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    match args.command {
        LeaderCommand::Move(args) => r#move::run(args, settings),
    }
}
