//! `holdfast status`: every replica and every proxy, and whether all is well.

pub(super) mod judgement;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_client::RouteReader;
use holdfast_table::Digest;
use holdfast_wire::proto::{Role, StatusResponse};
use serde::Serialize;
use tokio::task::JoinSet;

use self::judgement::{Judgement, Verdict};
use super::{ClientArgs, block_on};
use crate::config::Settings;
use crate::output::{self, Format, short};

/// Who is behind gets this long to catch up before it is called behind: what is under way is not a fault.
const CATCH_UP: Duration = Duration::from_secs(1);
const CATCH_UP_STEP: Duration = Duration::from_millis(100);

/// Shows every replica and every proxy that follows one, and says whether all is well.
///
/// Asks the endpoints and, through them, the other members of the cluster. Needs no leader.
///
/// Exit codes: 0 healthy; 1 degraded: routes are served and written, but something is missing, behind or different, or
/// deletions wait for an operator's word;
/// 2 no quorum, or nobody answers: proxies serve what they have, nothing can be written.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// table, or json: everything.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// What one replica says of itself, or why it does not.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) endpoint: String,
    pub(super) answer: Result<StatusResponse, String>,
}

/// Runs the command.
pub fn run(args: StatusArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let (format, client) = settings.finish(format.zip(client))?;
    client.common.start_logging();

    let reader = RouteReader::new(client.endpoints.clone(), client.timeout);
    let (reports, judgement) = block_on(async { Ok(look(&reader).await) })?;
    match format {
        Format::Json => output::json(&StatusJson::new(&reports, &judgement))?,
        Format::Table => show(&reports, &judgement)?,
    }
    Ok(ExitCode::from(judgement.verdict.exit_code()))
}

async fn look(reader: &RouteReader) -> (Vec<Report>, Judgement) {
    let mut reports = ask(reader).await;
    let goal = judgement::newest(&reports);
    let mut judgement = judgement::judge(&reports, goal);
    let deadline = tokio::time::Instant::now() + CATCH_UP;
    while judgement.someone_is_behind && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(CATCH_UP_STEP).await;
        reports = ask(reader).await;
        judgement = judgement::judge(&reports, goal);
    }
    (reports, judgement)
}

/// Asks the endpoints, then the members that they name and that have not answered yet.
pub(super) async fn ask(reader: &RouteReader) -> Vec<Report> {
    let answers = reader.statuses().await;
    let mut reports: Vec<Report> = answers
        .into_iter()
        .map(|(endpoint, answer)| Report {
            endpoint,
            answer: answer.map_err(|error| error.to_string()),
        })
        .collect();
    let mut more: Vec<String> = Vec::new();
    for member in reports
        .iter()
        .filter_map(|report| report.answer.as_ref().ok())
        .flat_map(|status| &status.members)
    {
        let address = &member.client_address;
        let answered = reports.iter().any(|report| {
            report.endpoint == *address
                || report
                    .answer
                    .as_ref()
                    .is_ok_and(|status| status.node_id == member.node_id)
        });
        if !answered && !address.is_empty() && !more.contains(address) {
            more.push(address.clone());
        }
    }
    let mut asked = JoinSet::new();
    for endpoint in more {
        let reader = reader.clone();
        asked.spawn(async move {
            let answer = reader.status(&endpoint).await.map_err(|error| error.to_string());
            Report { endpoint, answer }
        });
    }
    let mut learned = asked.join_all().await;
    learned.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    reports.extend(learned);
    reports
}

fn show(reports: &[Report], judgement: &Judgement) -> anyhow::Result<()> {
    let header = [
        "endpoint",
        "name",
        "id",
        "role",
        "term",
        "applied",
        "revision",
        "digest",
        "routes",
        "leader seen",
        "note",
    ];
    let rows = reports.iter().map(|report| match &report.answer {
        Ok(status) => vec![
            report.endpoint.clone(),
            status.name.clone(),
            status.node_id.to_string(),
            role(status.role()).to_owned(),
            status.term.to_string(),
            status.applied_index.to_string(),
            status.revision.to_string(),
            short(&digest(&status.digest)).to_owned(),
            status.routes.to_string(),
            age(status),
            note(status),
        ],
        Err(problem) => {
            let mut row = vec!["-".to_owned(); header.len()];
            row[0] = report.endpoint.clone();
            row[10] = problem.clone();
            row
        }
    });
    output::table(&header, &[2, 4, 5, 6, 8, 9], rows.collect())?;

    let proxies: Vec<_> = judgement::proxies(reports, judgement.goal).collect();
    if !proxies.is_empty() {
        output::line("")?;
        let rows = proxies.iter().map(|proxy| {
            vec![
                proxy.name.to_owned(),
                proxy.replica.to_owned(),
                proxy.revision.to_string(),
                proxy.lag.to_string(),
                short(&proxy.digest).to_owned(),
                proxy.agreement.as_str().to_owned(),
                format!("{} s", proxy.connected_ms / 1000),
            ]
        });
        let header = [
            "proxy",
            "follows",
            "acknowledged",
            "lag",
            "digest",
            "same table",
            "connected",
        ];
        output::table(&header, &[2, 3, 6], rows.collect())?;
    }
    output::line("")?;
    let summary = match &judgement.verdict {
        Verdict::Healthy => format!(
            "healthy: {} and {} at revision {}",
            output::counted(reports.len(), "replica", "replicas"),
            output::counted(proxies.len(), "proxy", "proxies"),
            judgement.goal.1
        ),
        Verdict::Degraded => format!("degraded: {}", judgement.reasons.join("; ")),
        Verdict::NoQuorum => format!("no quorum: {}", judgement.reasons.join("; ")),
    };
    output::line(&summary)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unknown",
        Role::Pristine => "pristine",
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Retired => "retired",
    }
}

