//! `holdfast routes list`: the routes as of now.

use std::process::ExitCode;

use clap::Args;
use holdfast_wire::timestamp;
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

    /// table, or json: {"epoch", "revision", "digest", "routes": [...]}. A route tells when it was last active, if that is known.
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
    let active = listing.routes.iter().zip(&listing.last_activity_ms);
    match format {
        Format::Json => output::json(&ListingJson {
            epoch: listing.epoch.0,
            revision: listing.revision.0,
            digest: listing.digest.to_string(),
            routes: active
                .map(|(entry, unix_ms)| RouteJson::from(entry).active_at(*unix_ms))
                .collect(),
        })?,
        Format::Table => {
            let now_ms = timestamp::now_ms();
            let rows = active.map(|(entry, unix_ms)| {
                let route = &entry.route;
                vec![
                    route.spec.to_string(),
                    route.target.to_string(),
                    route.namespace.to_string(),
                    entry.modified.to_string(),
                    ago(now_ms, *unix_ms),
                ]
            });
            let header = ["routespec", "target", "namespace", "modified", "active"];
            output::table(&header, &[3, 4], rows.collect())?;
            let count = output::counted(listing.routes.len(), "route", "routes");
            output::line(&format!("{count} at revision {}", listing.revision))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How long ago that was, by this machine's clock.
fn ago(now_ms: u64, unix_ms: u64) -> String {
    match (unix_ms, now_ms.saturating_sub(unix_ms) / 1000) {
        (0, _) => "-".into(),
        (_, seconds @ 0..120) => format!("{seconds} s ago"),
        (_, seconds @ 120..7_200) => format!("{} min ago", seconds / 60),
        (_, seconds @ 7_200..172_800) => format!("{} h ago", seconds / 3_600),
        (_, seconds) => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_as_people_would() {
        let now = 1_800_000_000_000;
        for (unix_ms, said) in [
            (0, "-"),
            (now + 5_000, "0 s ago"),
            (now - 119_999, "119 s ago"),
            (now - 120_000, "2 min ago"),
            (now - 7_200_000, "2 h ago"),
            (now - 172_800_000, "2 days ago"),
        ] {
            assert_eq!(ago(now, unix_ms), said);
        }
    }
}
