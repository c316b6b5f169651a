//! `holdfast restore`: a new cluster of one from a backup, or from a proxy's copy of the table.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use holdfast_proxy::read_cache;
use holdfast_replica::PeerAddress;
use holdfast_replica::restore::{Founded, Founder, Origin, Predecessor, restore};
use holdfast_table::Epoch;
use serde::Serialize;

use super::{CommonArgs, backup};
use crate::config::{Settings, parse};
use crate::output::{self, Format};

/// The client port that is assumed until the replica itself says better.
const CLIENT_PORT: u16 = 7011;

/// Makes the data directory of a new cluster with one member from a backup, or from a proxy's copy of the table.
///
/// The new cluster has an id of its own, a higher epoch and a revision far ahead, so the old cluster's proxies follow it
/// and never go back, and no replica of the old one can join it. Stop what is left of the old cluster first. Then
/// start this replica on the directory; the others start with empty directories and the same --peers, and join.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup; - is standard input.
    #[arg(value_name = "FILE")]
    file: Option<String>,

    /// A proxy's copy of the table instead of a backup: DATA-DIR/table.cache of any proxy, running or not. Take the one
    /// with the highest revision.
    #[arg(long, env = "HOLDFAST_FROM_PROXY_CACHE", value_name = "FILE")]
    from_proxy_cache: Option<String>,

    /// The directory to make. It must be empty or missing.
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,

    #[command(flatten)]
    founder: FounderArgs,

    /// table, or json: {"cluster_id", "lineage", "epoch", "revision", "digest", "routes"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    common: CommonArgs,
}

/// Who will be the first member of a new cluster.
#[derive(Debug, Args)]
pub struct FounderArgs {
    /// The name of the replica that will start on the directory; one of those in --peers.
    #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Every replica's name and peer address, as they will all be started with. The others join with empty directories.
    #[arg(long, env = "HOLDFAST_PEERS", value_name = "NAME=HOST:PORT,...")]
    peers: Option<String>,

    /// The client address that others are told until the replica runs and says it itself.
    /// [default: the host in --peers, port 7011]
    #[arg(long, env = "HOLDFAST_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,

    /// Clusters made after what is restored, comma-separated, each as ID@EPOCH: their proxies follow the new cluster
    /// too. Needed only if the backup is older than an earlier restore; a proxy's /status shows both.
    #[arg(long, env = "HOLDFAST_REPLACES", value_name = "ID@EPOCH,...", default_value = "")]
    replaces: String,
}

/// As given.
pub struct NewCluster {
    /// Its first member.
    pub founder: Founder,
    /// Whose proxies follow besides.
    pub predecessors: Vec<Predecessor>,
    /// As on the command line.
    pub peers: Vec<PeerAddress>,
}

impl FounderArgs {
    /// Reads the settings.
    pub fn read(&self, settings: &mut Settings) -> Option<NewCluster> {
        let name = settings.read_required(
            "name",
            self.name.as_deref(),
            "give the replica's name, like r0",
            parse::name,
        );
        let hint = "list every replica's name and peer address, like r0=10.0.0.1:7012,r1=10.0.0.2:7012";
        let peers = settings.read_required("peers", self.peers.as_deref(), hint, parse::peers);
        let client = settings.read_optional("advertise-client", self.advertise_client.as_deref(), parse::host_port);
        let predecessors = settings.read("replaces", &self.replaces, predecessors);
        let (name, peers) = (name?, peers?);
        let Some(own) = peers.iter().find(|peer| peer.name == name) else {
            let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
            let problem = format!("--peers does not name it, only {}: spell both alike", names.join(", "));
            settings.refuse("name", &name, &problem);
            return None;
        };
        let host = own
            .address
            .rsplit_once(':')
            .map_or(own.address.as_str(), |(host, _)| host);
        Some(NewCluster {
            founder: Founder {
                client_address: client?.unwrap_or_else(|| format!("{host}:{CLIENT_PORT}")),
                peer_address: own.address.clone(),
                name,
            },
            predecessors: predecessors?,
            peers,
        })
    }
}

fn predecessors(text: &str) -> Result<Vec<Predecessor>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let parsed = items.map(|item| {
        let (cluster_id, epoch) = item.rsplit_once('@')?;
        Some(Predecessor {
            cluster_id: Some(cluster_id).filter(|id| !id.is_empty())?.to_owned(),
            epoch: Epoch(epoch.parse().ok()?),
        })
    });
    let parsed: Option<Vec<_>> = parsed.collect();
    parsed.ok_or_else(|| "must be cluster ids with their epochs, like 0d1c3c0e-3e9b-4c0e-9f0a-6a1b2c3d4e5f@2".into())
}

