//! A replica whose state is not what the log says finds out, stops serving, and comes back with the right one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_table::{Entry, Epoch, Revision, Route, Table};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_wire::proto;
use prost::Message;
use rocksdb::{DB, IteratorMode, Options};

#[tokio::test]
async fn p6_a_replica_with_another_table_than_the_others_stops_and_starts_over() -> Result<()> {
    stops_and_starts_over(lead_astray, "the table has digest").await
}

#[tokio::test]
async fn p6_a_replica_that_knows_other_sessions_than_the_others_stops_and_starts_over() -> Result<()> {
    stops_and_starts_over(forget_sessions, "what is kept beside the table has digest").await
}

async fn stops_and_starts_over(spoil: fn(&Path) -> Result<()>, says: &str) -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    for number in 0..20 {
        let spec = format!("/user/u{number}/");
        writer
            .put(Route::parse(&spec, "http://10.0.0.1:8888", "{}", "")?)
            .await?;
    }
    cluster.agree().await?;
    let victim = cluster.follower().await?;
    let stopped = cluster.replicas[victim].process.terminate(SOON).await?;
    ensure!(stopped.success(), "{stopped}");
    spoil(&cluster.replicas[victim].data_dir)?;

    let victim = &mut cluster.replicas[victim];
    victim.process.start()?;
    let ended = victim.process.ended(SOON).await.context("it should have found out")?;
    ensure!(!ended.success(), "{ended}");
    let log = victim.process.log();
    ensure!(
        log.contains(says) && log.contains("the other replicas' has"),
        "its log does not say why it stopped:\n{log}"
    );

    victim.process.start()?;
    let data_dir = victim.data_dir.clone();
    until("the wrong state is set aside", SOON, async || {
        match data_dir.join("db.set-aside-1").is_dir() {
            true => Ok(()),
            false => Err("still in its place"),
        }
    })
    .await?;
    cluster.ready().await?;
    cluster.finish().await
}

fn open(data_dir: &Path) -> Result<DB> {
    let path = data_dir.join("db");
    let families = DB::list_cf(&Options::default(), &path)?;
    Ok(DB::open_cf(&Options::default(), &path, families)?)
}

/// Forgets who has written. No start can notice.
fn forget_sessions(data_dir: &Path) -> Result<()> {
    let db = open(data_dir)?;
    let table = db.cf_handle("table").context("no table")?;
    let mut sessions = 0;
    for row in db.iterator_cf(table, IteratorMode::Start) {
        let (key, _) = row?;
        if key.get(4) == Some(&b's') {
            db.delete_cf(table, &key)?;
            sessions += 1;
        }
    }
    ensure!(sessions > 0, "no session to forget");
    Ok(db.flush_wal(true)?)
}

/// Gives one route another target, and puts everything right that a start would check.
fn lead_astray(data_dir: &Path) -> Result<()> {
    let db = open(data_dir)?;
    let (meta, table) = (db.cf_handle("meta"), db.cf_handle("table"));
    let (meta, table) = (meta.context("no meta")?, table.context("no table")?);
    let applied = db.get_cf(meta, "applied")?.context("nothing applied")?;
    let mut applied = proto::AppliedState::decode(unsealed(&applied)?)?;
    let header = applied.header.as_mut().context("no header")?;

    let mut entries = Vec::new();
    let mut is_changed = false;
    for row in db.iterator_cf(table, IteratorMode::Start) {
        let (key, value) = row?;
        if key.get(4) != Some(&b'r') {
            continue;
        }
        let mut route = proto::Route::decode(unsealed(&value)?)?;
        if !std::mem::replace(&mut is_changed, true) {
            route.target = "http://10.6.6.6:8888".into();
            db.put_cf(table, &key, sealed(&key, &route))?;
        }
        entries.push(Entry::try_from(&route)?);
    }
    ensure!(is_changed, "no route to change");
    let astray = Table::from_entries(Epoch(header.epoch), Revision(header.revision), entries);
    header.digest = astray.digest().to_bytes().to_vec().into();
    db.put_cf(meta, "applied", sealed(b"applied", &applied))?;
    Ok(db.flush_wal(true)?)
}

/// A row's message, behind its checksum.
fn unsealed(value: &[u8]) -> Result<&[u8]> {
    Ok(value.split_first_chunk::<4>().context("no checksum")?.1)
}

/// The row of this message under `key`, with the checksum that a start expects.
fn sealed(key: &[u8], message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let checksum = crc32fast::hash(&[key, &message].concat());
    [&checksum.to_le_bytes()[..], &message].concat()
}
