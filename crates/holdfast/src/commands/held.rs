//! `holdfast held`: deletions that look like an accident, and what an operator says of them.

mod confirm;
mod list;
mod reject;

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};
use holdfast_client::{Listing, Operator, OperatorError, ReadError, RouteReader};
use holdfast_table::{Entry, RouteSpec, Settlement};
use serde::Serialize;

use super::{Client, ClientArgs, any_namespace, block_on};
use crate::config::Settings;
use crate::output::{self, Format};

/// As many holds as are ended by one call.
const AT_ONCE: usize = 20_000;

/// Lists the routes whose deletion is held, and decides about them.
///
/// A hub that lost its database deletes every route that it does not know. So when more than 10 routes and more than a quarter
/// of a namespace are deleted within a minute, the hub is told that they are, and they are served on for ten minutes: until
/// then an operator can confirm or reject. A hub that deletes on purpose says so, and nothing of that is held.
#[derive(Debug, Args)]
pub struct HeldArgs {
    #[command(subcommand)]
    command: Option<HeldCommand>,

    #[command(flatten)]
    list: list::ListArgs,
}

#[derive(Debug, Subcommand)]
enum HeldCommand {
    Confirm(confirm::ConfirmArgs),
    Reject(reject::RejectArgs),
}

/// Runs the command.
pub fn run(args: HeldArgs, settings: Settings) -> anyhow::Result<ExitCode> {
    match args.command {
        None => list::run(args.list, settings),
        Some(HeldCommand::Confirm(args)) => confirm::run(args, settings),
        Some(HeldCommand::Reject(args)) => reject::run(args, settings),
    }
}

/// Which of the held routes are meant.
#[derive(Debug, Args)]
struct SettleArgs {
    /// Routespecs that `holdfast held` lists, like /user/alice/.
    #[arg(value_name = "SPEC")]
    specs: Vec<String>,

    /// All that are held now, instead of some.
    #[arg(long, env = "HOLDFAST_ALL", value_parser = FalseyValueParser::new())]
    all: bool,

    /// Only routes of this namespace: what one hub owns. '*': of every namespace.
    #[arg(long, env = "HOLDFAST_NAMESPACE", value_name = "NAMESPACE", default_value = "*")]
    namespace: String,

    /// table, or json: {"settled", "revision"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct SettledJson {
    settled: u64,
    revision: u64,
}

/// Ends holds: of the routes that are held when this begins, in the versions that they have then.
fn settle(args: &SettleArgs, mut settings: Settings, settlement: Settlement) -> anyhow::Result<ExitCode> {
    if args.specs.is_empty() != args.all {
        let text = "SPEC: name routes that `holdfast held` lists, or give --all, and not both";
        settings.refuse_as(text.to_owned());
    }
    let parse = |text: &str| RouteSpec::parse(text).map_err(|error| error.problem);
    let specs: Vec<_> = args
        .specs
        .iter()
        .map(|text| settings.read("SPEC", text, parse))
        .collect();
    let specs: Option<Vec<RouteSpec>> = specs.into_iter().collect();
    let namespace = settings.read("namespace", &args.namespace, any_namespace);
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (((specs, namespace), format), client) = settings.finish(specs.zip(namespace).zip(format).zip(client))?;
    client.common.start_logging();

    let (settled, revision) = block_on(async {
        let held = reader(&client).held(namespace.as_ref(), "").await;
        let held = held.map_err(|error| not_listed(&error, &client))?;
        let mut revision = held.revision.0;
        let meant = meant(held, &specs)?;
        let operator = Operator::new(client.endpoints.clone(), client.timeout);
        let mut settled = 0;
        for some in meant.chunks(AT_ONCE) {
            let answer = operator.settle(settlement, some).await;
            let answer = answer.map_err(|error| not_settled(&error, settled, &client))?;
            settled += answer.settled;
            revision = answer.revision;
        }
        if settled < meant.len() as u64 {
            output::complain(&format!(
                "holdfast: {} of {} were not held any more: put again, or gone by themselves",
                meant.len() as u64 - settled,
                meant.len()
            ));
        }
        Ok((settled, revision))
    })?;
    if format == Format::Json {
        output::json(&SettledJson { settled, revision })?;
        return Ok(ExitCode::SUCCESS);
    }
    let count = usize::try_from(settled).unwrap_or(usize::MAX);
    let routes = output::counted(count, "route", "routes");
    output::line(&match settlement {
        Settlement::Confirm => format!("confirmed: {routes} deleted at revision {revision}"),
        Settlement::Reject => format!("rejected: {routes} listed again at revision {revision}"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Those that are named, or all if none is.
fn meant(held: Listing, specs: &[RouteSpec]) -> anyhow::Result<Vec<Entry>> {
    let is_held = |spec: &&RouteSpec| held.routes.iter().any(|entry| entry.route.spec.key() == spec.key());
    let missing: Vec<&str> = specs
        .iter()
        .filter(|spec| !is_held(spec))
        .map(RouteSpec::as_str)
        .collect();
    if !missing.is_empty() {
        bail!(
            "not held: {}; nothing was decided\nWhat to do: look with `holdfast held` what is.",
            missing.join(", ")
        );
    }
    let mut meant = held.routes;
    meant.retain(|entry| specs.is_empty() || specs.iter().any(|spec| spec.key() == entry.route.spec.key()));
    Ok(meant)
}

fn reader(client: &Client) -> RouteReader {
    RouteReader::new(client.endpoints.clone(), client.timeout)
}

fn not_listed(error: &ReadError, client: &Client) -> anyhow::Error {
    anyhow!(
        "what is held cannot be listed: asked {}: {error}\nWhat to do: look with `holdfast status`, and check \
         --endpoints.",
        client.asked()
    )
}

fn not_settled(error: &OperatorError, before: u64, client: &Client) -> anyhow::Error {
    let next = match error {
        OperatorError::Rejected { .. } => "mend what it names",
        OperatorError::Unavailable { .. } => "look with `holdfast status`, and check --endpoints",
        OperatorError::Unknown { .. } => "look with `holdfast held` what is left, then ask again",
    };
    anyhow!(
        "{before} were decided, the others not: asked {}: {error}\nWhat to do: {next}.",
        client.asked()
    )
}
