//! `holdfast completion`: what a shell needs to complete our command lines.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::config::Settings;
use crate::output;

/// Prints a completion script: `source <(holdfast completion bash)`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// bash, zsh or fish
    #[arg(value_name = "SHELL")]
    shell: String,
}

/// Runs the command.
pub fn run(args: CompletionArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let shell = settings.read("SHELL", &args.shell, |text| match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("must be bash, zsh or fish".into()),
    });
    let shell = settings.finish(shell)?;
    let mut script = Vec::new();
    generate(shell, &mut super::Cli::command(), "holdfast", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
