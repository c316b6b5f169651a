//! `holdfast held`: what is held now.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use holdfast_table::Hold;
use serde::Serialize;

use super::{not_listed, reader};
use crate::commands::{ClientArgs, any_namespace, block_on};
use crate::config::Settings;
use crate::output::{self, Format, RouteJson};

/// What to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only routes whose routespec begins with this, like /user/.
    #[arg(long, env = "HOLDFAST_PREFIX", value_name = "PREFIX", default_value = "")]
    prefix: String,

    /// Only routes of this namespace: what one hub owns. '*': of every namespace.
    #[arg(long, env = "HOLDFAST_NAMESPACE", value_name = "NAMESPACE", default_value = "*")]
    namespace: String,

    /// table, or json: {"epoch", "revision", "held": [{"route", "since_ms", "until_ms"}]}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct ListingJson {
    epoch: u64,
    revision: u64,
    held: Vec<HeldJson>,
}

#[derive(Serialize)]
struct HeldJson {
    route: RouteJson,
    since_ms: u64,
    until_ms: u64,
}

/// Runs the command.
pub fn run(args: ListArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let namespace = settings.read("namespace", &args.namespace, any_namespace);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let ((namespace, format), client) = settings.finish(namespace.zip(format).zip(client))?;
    client.common.start_logging();

    let listing = block_on(async {
        let answer = reader(&client).held(namespace.as_ref(), &args.prefix).await;
        answer.map_err(|error| not_listed(&error, &client))
    })?;
    let held = listing.routes.iter().zip(&listing.holds);
    match format {
        Format::Json => output::json(&ListingJson {
            epoch: listing.epoch.0,
            revision: listing.revision.0,
            held: held
                .map(|(entry, hold)| HeldJson {
                    route: entry.into(),
                    since_ms: hold.since_ms,
                    until_ms: hold.until_ms,
                })
                .collect(),
        })?,
        Format::Table => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let rows = held.map(|(entry, hold)| {
                let route = &entry.route;
                let mut row = vec![
                    route.spec.to_string(),
                    route.target.to_string(),
                    route.namespace.to_string(),
                ];
                row.extend(times(hold, now));
                row
            });
            let rows: Vec<_> = rows.collect();
            let count = output::counted(rows.len(), "route is", "routes are");
            if !rows.is_empty() {
                output::table(&["routespec", "target", "namespace", "deleted", "goes"], &[3, 4], rows)?;
            }
            output::line(&format!("{count} held at revision {}", listing.revision))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How long ago the route was deleted and in what time it goes, by this machine's clock.
fn times(hold: &Hold, now: Duration) -> [String; 2] {
    let since = now.saturating_sub(Duration::from_millis(hold.since_ms));
    let left = Duration::from_millis(hold.until_ms).saturating_sub(now);
    [format!("{} s ago", since.as_secs()), format!("in {} s", left.as_secs())]
}
