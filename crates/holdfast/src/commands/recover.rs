//! `holdfast recover`: what a stopped replica has, and a new cluster made of it when a quorum is lost for good.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::FalseyValueParser;
use holdfast_replica::recover::{Facts, LogPlace, Recovered, Survivor, TableFacts, Tail, WalRecovery};
use serde::Serialize;

use super::CommonArgs;
use super::restore::{self, FounderArgs, NewCluster};
use crate::config::{Settings, parse};
use crate::output::{self, Format};

/// Shows what a stopped replica has on its disk; with --force-new-cluster, makes a new cluster of one of it.
///
/// For when a quorum is lost for good. Without --force-new-cluster nothing is changed: look at every survivor and choose
/// the one whose last log entry has the highest term, then the highest index. With it, the whole log is applied, and the
/// directory becomes that of a new cluster with an id of its own and a higher epoch, which the proxies follow; what was
/// there is kept in it under before-recover-N. The replica must be stopped.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The replica's data directory.
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,

    /// Does it: from then on, no other replica of the old cluster can be used any more but as an empty one.
    #[arg(long, env = "HOLDFAST_FORCE_NEW_CLUSTER", value_parser = FalseyValueParser::new())]
    force_new_cluster: bool,

    #[command(flatten)]
    founder: FounderArgs,

    /// Drops the log entries that were not known to be committed. Acknowledged writes may be among them: the default
    /// applies them all, and so has every acknowledged write that this replica knows of.
    #[arg(long, env = "HOLDFAST_DISCARD_UNCOMMITTED", value_parser = FalseyValueParser::new())]
    discard_uncommitted: bool,

    /// How a damaged write-ahead log is read: strict refuses; point-in-time believes all up to the first damage and
    /// drops the rest, acknowledged writes included. Only if every survivor is damaged.
    #[arg(long, env = "HOLDFAST_WAL", value_name = "MODE", default_value = "strict")]
    wal: String,

    /// table, or json: everything that is known.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: RecoverArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let data_dir = settings.read_required(
        "data-dir",
        args.data_dir.as_deref(),
        "give the directory of a stopped replica",
        parse::directory,
    );
    let new = match args.force_new_cluster {
        true => args.founder.read(&mut settings).map(Some),
        false => Some(None),
    };
    if args.discard_uncommitted && !args.force_new_cluster {
        settings.refuse_as("--discard-uncommitted: means nothing without --force-new-cluster".to_owned());
    }
    let wal = settings.read("wal", &args.wal, |text| match text {
        "strict" => Ok(WalRecovery::Strict),
        "point-in-time" => Ok(WalRecovery::PointInTime),
        _ => Err("must be strict or point-in-time".into()),
    });
    let format = settings.read("output", &args.output, Format::parse);
    let common = args.common.read(&mut settings, "warn");
    let complete = data_dir.zip(new).zip(wal).zip(format).zip(common);
    let ((((data_dir, new), wal), format), common) = settings.finish(complete)?;
    common.start_logging();

    if wal == WalRecovery::PointInTime {
        output::complain(
            "holdfast: WARNING: --wal point-in-time: everything after the first damaged record of the write-ahead log is \
             dropped, whether it was acknowledged or not. Prefer any survivor that opens without it.",
        );
    }
    let survivor = Survivor::open(&data_dir, wal).context("nothing was changed")?;
    let facts = survivor.facts();
    let Some(mut new) = new else {
        show(&facts, format)?;
        return Ok(ExitCode::SUCCESS);
    };
    let own = facts.members.iter().find(|member| member.node_id == facts.node_id);
    if let Some(own) = own.filter(|own| args.founder.advertise_client.is_none() && !own.client_address.is_empty()) {
        new.founder.client_address.clone_from(&own.client_address);
    }
    let tail = match args.discard_uncommitted {
        true => Tail::Discard,
        false => Tail::Apply,
    };
    let recovered = survivor
        .force_new_cluster(&new.founder, &new.predecessors, tail)
        .context("nothing was recovered, and everything is as it was")?;
    done(&recovered, &facts, &data_dir, &new, format)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct PlaceJson {
    term: u64,
    index: u64,
}

impl From<LogPlace> for PlaceJson {
    fn from(place: LogPlace) -> Self {
        PlaceJson {
            term: place.term,
            index: place.index,
        }
    }
}

#[derive(Serialize)]
struct TableJson {
    revision: u64,
    routes: u64,
    digest: String,
}

impl From<TableFacts> for TableJson {
    fn from(table: TableFacts) -> Self {
        TableJson {
            revision: table.revision.0,
            routes: table.routes,
            digest: table.digest.to_string(),
        }
    }
}

