//! `holdfast reconcile`: where hub, table, proxies and targets disagree, and what of it can be mended without harm.

mod compare;
mod hub;
mod repair;
mod targets;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::FalseyValueParser;
use holdfast_client::Listing;
use holdfast_table::{Namespace, Target};
use hyper::Method;
use serde::{Deserialize, Serialize};

use self::compare::{Disagreement, Kind, Proxy, Seen};
use self::hub::Hub;
use self::repair::Outcome;
use super::routes::{read_failed, reader};
use super::status::{self, judgement};
use super::{Client, ClientArgs, block_on, one_namespace};
use crate::config::{Settings, parse};
use crate::http::{self, Api, TlsArgs};
use crate::output::{self, Format, Progress};

/// What disagrees gets so long to agree: what is under way is no disagreement.
const SETTLE: Duration = Duration::from_secs(2);
/// A proxy answers from memory.
const PROXY_ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Compares what the hub says, the table, every proxy's table and the targets, and lists where they disagree.
///
/// Whatever disagrees is looked at again after two seconds, and listed only if it still does. Without --repair nothing is
/// changed. With it two things are: a ready server's route that is missing is added, by having the hub check its routes,
/// for the hub alone knows the target; and a route whose server the hub does not know and at whose target nobody is
/// any more is deleted, unless it has changed since. All else is for somebody who knows more; how, is listed.
///
/// Nothing is concluded from a part of the hub's users. The token needs the scopes list:users, read:servers,
/// list:services and read:services, and with --repair also proxy. Run it where the targets can be reached.
///
/// Exit codes: 0 no disagreement, or all repaired; 1 some are left; 2 a mistake in the settings, or somebody could not
/// be asked.
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// Where the hub is, or its API: http://127.0.0.1:8081, or http://127.0.0.1:8081/jupyter/hub/api.
    #[arg(long, env = "HOLDFAST_HUB_URL", value_name = "URL")]
    hub_url: Option<String>,

    /// A file whose first line is a token for the hub's API.
    #[arg(long, env = "HOLDFAST_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<String>,

    /// Which routes are the hub's.
    #[arg(
        long,
        env = "HOLDFAST_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    namespace: String,

    /// Proxies to ask themselves, by their admin addresses, comma-separated. All that follow a replica are looked at
    /// through it anyway; this finds those that follow none.
    #[arg(long, env = "HOLDFAST_PROXY_ADMIN", value_name = "HOST:PORT,...", default_value = "")]
    proxy_admin: String,

    /// How long a target may take to accept a connection.
    #[arg(long, env = "HOLDFAST_TARGET_TIMEOUT", value_name = "DURATION", default_value = "2s")]
    target_timeout: String,

    /// Repairs what can be repaired without harm.
    #[arg(long, env = "HOLDFAST_REPAIR", value_parser = FalseyValueParser::new())]
    repair: bool,

    /// Believes a hub that knows no server although the table has routes of users. A hub that lost its database says
    /// the same.
    #[arg(long, env = "HOLDFAST_EMPTY_HUB_OK", value_parser = FalseyValueParser::new())]
    empty_hub_ok: bool,

    /// table, or json: {"epoch", "revision", "routes", "servers", "services", "proxies", "targets", "disagreements":
    /// [...], "repaired", "left"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    tls: TlsArgs,

    #[command(flatten)]
    client: ClientArgs,
}

/// The settings.
struct Reconcile {
    hub: Hub,
    namespace: Namespace,
    proxy_admin: Vec<Target>,
    target_timeout: Duration,
    repair: bool,
    empty_hub_ok: bool,
    client: Client,
}

/// What was found, and what became of it.
struct Report {
    counts: Counts,
    found: Vec<(Disagreement, Outcome)>,
}

/// What was compared.
#[derive(Serialize)]
struct Counts {
    epoch: u64,
    revision: u64,
    routes: usize,
    servers: usize,
    services: usize,
    proxies: usize,
    targets: usize,
}

/// Runs the command.
pub fn run(args: ReconcileArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let hint = "give the hub's address, like http://127.0.0.1:8081";
    let hub_url = settings.read_required("hub-url", args.hub_url.as_deref(), hint, Hub::url);
    let hint = "name a file with a token for the hub's API";
    let token = settings.read_required("token-file", args.token_file.as_deref(), hint, parse::token);
    let namespace = settings.read("namespace", &args.namespace, one_namespace);
    let proxy_admin = settings.read("proxy-admin", &args.proxy_admin, addresses);
    let target_timeout = settings.read("target-timeout", &args.target_timeout, parse::positive_duration);
    let format = settings.read("output", &args.output, Format::parse);
    let identity = args.tls.read(&mut settings);
    let client = args.client.read(&mut settings);
    let reconcile = (|| {
        Some(Reconcile {
            hub: Hub::new(hub_url?, token?, identity?),
            namespace: namespace?,
            proxy_admin: proxy_admin?,
            target_timeout: target_timeout?,
            repair: args.repair,
            empty_hub_ok: args.empty_hub_ok,
            client: client?,
        })
    })();
    let (reconcile, format) = settings.finish(reconcile.zip(format))?;
    reconcile.client.common.start_logging();

    match block_on(reconcile.run()) {
        Ok(report) => show(&report, reconcile.repair, format),
        Err(error) => {
            output::complain(&format!("holdfast: nothing was repaired: {error:#}"));
            Ok(ExitCode::from(crate::USAGE))
        }
    }
}

