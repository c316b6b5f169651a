//! `holdfast leader move`: another replica leads.

use std::process::ExitCode;

use clap::Args;
use holdfast_client::Operator;
use serde::Serialize;

use crate::commands::members::failed;
use crate::commands::{ClientArgs, block_on};
use crate::config::{Settings, parse};
use crate::output::{self, Format};

/// Moves the leadership to another voter. Writes wait a moment and none fails.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// To which one, by name. [default: the one whose log is furthest]
    #[arg(long, env = "HOLDFAST_TO", value_name = "NAME")]
    to: Option<String>,

    /// table, or json: {"from", "to", "took_ms"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct MovedJson<'a> {
    from: &'a str,
    to: &'a str,
    took_ms: u32,
}

/// Runs the command.
pub fn run(args: MoveArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let to = settings.read_optional("to", args.to.as_deref(), parse::name);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let ((to, format), client) = settings.finish(to.zip(format).zip(client))?;
    client.common.start_logging();
    let moved = block_on(async {
        let operator = Operator::new(client.endpoints.clone(), client.timeout);
        let answer = operator.move_leader(to.as_deref()).await;
        answer.map_err(|error| failed(&error, "the leadership cannot be moved", &client))
    })?;
    match (format, moved.from_name == moved.to_name) {
        (Format::Json, _) => output::json(&MovedJson {
            from: &moved.from_name,
            to: &moved.to_name,
            took_ms: moved.took_ms,
        })?,
        (Format::Table, true) => output::line(&format!("{} leads already", moved.to_name))?,
        (Format::Table, false) => output::line(&format!(
            "{} leads; {} has handed over, and writes waited for {} ms",
            moved.to_name, moved.from_name, moved.took_ms
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
