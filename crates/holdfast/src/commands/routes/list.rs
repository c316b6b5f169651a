//! `holdfast routes list`: the routes as of now.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{read_failed, reader};
use crate::commands::{ClientArgs, any_namespace, block_on};
use crate::config::Settings;
use crate::output::{self, Format, RouteJson};

/// Lists the routes, as of one revision that is no older than this call.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only routes whose routespec begins with this, like /user/.
    #[arg(long, env = "HOLDFAST_PREFIX", value_name = "PREFIX", default_value = "")]
    prefix: String,

    /// Only routes of this namespace: what one hub owns. '*': of every namespace.
    #[arg(
        long,
        env = "HOLDFAST_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    namespace: String,

    /// table, or json: {"epoch", "revision", "digest", "routes": [...]}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct ListingJson {
    epoch: u64,
    revision: u64,
    digest: String,
    routes: Vec<RouteJson>,
}

/// Runs the command.
pub fn run(args: ListArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let namespace = settings.read("namespace", &args.namespace, any_namespace);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let complete = namespace.zip(format).zip(client);
    let ((namespace, format), client) = settings.finish(complete)?;
    client.common.start_logging();

    let listing = block_on(async {
        let answer = reader(&client).list(namespace.as_ref(), &args.prefix).await;
        answer.map_err(|error| read_failed(error, "the routes cannot be listed", &client))
    })?;
    match format {
        Format::Json => output::json(&ListingJson {
            epoch: listing.epoch.0,
            revision: listing.revision.0,
            digest: listing.digest.to_string(),
            routes: listing.routes.iter().map(RouteJson::from).collect(),
        })?,
        Format::Table => {
            let rows = listing.routes.iter().map(|entry| {
                let route = &entry.route;
                vec![
                    route.spec.to_string(),
                    route.target.to_string(),
                    route.namespace.to_string(),
                    entry.modified.to_string(),
                ]
            });
            output::table(&["routespec", "target", "namespace", "modified"], &[3], rows.collect())?;
            let count = output::counted(listing.routes.len(), "route", "routes");
            output::line(&format!("{count} at revision {}", listing.revision))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