fn addresses(text: &str) -> Result<Vec<Target>, String> {
    let addresses = text.split(',').map(str::trim).filter(|address| !address.is_empty());
    addresses
        .map(|address| http::url(&format!("http://{}", parse::host_port(address)?)))
        .collect()
}

impl Reconcile {
    async fn run(&self) -> anyhow::Result<Report> {
        self.hub.check_token(self.repair).await?;
        let (mut counts, mut found) = self.look().await?;
        if !found.is_empty() {
            tokio::time::sleep(SETTLE).await;
            let (later, still) = self.look().await?;
            let still = still
                .into_iter()
                .filter(|now| found.iter().any(|earlier| now.is_same(earlier)));
            (counts, found) = (later, still.collect());
        }
        let found = match self.repair {
            true => self.repair(found).await,
            false => found.into_iter().map(|found| (found, Outcome::NotTried)).collect(),
        };
        Ok(Report { counts, found })
    }

    /// Looks at everything once, at the hub last: a route that it does not know of then has had none for as long as it
    /// took to find its target dead.
    async fn look(&self) -> anyhow::Result<(Counts, Vec<Disagreement>)> {
        let mut progress = Progress::default();
        let listing = self.listing().await?;
        let targets = listing.routes.iter().map(|entry| &entry.route.target);
        let reached = targets::reach(targets, self.target_timeout, &mut progress).await;
        let (proxies, silent_replicas) = self.proxies(&listing).await;
        let wanted = self.hub.wanted(&mut progress).await?;
        let of_users = compare::routes_of_users(&listing.routes);
        if wanted.servers.is_empty() && of_users > 0 && !self.empty_hub_ok {
            bail!(
                "the hub knows no server of anybody, and the table has {}. A hub that lost its database says the same\n\
                 What to do: look at the hub first. If it is right, say so with --empty-hub-ok.",
                output::counted(of_users, "route of a user", "routes of users")
            );
        }
        let found = compare::compare(&Seen {
            routes: &listing.routes,
            wanted: &wanted,
            reached: &reached,
            proxies: &proxies,
            silent_replicas: &silent_replicas,
        });
        let counts = Counts {
            epoch: listing.epoch.0,
            revision: listing.revision.0,
            routes: listing.routes.len(),
            servers: wanted.servers.len(),
            services: wanted.services.len(),
            proxies: proxies.len(),
            targets: reached.len(),
        };
        Ok((counts, found))
    }

    async fn listing(&self) -> anyhow::Result<Listing> {
        let answer = reader(&self.client).list(Some(&self.namespace), "").await;
        answer.map_err(|error| read_failed(error, "the routes cannot be listed", &self.client))
    }

    /// Every proxy that a replica knows or that was named, and the replicas that did not answer.
    async fn proxies(&self, listing: &Listing) -> (Vec<Proxy>, Vec<String>) {
        let goal = (listing.epoch.0, listing.revision.0);
        let reports = status::ask(&reader(&self.client)).await;
        let followed = judgement::proxies(&reports, goal).map(|proxy| Proxy {
            name: proxy.name.to_owned(),
            problem: match proxy.agreement {
                judgement::Agreement::Different => Some((
                    Kind::ProxyDiffers,
                    format!("at revision {}, says replica {}", proxy.revision, proxy.replica),
                )),
                _ if proxy.lag > 0 => Some((
                    Kind::ProxyBehind,
                    format!(
                        "at revision {} of {}, says replica {}",
                        proxy.revision, goal.1, proxy.replica
                    ),
                )),
                _ => None,
            },
        });
        let mut proxies: Vec<Proxy> = followed.collect();
        for url in &self.proxy_admin {
            let asked = ask_proxy(url, listing).await;
            // Named by what it calls itself, so that it is the one that a replica knows.
            let proxy = asked.unwrap_or_else(|error| Proxy {
                name: url.authority().to_owned(),
                problem: Some((Kind::ProxyBehind, format!("cannot be asked: {error:#}"))),
            });
            match proxies.iter_mut().find(|known| known.name == proxy.name) {
                Some(known) if known.problem.is_none() => *known = proxy,
                Some(_) => {}
                None => proxies.push(proxy),
            }
        }
        let silent = reports.into_iter().filter(|report| report.answer.is_err());
        (proxies, silent.map(|report| report.endpoint).collect())
    }
}