/// Runs the command.
pub fn run(args: RestoreArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    match (&args.file, &args.from_proxy_cache) {
        (None, None) => settings.refuse_as("FILE is missing: name a backup, or --from-proxy-cache FILE".to_owned()),
        (Some(_), Some(cache)) => {
            settings.refuse(
                "from-proxy-cache",
                cache,
                "cannot be given together with a backup: choose one",
            );
        }
        _ => {}
    }
    let data_dir = settings.read_required(
        "data-dir",
        args.data_dir.as_deref(),
        "give the directory to make",
        parse::directory,
    );
    let new = args.founder.read(&mut settings);
    let format = settings.read("output", &args.output, Format::parse);
    let common = args.common.read(&mut settings, "warn");
    let (((data_dir, new), format), common) = settings.finish(data_dir.zip(new).zip(format).zip(common))?;
    common.start_logging();

    let origin = match (&args.file, &args.from_proxy_cache) {
        (Some(file), _) => Origin::from(backup::read(file)?),
        (None, cache) => from_cache(Path::new(cache.as_deref().unwrap_or_default()))?,
    };
    let founded = restore(origin, &new.predecessors, &data_dir, &new.founder)
        .context("nothing was restored, and nothing is left behind")?;
    show(&founded, &data_dir, &new, format)?;
    Ok(ExitCode::SUCCESS)
}

fn from_cache(file: &Path) -> anyhow::Result<Origin> {
    let hint = match file.is_dir() {
        true => " (it is a directory: name the file table.cache in it)",
        false => "",
    };
    let cached = read_cache(file).with_context(|| format!("file {file:?}: cannot be used{hint}"))?;
    Ok(Origin::from_table(cached.cluster_id, cached.table))
}

/// The same, for programs.
#[derive(Serialize)]
pub struct FoundedJson<'a> {
    cluster_id: &'a str,
    lineage: Vec<&'a str>,
    epoch: u64,
    revision: u64,
    digest: String,
    routes: u64,
}

impl<'a> From<&'a Founded> for FoundedJson<'a> {
    fn from(founded: &'a Founded) -> Self {
        FoundedJson {
            cluster_id: &founded.cluster_id,
            lineage: founded.lineage.iter().collect(),
            epoch: founded.epoch.0,
            revision: founded.revision.0,
            digest: founded.digest.to_string(),
            routes: founded.routes,
        }
    }
}

/// What was founded, line by line.
pub fn facts(founded: &Founded) -> Vec<(&'static str, String)> {
    vec![
        ("cluster", founded.cluster_id.clone()),
        ("descends from", founded.lineage.iter().collect::<Vec<_>>().join(", ")),
        ("epoch", founded.epoch.to_string()),
        ("revision", founded.revision.to_string()),
        ("routes", founded.routes.to_string()),
        ("digest", founded.digest.to_string()),
    ]
}

/// What to do with a new directory.
pub fn next_steps(data_dir: &Path, new: &NewCluster) -> String {
    let peers: Vec<_> = new
        .peers
        .iter()
        .map(|peer| format!("{}={}", peer.name, peer.address))
        .collect();
    let name = &new.founder.name;
    let others: Vec<_> = new
        .peers
        .iter()
        .map(|peer| peer.name.as_str())
        .filter(|peer| peer != name)
        .collect();
    let mut text = format!(
        "What to do: start it as before: holdfast replica --name {name} --data-dir {} --peers {}",
        data_dir.display(),
        peers.join(",")
    );
    if !others.is_empty() {
        text += &format!(
            "\nThen start {} with the same --peers and empty directories: old ones are refused.",
            others.join(" and ")
        );
    }
    text
}

fn show(founded: &Founded, data_dir: &Path, new: &NewCluster, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(&FoundedJson::from(founded)),
        Format::Table => {
            output::line(&output::facts(&facts(founded)))?;
            output::line(&next_steps(data_dir, new))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predecessors_are_ids_with_epochs() {
        assert_eq!(predecessors(""), Ok(vec![]));
        let two = predecessors("a-b@2, c@18446744073709551615").unwrap();
        assert_eq!((two[0].cluster_id.as_str(), two[0].epoch), ("a-b", Epoch(2)));
        assert_eq!((two[1].cluster_id.as_str(), two[1].epoch), ("c", Epoch(u64::MAX)));
        for wrong in ["a", "a@", "@1", "a@-1", "a@x", "a@1,b"] {
            assert!(predecessors(wrong).is_err(), "{wrong}");
        }
    }
}
