//! `holdfast routes watch`: every change as it happens.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use holdfast_client::{Subscriber, SubscriberConfig};
use holdfast_table::{Entry, Namespace, Table};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::{Client, ClientArgs, any_namespace, block_on_threads};
use crate::config::Settings;
use crate::output::{self, Format, RouteJson};

/// Prints every change of the table as it happens, until interrupted.
///
/// The first line says the revision that it starts from. Follows the table as a proxy does, without being one: of
/// changes that come at once each route is shown once, with its latest version. A lost connection is made again, and
/// what changed meanwhile is shown then.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only routes of this namespace: what one hub owns. '*': of every namespace.
    #[arg(
        long,
        env = "HOLDFAST_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    namespace: String,

    /// table, or json: one object per line, with "event": "start", "put" or "delete".
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Start { epoch: u64, revision: u64, routes: usize },
    Put { revision: u64, route: RouteJson },
    Delete { revision: u64, routespec: String },
}

/// Runs the command.
pub fn run(args: WatchArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let namespace = settings.read("namespace", &args.namespace, any_namespace);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let ((namespace, format), client) = settings.finish(namespace.zip(format).zip(client))?;
    client.common.start_logging();
    block_on_threads(watch(&client, namespace.as_ref(), format))?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(client: &Client, namespace: Option<&Namespace>, format: Format) -> anyhow::Result<()> {
    let subscriber = Subscriber::new(SubscriberConfig {
        endpoints: client.endpoints.clone(),
        name: format!("watch-{}", std::process::id()),
        proxy: false,
        cached: None,
    });
    let table = subscriber.table();
    let mut positions = table.watch();
    // Both end with this function.
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut tasks = JoinSet::new();
    tasks.spawn(subscriber.run(stop));

    if tokio::time::timeout(client.timeout, positions.wait_for(Option::is_some))
        .await
        .is_err()
    {
        bail!(
            "no replica handed out the table within {:?}: asked {}\nWhat to do: look with `holdfast status`, and check \
             --endpoints.",
            client.timeout,
            client.asked()
        );
    }
    let mut shown: Option<Arc<Table>> = None;
    loop {
        positions.mark_unchanged();
        if let Some(now) = table.load() {
            let events = match &shown {
                Some(before) => changes(before, &now, namespace),
                None => vec![Event::Start {
                    epoch: now.epoch().0,
                    revision: now.revision().0,
                    routes: namespace.map_or(now.len(), |namespace| now.count(namespace)),
                }],
            };
            events.iter().try_for_each(|event| print(event, format))?;
            shown = Some(now);
        }
        // Ends when the subscriber does, which it does not while we hold its token.
        positions.changed().await?;
    }
}

/// What differs, in the order of revisions. A deletion has no revision of its own any more: it shows the one that the
/// table is at.
fn changes(before: &Table, now: &Table, namespace: Option<&Namespace>) -> Vec<Event> {
    let wanted = |entry: &Entry| namespace.is_none_or(|namespace| entry.route.namespace == *namespace);
    let mut puts: Vec<&Entry> = Vec::new();
    let mut new = 0;
    for entry in now.iter() {
        match before.get(entry.route.spec.key()) {
            Some(old) if old == entry => {}
            Some(_) => puts.push(entry),
            None => {
                new += 1;
                puts.push(entry);
            }
        }
    }
    puts.retain(|entry| wanted(entry));
    puts.sort_by_key(|entry| entry.modified);

    let mut events = Vec::new();
    // Counting saves a second walk over the whole table, most of the time.
    if before.len() + new != now.len() {
        let gone = before
            .iter()
            .filter(|entry| now.get(entry.route.spec.key()).is_none() && wanted(entry));
        let mut gone: Vec<&str> = Vec::from_iter(gone.map(|entry| entry.route.spec.as_str()));
        gone.sort_unstable();
        events.extend(gone.into_iter().map(|spec| Event::Delete {
            revision: now.revision().0,
            routespec: spec.to_owned(),
        }));
    }
    events.extend(puts.into_iter().map(|entry| Event::Put {
        revision: entry.modified.0,
        route: entry.into(),
    }));
    events
}

fn print(event: &Event, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json_line(event);
    }
    match event {
        Event::Start {
            epoch,
            revision,
            routes,
        } => output::line(&format!(
            "START {revision} epoch {epoch}, {}",
            output::counted(*routes, "route", "routes")
        )),
        Event::Put { revision, route } => output::line(&format!("PUT {revision} {} {}", route.routespec, route.target)),
        Event::Delete { revision, routespec } => output::line(&format!("DELETE {revision} {routespec}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::{Batch, Route, RouteSpec};

    fn put(table: &mut Table, spec: &str, namespace: &str) {
        let route = Route::parse(spec, "http://10.0.0.1:80", "", namespace).unwrap();
        table.apply(&Batch::put(route)).unwrap();
    }

    fn shown(events: &[Event]) -> Vec<String> {
        let show = |event: &Event| match event {
            Event::Start { revision, .. } => format!("START {revision}"),
            Event::Put { revision, route } => format!("PUT {revision} {}", route.routespec),
            Event::Delete { revision, routespec } => format!("DELETE {revision} {routespec}"),
        };
        events.iter().map(show).collect()
    }

    #[test]
    fn every_difference_is_shown_once_and_of_the_wanted_namespace_alone() {
        let mut before = Table::default();
        for (spec, namespace) in [("/a/", ""), ("/b/", ""), ("/c/", "other"), ("/d/", "")] {
            put(&mut before, spec, namespace);
        }
        let mut now = before.clone();
        assert!(changes(&before, &now, None).is_empty());
        let delete = |spec: &str, namespace: &str| {
            Batch::delete(Namespace::parse(namespace).unwrap(), RouteSpec::parse(spec).unwrap())
        };
        now.apply(&delete("/b/", "")).unwrap();
        now.apply(&delete("/c/", "other")).unwrap();
        put(&mut now, "/f/", "other");
        put(&mut now, "/e/", "");
        let other = Namespace::parse("other").unwrap();
        assert_eq!(
            shown(&changes(&before, &now, Some(&other))),
            ["DELETE 8 /c/", "PUT 7 /f/"]
        );
        assert_eq!(
            shown(&changes(&before, &now, None)),
            ["DELETE 8 /b/", "DELETE 8 /c/", "PUT 7 /f/", "PUT 8 /e/"]
        );
    }
}