/// What one proxy says of its own table.
async fn ask_proxy(url: &Target, listing: &Listing) -> anyhow::Result<Proxy> {
    #[derive(Deserialize)]
    struct Status {
        name: String,
        epoch: u64,
        revision: u64,
        digest: Option<String>,
        connected: bool,
    }
    let api = Api::new(url.clone(), None, PROXY_ANSWERS_WITHIN);
    let status: Status = api.ask(Method::GET, "/status").await?.json()?;
    let (at, goal) = ((status.epoch, status.revision), (listing.epoch.0, listing.revision.0));
    let behind = |what: String| Some((Kind::ProxyBehind, what));
    let problem = if at < goal {
        behind(format!(
            "at epoch {} and revision {} of {} and {}",
            at.0, at.1, goal.0, goal.1
        ))
    } else if at == goal && status.digest != Some(listing.digest.to_string()) {
        Some((Kind::ProxyDiffers, format!("at revision {}, as it says itself", at.1)))
    } else if !status.connected {
        behind("follows no replica, and serves what it has".to_owned())
    } else {
        None
    };
    Ok(Proxy {
        name: status.name,
        problem,
    })
}

#[derive(Serialize)]
struct ReportJson<'a> {
    #[serde(flatten)]
    counts: &'a Counts,
    disagreements: Vec<DisagreementJson<'a>>,
    repaired: usize,
    left: usize,
}

#[derive(Serialize)]
struct DisagreementJson<'a> {
    kind: Kind,
    about: &'a str,
    what: &'a str,
    repair: String,
    /// Whether --repair does it.
    safe: bool,
    repaired: bool,
    /// Why not, if it was tried.
    problem: Option<&'a str>,
}

fn show(report: &Report, tried: bool, format: Format) -> anyhow::Result<ExitCode> {
    let repaired = report
        .found
        .iter()
        .filter(|(_, outcome)| *outcome == Outcome::Repaired)
        .count();
    let left = report.found.len() - repaired;
    match format {
        Format::Json => output::json(&ReportJson {
            counts: &report.counts,
            disagreements: report
                .found
                .iter()
                .map(|(found, outcome)| as_json(found, outcome))
                .collect(),
            repaired,
            left,
        })?,
        Format::Table => {
            if !report.found.is_empty() {
                let rows = report.found.iter().map(|(found, outcome)| {
                    let repair = match outcome {
                        Outcome::Repaired => "repaired".to_owned(),
                        Outcome::Failed(why) => format!("not repaired: {why}"),
                        Outcome::NotTried if found.repair.is_safe() => format!("--repair: {}", found.repair.text()),
                        Outcome::NotTried => found.repair.text(),
                    };
                    vec![
                        found.kind.as_str().to_owned(),
                        found.about.clone(),
                        found.what.clone(),
                        repair,
                    ]
                });
                output::table(&["disagreement", "about", "what is so", "repair"], &[], rows.collect())?;
                output::line("")?;
            }
            output::line(&summary(report, repaired, left, tried))?;
        }
    }
    Ok(match left {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(crate::FAILED),
    })
}

fn as_json<'a>(found: &'a Disagreement, outcome: &'a Outcome) -> DisagreementJson<'a> {
    DisagreementJson {
        kind: found.kind,
        about: &found.about,
        what: &found.what,
        repair: found.repair.text(),
        safe: found.repair.is_safe(),
        repaired: *outcome == Outcome::Repaired,
        problem: match outcome {
            Outcome::Failed(why) => Some(why),
            _ => None,
        },
    }
}

fn summary(report: &Report, repaired: usize, left: usize, tried: bool) -> String {
    let counts = &report.counts;
    let compared = format!(
        "{}, {}, {} and {} at revision {}",
        output::counted(counts.servers, "server", "servers"),
        output::counted(counts.routes, "route", "routes"),
        output::counted(counts.proxies, "proxy", "proxies"),
        output::counted(counts.targets, "target", "targets"),
        counts.revision
    );
    let safe = report.found.iter().filter(|(found, _)| found.repair.is_safe()).count();
    match (left, repaired) {
        (0, 0) => format!("no disagreement: {compared}"),
        (0, repaired) => format!(
            "{} repaired: {compared}",
            output::counted(repaired, "disagreement", "disagreements")
        ),
        (left, repaired) => {
            let left = output::counted(left, "disagreement", "disagreements");
            match tried {
                true => format!("{left} left, {repaired} repaired: {compared}"),
                false => format!("{left}, {safe} of them for --repair: {compared}"),
            }
        }
    }
}
