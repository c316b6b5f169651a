//! `holdfast members add`: takes in an empty replica.

use std::process::ExitCode;

use clap::Args;

use super::{CallArgs, change};
use crate::config::{Settings, parse};

/// Adds an empty replica as a learner: it gets the log and serves streams, but has no vote.
///
/// Start it first, on an empty data directory, with a --peers that names the others too. Then add it, and give it a vote
/// with `holdfast members promote`: two at a time if there are three, for four bear no more losses than three. Replicas
/// that are in the --peers of the leader are added without being asked for.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The new replica's name and peer address, like r3=10.0.0.4:7012.
    #[arg(value_name = "NAME=HOST:PORT")]
    replica: String,

    #[command(flatten)]
    call: CallArgs,
}

/// Runs the command.
pub fn run(args: AddArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let replica = settings.read("NAME=HOST:PORT", &args.replica, parse::peer);
    change(
        &args.call,
        settings,
        replica,
        |replica| format!("{} cannot be added", replica.name),
        async |operator, replica| operator.add(&replica.name, &replica.address).await,
    )
}
