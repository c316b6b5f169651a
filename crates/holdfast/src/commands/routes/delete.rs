//! `holdfast routes delete`: removes one route.

use std::process::ExitCode;

use clap::Args;
use holdfast_table::RouteSpec;

use super::{write_failed, writer, written};
use crate::commands::{ClientArgs, block_on, one_namespace};
use crate::config::{Settings, parse};
use crate::output::Format;

/// Removes a route. One that is not there is a success, and nothing changes. It is meant to go, so it is never held.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The routespec, like /user/alice/.
    #[arg(value_name = "SPEC")]
    spec: String,

    /// Which hub the route belongs to.
    #[arg(
        long,
        env = "HOLDFAST_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    namespace: String,

    /// How long to wait for every live proxy to serve the change, at most 10s. 0s: not at all.
    #[arg(
        long,
        env = "HOLDFAST_WAIT_FOR_PROXIES",
        value_name = "DURATION",
        default_value = "1s"
    )]
    wait_for_proxies: String,

    /// table, or json: {"revision", "epoch", "changed", "proxies_live", "proxies_synced", "proxies_lagging"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: DeleteArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let spec = settings.read("SPEC", &args.spec, |text| {
        RouteSpec::parse(text).map_err(|error| error.problem)
    });
    let namespace = settings.read("namespace", &args.namespace, one_namespace);
    let wait = settings.read("wait-for-proxies", &args.wait_for_proxies, parse::duration);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let complete = spec.zip(namespace).zip(wait).zip(format).zip(client);
    let ((((spec, namespace), wait), format), client) = settings.finish(complete)?;
    client.common.start_logging();

    let answer = block_on(async {
        let answer = writer(&client, namespace, wait).delete(spec.clone()).await;
        answer.map_err(|error| write_failed(error, &format!("{spec} cannot be deleted"), &client))
    })?;
    let what = if answer.changed {
        format!("deleted {spec}")
    } else {
        format!("{spec} was not there")
    };
    written(&answer, &what, wait, format)?;
    Ok(ExitCode::SUCCESS)
}
