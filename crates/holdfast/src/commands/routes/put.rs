//! `holdfast routes put`: adds or replaces one route.

use std::process::ExitCode;

use clap::Args;
use holdfast_table::{Data, Route, RouteSpec, Target};

use super::{write_failed, writer, written};
use crate::commands::{ClientArgs, block_on, one_namespace};
use crate::config::{Settings, parse};
use crate::output::Format;

/// Adds a route, or replaces it whole. Done when it is on the disks of a quorum; then waits for the proxies.
///
/// A proxy that does not serve it yet is a warning on standard error, not a failure.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// Which requests: /user/alice/ or alice.hub.example.org/user/alice/.
    #[arg(value_name = "SPEC")]
    spec: String,

    /// Where to: an http://, https:// or http+unix:// URL.
    #[arg(value_name = "TARGET")]
    target: String,

    /// A JSON object to keep with the route.
    #[arg(long, env = "HOLDFAST_DATA", value_name = "JSON", default_value = "{}")]
    data: String,

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
pub fn run(args: PutArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let spec = settings.read("SPEC", &args.spec, |text| {
        RouteSpec::parse(text).map_err(|error| error.problem)
    });
    let target = settings.read("TARGET", &args.target, |text| {
        Target::parse(text).map_err(|error| error.problem)
    });
    let data = settings.read("data", &args.data, |text| {
        Data::parse(text).map_err(|error| error.problem)
    });
    let namespace = settings.read("namespace", &args.namespace, one_namespace);
    let wait = settings.read("wait-for-proxies", &args.wait_for_proxies, parse::duration);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let route = (|| {
        Some(Route {
            spec: spec?,
            target: target?,
            data: data?,
            namespace: namespace?,
        })
    })();
    let (((route, wait), format), client) = settings.finish(route.zip(wait).zip(format).zip(client))?;
    client.common.start_logging();

    let spec = route.spec.clone();
    let answer = block_on(async {
        let answer = writer(&client, route.namespace.clone(), wait).put(route).await;
        answer.map_err(|error| write_failed(error, &format!("{spec} cannot be put"), &client))
    })?;
    let what = if answer.changed {
        format!("put {spec}")
    } else {
        format!("{spec} was so already")
    };
    written(&answer, &what, wait, format)?;
    Ok(ExitCode::SUCCESS)
}