fn digest(bytes: &[u8]) -> String {
    Digest::from_bytes(bytes).map_or_else(String::new, |digest| digest.to_string())
}

fn age(status: &StatusResponse) -> String {
    match status.leader_contact_age_ms {
        // A replica that never knew a leader has no smaller number for it.
        ms if ms > 365 * 24 * 3_600_000 => "never".to_owned(),
        ms if ms < 10_000 => format!("{ms} ms ago"),
        ms => format!("{} s ago", ms / 1000),
    }
}

fn note(status: &StatusResponse) -> String {
    if !status.problem.is_empty() {
        return status.problem.clone();
    }
    match (status.ready, status.waiting_for.as_str()) {
        (true, "") if status.disk_slow => format!("slow disk: {} ms for a sync", status.disk_sync_us / 1000),
        (true, "") => String::new(),
        (false, "") => "not ready".to_owned(),
        (_, waiting_for) => format!("waiting for {waiting_for}"),
    }
}

#[derive(Serialize)]
struct StatusJson<'a> {
    verdict: &'static str,
    reasons: &'a [String],
    replicas: Vec<ReplicaJson<'a>>,
    proxies: Vec<ProxyJson<'a>>,
}

#[derive(Default, Serialize)]
struct ReplicaJson<'a> {
    endpoint: &'a str,
    error: Option<&'a str>,
    name: &'a str,
    id: u64,
    cluster_id: &'a str,
    lineage: &'a [String],
    version: &'a str,
    role: &'static str,
    leader_id: u64,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    epoch: u64,
    revision: u64,
    digest: String,
    routes: u64,
    held: u64,
    held_until_ms: u64,
    ready: bool,
    waiting_for: &'a str,
    problem: &'a str,
    disk_sync_us: u64,
    disk_slow: bool,
    leader_contact_age_ms: u64,
    members: Vec<MemberJson<'a>>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    id: u64,
    name: &'a str,
    peer_address: &'a str,
    client_address: &'a str,
    voter: bool,
    matched_index: Option<u64>,
}

#[derive(Serialize)]
struct ProxyJson<'a> {
    name: &'a str,
    address: &'a str,
    replica: &'a str,
    acknowledged_revision: u64,
    lag: u64,
    digest: String,
    same_table: &'static str,
    connected_ms: u64,
}

impl<'a> StatusJson<'a> {
    fn new(reports: &'a [Report], judgement: &'a Judgement) -> Self {
        let replicas = reports.iter().map(|report| match &report.answer {
            Err(error) => ReplicaJson {
                endpoint: &report.endpoint,
                error: Some(error),
                role: role(Role::Unspecified),
                ..ReplicaJson::default()
            },
            Ok(status) => ReplicaJson::new(&report.endpoint, status),
        });
        let proxies = judgement::proxies(reports, judgement.goal).map(|proxy| ProxyJson {
            name: proxy.name,
            address: proxy.address,
            replica: proxy.replica,
            acknowledged_revision: proxy.revision,
            lag: proxy.lag,
            same_table: proxy.agreement.as_str(),
            digest: proxy.digest,
            connected_ms: proxy.connected_ms,
        });
        StatusJson {
            verdict: judgement.verdict.as_str(),
            reasons: &judgement.reasons,
            replicas: replicas.collect(),
            proxies: proxies.collect(),
        }
    }
}

impl<'a> ReplicaJson<'a> {
    fn new(endpoint: &'a str, status: &'a StatusResponse) -> Self {
        let members = status.members.iter().map(|member| MemberJson {
            id: member.node_id,
            name: &member.name,
            peer_address: &member.peer_address,
            client_address: &member.client_address,
            voter: member.voter,
            matched_index: member.matched_index,
        });
        ReplicaJson {
            endpoint,
            error: None,
            name: &status.name,
            id: status.node_id,
            cluster_id: &status.cluster_id,
            lineage: &status.lineage,
            version: &status.version,
            role: role(status.role()),
            leader_id: status.leader_id,
            term: status.term,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            epoch: status.epoch,
            revision: status.revision,
            digest: digest(&status.digest),
            routes: status.routes,
            held: status.held,
            held_until_ms: status.held_until_ms,
            ready: status.ready,
            waiting_for: &status.waiting_for,
            problem: &status.problem,
            disk_sync_us: status.disk_sync_us,
            disk_slow: status.disk_slow,
            leader_contact_age_ms: status.leader_contact_age_ms,
            members: members.collect(),
        }
    }
}
