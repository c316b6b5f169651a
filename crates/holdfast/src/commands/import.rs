//! `holdfast import`: routes from configurable-http-proxy, from a file or from another cluster.

pub(super) mod plan;
pub(super) mod source;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use holdfast_client::{Answer, WriteError};
use holdfast_table::{Batch, Namespace};
use holdfast_wire::errors::Reason;
use serde::Serialize;

use self::plan::Plan;
use self::source::Source;
use super::routes::{read_failed, reader, warn_of_lagging, write_failed, writer};
use super::{Client, ClientArgs, block_on, one_namespace};
use crate::config::{Settings, parse};
use crate::http::{self, TlsArgs};
use crate::output::{self, Format, Progress};

/// Adds and replaces routes as they are in configurable-http-proxy, in a file, or in another cluster.
///
/// All of them or none, as one revision, if they are of one namespace, at most 100,000 and at most 16 MiB; else as few
/// batches as that takes. A source with anything wrong in it is refused, with everything that is wrong. Routes that are
/// here and not there stay, unless --prune. What changes in the table meanwhile is not overwritten: then nothing
/// is written, and the command can be repeated.
///
/// Exit codes: 0 done, or nothing to do; 1 failed; 2 a mistake in the settings.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// JSON as `holdfast export` writes it, or as configurable-http-proxy's GET /api/routes answers; - is standard input.
    #[arg(value_name = "FILE")]
    file: Option<String>,

    /// A running configurable-http-proxy's API, like http://127.0.0.1:8001.
    #[arg(long, env = "HOLDFAST_FROM_CHP", value_name = "URL")]
    from_chp: Option<String>,

    /// A file whose first line is configurable-http-proxy's token, CONFIGPROXY_AUTH_TOKEN.
    #[arg(long, env = "HOLDFAST_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<String>,

    /// Client addresses of another cluster's replicas, comma-separated. All its routes are taken. TLS and token are those of
    /// --endpoints: where it has others, export from there and import the file.
    #[arg(long, env = "HOLDFAST_FROM_ENDPOINTS", value_name = "HOST:PORT,...")]
    from_endpoints: Option<String>,

    /// Configurable-http-proxy runs with --host-routing: the first segment of each path is a host.
    #[arg(long, env = "HOLDFAST_HOST_ROUTING", value_parser = FalseyValueParser::new())]
    host_routing: bool,

    /// Puts all routes into this namespace. [default: their own; configurable-http-proxy's into `default`]
    #[arg(long, env = "HOLDFAST_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Deletes what is not in the source, of the namespaces that it has routes of.
    #[arg(long, env = "HOLDFAST_PRUNE", value_parser = FalseyValueParser::new())]
    prune: bool,

    /// Shows what would change, and changes nothing.
    #[arg(long, env = "HOLDFAST_DRY_RUN", value_parser = FalseyValueParser::new())]
    dry_run: bool,

    /// How long to wait for every live proxy to serve the change, at most 10s. 0s: not at all.
    #[arg(
        long,
        env = "HOLDFAST_WAIT_FOR_PROXIES",
        value_name = "DURATION",
        default_value = "1s"
    )]
    wait_for_proxies: String,

    /// table, or json: {"dry_run", "added", "changed", "pruned", "unchanged", "left", "batches", "revision"}, the first
    /// three with the routespecs.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    tls: TlsArgs,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: ImportArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let source = source(&args, &mut settings);
    let namespace = settings.read_optional("namespace", args.namespace.as_deref(), one_namespace);
    let wait = settings.read("wait-for-proxies", &args.wait_for_proxies, parse::duration);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let complete = source.zip(namespace).zip(wait).zip(format).zip(client);
    let ((((source, namespace), wait), format), client) = settings.finish(complete)?;
    client.common.start_logging();

    block_on(async {
        let plan = plan(&source, namespace, args.prune, &client).await?;
        let batches = plan.batches();
        let count = batches.len();
        let answer = match args.dry_run {
            true => None,
            false => write(batches, wait, &client).await?,
        };
        if let Some(answer) = &answer {
            warn_of_lagging(answer, wait);
        }
        show(&plan, count, answer.as_ref(), args.dry_run, format)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn source(args: &ImportArgs, settings: &mut Settings) -> Option<Source> {
    let chp = settings.read_optional("from-chp", args.from_chp.as_deref(), http::url);
    let token = settings.read_optional("token-file", args.token_file.as_deref(), parse::token);
    let identity = args.tls.read(settings);
    let endpoints = settings.read_optional("from-endpoints", args.from_endpoints.as_deref(), parse::endpoints);
    let endpoints = match endpoints? {
        Some(endpoints) => {
            let credentials = &args.client.credentials;
            Some(Some(credentials.read(settings, "from-endpoints", Some(endpoints))?))
        }
        None => Some(None),
    };
    match (args.file.clone(), chp?, endpoints?) {
        (Some(file), None, None) => Some(Source::File {
            file,
            host_routing: args.host_routing,
        }),
        (None, Some(url), None) => Some(Source::Chp {
            url,
            token: token?,
            identity: identity?,
            host_routing: args.host_routing,
        }),
        (None, None, Some(endpoints)) => Some(Source::Cluster(endpoints)),
        _ => {
            settings.refuse_as("one source is needed, and only one: FILE, --from-chp or --from-endpoints".to_owned());
            None
        }
    }
}

/// Reads the source, then the table, and says what differs.
async fn plan(source: &Source, namespace: Option<Namespace>, prune: bool, client: &Client) -> anyhow::Result<Plan> {
    let (drafts, mut mistakes) = source.read(client.timeout).await?;
    let count = drafts.len() + mistakes.len();
    if count == 0 {
        bail!("there is no route in {source}: nothing was changed");
    }
    let (routes, wrong) = plan::parse(drafts, namespace.as_ref());
    mistakes.extend(wrong);
    let listing = reader(client).list(None, "").await;
    let listing = listing.map_err(|error| read_failed(error, "the routes here cannot be listed", client))?;
    let plan = Plan::new(routes, &listing.routes, prune);
    mistakes.extend(plan.conflicts.iter().cloned());
    if !mistakes.is_empty() {
        bail!(
            "{source}: {} among {}, nothing was changed:\n  {}",
            output::counted(mistakes.len(), "mistake", "mistakes"),
            output::counted(count, "route", "routes"),
            mistakes.join("\n  ")
        );
    }
    Ok(plan)
}

/// One after the other; the last one's answer.
async fn write(batches: Vec<Batch>, wait: Duration, client: &Client) -> anyhow::Result<Option<Answer>> {
    let writer = writer(client, Namespace::default(), wait);
    let mut progress = Progress::default();
    let (count, mut last) = (batches.len(), None);
    for (at, batch) in batches.into_iter().enumerate() {
        progress.say(|| format!("batches: {at} of {count}"));
        let answer = writer.write(batch).await;
        last = Some(answer.map_err(|error| failed(error, at, count, client))?);
    }
    Ok(last)
}

fn failed(error: WriteError, written: usize, batches: usize, client: &Client) -> anyhow::Error {
    let what = match written {
        0 => "the routes cannot be imported".to_owned(),
        written => format!("{written} of {batches} batches are imported, and the next cannot be; repeat it to go on"),
    };
    match error {
        WriteError::Rejected {
            reason: Some(Reason::Precondition),
            message,
        } => anyhow!("{what}: the table has changed meanwhile: {message}\nWhat to do: repeat it."),
        error => write_failed(error, &what, client),
    }
}

#[derive(Serialize)]
struct PlanJson<'a> {
    dry_run: bool,
    added: Vec<&'a str>,
    changed: Vec<&'a str>,
    pruned: Vec<&'a str>,
    unchanged: usize,
    left: usize,
    batches: usize,
    /// Of the last batch; null if nothing was written.
    revision: Option<u64>,
}

fn show(plan: &Plan, batches: usize, answer: Option<&Answer>, dry_run: bool, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&PlanJson {
            dry_run,
            added: plan.added.iter().map(|route| route.spec.as_str()).collect(),
            changed: plan.changed.iter().map(|(_, route)| route.spec.as_str()).collect(),
            pruned: plan.pruned.iter().map(|entry| entry.route.spec.as_str()).collect(),
            unchanged: plan.unchanged,
            left: plan.left,
            batches,
            revision: answer.map(|answer| answer.revision.0),
        });
    }
    if dry_run {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row =
            |change: &str, spec: &str, target: &str| rows.push(vec![change.into(), spec.into(), target.into()]);
        for route in &plan.added {
            row("add", route.spec.as_str(), route.target.as_str());
        }
        for (entry, route) in &plan.changed {
            let target = match entry.route.target == route.target {
                true => format!("{}, other data", route.target),
                false => format!("{} instead of {}", route.target, entry.route.target),
            };
            row("change", route.spec.as_str(), &target);
        }
        for entry in &plan.pruned {
            row("delete", entry.route.spec.as_str(), entry.route.target.as_str());
        }
        if !rows.is_empty() {
            output::table(&["change", "routespec", "target"], &[], rows)?;
        }
    }
    let namespaces: BTreeSet<&str> = plan.namespaces.iter().map(Namespace::as_str).collect();
    let namespaces = namespaces.into_iter().collect::<Vec<_>>().join(", ");
    let what = format!(
        "{} added, {} changed, {} deleted, {} as they were, {} not in the source left alone, in {namespaces}",
        plan.added.len(),
        plan.changed.len(),
        plan.pruned.len(),
        plan.unchanged,
        plan.left,
    );
    let how = output::counted(batches, "batch", "batches");
    output::line(&match (dry_run, answer) {
        (true, _) => format!("would be: {what}; {how}"),
        (false, None) => format!("nothing to do: {what}"),
        (false, Some(answer)) => format!("{what}; {how}, revision {}", answer.revision),
    })
}
