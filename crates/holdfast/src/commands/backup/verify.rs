//! `holdfast backup verify`: reads a backup to its end.

use std::process::ExitCode;

use clap::Args;

use super::{read, report};
use crate::commands::CommonArgs;
use crate::config::Settings;
use crate::output::{self, Format};

/// Reads a backup to its end and checks every byte, every route and the digest. Asks no cluster.
///
/// Exit codes: 0 it is sound and can be restored; 1 it cannot be used, and the text says where it is wrong.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The file to check; - is standard input.
    #[arg(value_name = "FILE")]
    file: String,

    /// table, or json: everything that the backup says of itself.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: VerifyArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let common = args.common.read(&mut settings, "warn");
    let (format, common) = settings.finish(format.zip(common))?;
    common.start_logging();
    let backup = read(&args.file)?;
    output::line(&report(&backup, &args.file, format)?)?;
    if format == Format::Table {
        output::line("sound: every byte, every route and the digest are as they were written")?;
    }
    Ok(ExitCode::SUCCESS)
}