#[derive(Serialize)]
struct MemberJson<'a> {
    id: u64,
    name: &'a str,
    peer_address: &'a str,
    client_address: &'a str,
    voter: bool,
}

#[derive(Serialize)]
struct FactsJson<'a> {
    name: &'a str,
    id: u64,
    store_uuid: &'a str,
    cluster_id: &'a str,
    lineage: Vec<&'a str>,
    epoch: u64,
    vote_term: u64,
    last_log: Option<PlaceJson>,
    committed: Option<PlaceJson>,
    applied: Option<PlaceJson>,
    entries_committed: u64,
    entries_uncommitted: u64,
    table: TableJson,
    table_committed: TableJson,
    table_whole_log: TableJson,
    members: Vec<MemberJson<'a>>,
    damage: Option<&'a str>,
}

fn show(facts: &Facts, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&FactsJson {
            name: &facts.name,
            id: facts.node_id,
            store_uuid: &facts.store_uuid,
            cluster_id: &facts.cluster_id,
            lineage: facts.lineage.iter().collect(),
            epoch: facts.epoch.0,
            vote_term: facts.vote_term,
            last_log: facts.last.map(PlaceJson::from),
            committed: facts.committed.map(PlaceJson::from),
            applied: facts.applied.map(PlaceJson::from),
            entries_committed: facts.entries_committed,
            entries_uncommitted: facts.entries_uncommitted,
            table: facts.table.into(),
            table_committed: facts.table_committed.into(),
            table_whole_log: facts.table_whole.into(),
            members: facts
                .members
                .iter()
                .map(|member| MemberJson {
                    id: member.node_id,
                    name: &member.name,
                    peer_address: &member.peer_address,
                    client_address: &member.client_address,
                    voter: member.voter,
                })
                .collect(),
            damage: facts.damage.as_deref(),
        });
    }
    let place = |place: Option<LogPlace>| {
        place.map_or("none".to_owned(), |place| {
            format!("term {} index {}", place.term, place.index)
        })
    };
    let table = |table: &TableFacts| {
        let routes = output::counted(usize::try_from(table.routes).unwrap_or(usize::MAX), "route", "routes");
        format!("revision {}, {routes}, digest {}", table.revision, table.digest)
    };
    let members = facts.members.iter().map(|member| {
        let learner = if member.voter { "" } else { " (no vote)" };
        format!("{} {}{learner}", member.node_id, member.name)
    });
    let mut lines = vec![
        (
            "replica",
            format!("{}, id {}, store {}", facts.name, facts.node_id, facts.store_uuid),
        ),
        ("cluster", facts.cluster_id.clone()),
        ("epoch", facts.epoch.to_string()),
        ("members", members.collect::<Vec<_>>().join(", ")),
        ("last voted in", format!("term {}", facts.vote_term)),
        ("last log entry", place(facts.last)),
        ("committed", place(facts.committed)),
        ("applied", place(facts.applied)),
        ("table on disk", table(&facts.table)),
        (
            "with committed",
            format!(
                "{} entries more: {}",
                facts.entries_committed,
                table(&facts.table_committed)
            ),
        ),
        (
            "with whole log",
            format!(
                "{} entries more: {}",
                facts.entries_uncommitted,
                table(&facts.table_whole)
            ),
        ),
    ];
    lines.extend(facts.damage.clone().map(|damage| ("DAMAGE", damage)));
    output::line(&output::facts(&lines))?;
    output::line(
        "Nothing was changed. Compare the survivors: the one with the highest term, then index, of its last log entry \
         knows most. Recover there alone, with --force-new-cluster --name NAME --peers LIST.",
    )
}

#[derive(Serialize)]
struct RecoveredJson<'a> {
    #[serde(flatten)]
    founded: restore::FoundedJson<'a>,
    entries_applied: u64,
    entries_dropped: u64,
    before: String,
}

fn done(
    recovered: &Recovered,
    facts: &Facts,
    data_dir: &std::path::Path,
    new: &NewCluster,
    format: Format,
) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&RecoveredJson {
            founded: (&recovered.founded).into(),
            entries_applied: recovered.entries_applied,
            entries_dropped: recovered.entries_dropped,
            before: recovered.before.display().to_string(),
        });
    }
    let applied = format!(
        "{}, {} of them not known to be committed",
        recovered.entries_applied,
        recovered.entries_applied.saturating_sub(facts.entries_committed)
    );
    let mut lines = restore::facts(&recovered.founded);
    lines.extend([
        ("log applied", applied),
        ("log dropped", recovered.entries_dropped.to_string()),
        ("old data", recovered.before.display().to_string()),
    ]);
    output::line(&output::facts(&lines))?;
    output::line(&restore::next_steps(data_dir, new))
}
