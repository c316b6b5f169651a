use std::io::Cursor;

use holdfast_table::Route;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn table(revision: u64, routes: usize) -> Table {
    let entries = (0..routes).map(|n| Entry {
        route: Route::parse(
            &format!("/user/name-{n}/"),
            &format!("http://10.0.{}.{}:8888", n / 250, n % 250),
            &format!(r#"{{"user": "name-{n}"}}"#),
            "",
        )
        .unwrap(),
        modified: Revision(n as u64 + 1),
    });
    Table::from_entries(Epoch(3), Revision(revision), entries)
}

fn cached(table: Table) -> Cached {
    Cached {
        cluster_id: "cluster-1".into(),
        table,
        vouched: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
    }
}

fn encoded(table: &Table) -> Vec<u8> {
    let mut out = Checked::new(Vec::new());
    encode(&mut out, &cached(table.clone())).unwrap();
    out.inner
}

fn decoded(bytes: &[u8]) -> Result<Cached, Refusal> {
    decode(&mut Checked::new(Cursor::new(bytes)))
}

fn same(cached: &Cached, table: &Table) -> bool {
    cached.cluster_id == "cluster-1"
        && cached.table.epoch() == table.epoch()
        && cached.table.revision() == table.revision()
        && cached.table.sorted() == table.sorted()
}

fn fresh() -> Freshness {
    Freshness {
        source: holdfast_client::Source::Stream,
        connected: true,
        cluster_id: Some("cluster-1".into()),
        replica: None,
        last_contact: None,
        inherited: None,
        unreachable: false,
    }
}

#[test]
fn a_copy_is_the_table() {
    for routes in [0, 1, 7000] {
        let table = table(90, routes);
        assert!(same(&decoded(&encoded(&table)).unwrap(), &table));
    }
    for vouched in [None, cached(table(1, 1)).vouched] {
        let mut out = Checked::new(Vec::new());
        let written = Cached {
            vouched,
            ..cached(table(1, 1))
        };
        encode(&mut out, &written).unwrap();
        assert_eq!(decoded(&out.inner).unwrap().vouched, vouched);
    }
}

#[test]
fn a_torn_copy_is_refused_wherever_it_is_torn() {
    let bytes = encoded(&table(90, 20));
    for end in 0..bytes.len() {
        assert!(decoded(&bytes[..end]).is_err(), "torn at {end}");
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    assert!(matches!(decoded(&longer), Err(Refusal::Damaged(_))));
}

#[test]
fn foreign_and_newer_files_are_told_apart() {
    assert!(matches!(decoded(b"{\"routes\": {}}"), Err(Refusal::Foreign)));
    let mut newer = encoded(&table(90, 1));
    newer[8] = 3;
    assert!(matches!(decoded(&newer), Err(Refusal::Version(3))));
}

#[test]
fn a_route_left_out_with_all_checksums_right_is_refused() {
    // What a bug in the writer would leave behind: the header speaks of another table than the blocks.
    let (whole, less) = (encoded(&table(90, 3)), encoded(&table(90, 2)));
    let header = 8 + 4 + 12 + 2 + "cluster-1".len() + 8 + 8 + 8 + 32 + 4;
    let mut mixed = whole[..header].to_vec();
    mixed.extend_from_slice(&less[header..less.len() - 4]);
    let checksum = crc32fast::hash(&[&mixed[..12], &mixed[24..]].concat());
    mixed.extend_from_slice(&checksum.to_le_bytes());
    assert!(matches!(decoded(&mixed), Err(Refusal::Damaged("digest"))));
}

proptest! {
    #[test]
    fn flipped_bits_never_make_another_table(flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4)) {
        let table = table(90, 50);
        let mut bytes = encoded(&table);
        for (index, mask) in &flips {
            let at = index.index(bytes.len());
            bytes[at] ^= mask;
        }
        if let Ok(cached) = decoded(&bytes) {
            // Two flips of one byte may undo each other.
            prop_assert!(same(&cached, &table));
            prop_assert_eq!(cached.vouched, super::tests::cached(table).vouched);
        }
    }
}

#[test]
fn the_previous_copy_serves_when_the_newest_is_damaged_and_is_not_overwritten_by_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("p0");
    let (cache, none) = Cache::open(&path).unwrap();
    assert!(none.is_none());
    write(&path, &cached(table(1, 5)), false).unwrap();
    write(&path, &cached(table(2, 6)), true).unwrap();
    drop(cache);
    let mut bytes = fs::read(path.join(FILE)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path.join(FILE), bytes).unwrap();

    let (cache, found) = Cache::open(&path).unwrap();
    assert!(same(&found.unwrap(), &table(1, 5)));
    assert_eq!(cache.current, None);
    write(&path, &cached(table(3, 7)), cache.current.is_some()).unwrap();
    assert!(same(&read(&path.join(PREVIOUS)).unwrap(), &table(1, 5)));
    assert!(same(&read(&path.join(FILE)).unwrap(), &table(3, 7)));
}

#[tokio::test]
async fn the_last_copy_has_what_changed_while_the_one_before_was_written() {
    let directory = TempDir::new().unwrap();
    let (cache, _) = Cache::open(directory.path()).unwrap();
    let live = LiveTable::from(table(1, 5));
    let (_sender, freshness) = watch::channel(fresh());
    let stop = CancellationToken::new();
    let metrics = SharedMetrics::new(crate::metrics::Metrics::new());
    // The first poll begins to write the first table; then all this happens at once.
    let meanwhile = async {
        live.replace(table(2, 6));
        stop.cancel();
    };
    tokio::join!(
        biased;
        cache.keep(live.clone(), freshness, metrics.clone(), stop.clone()),
        meanwhile
    );
    let (_cache, cached) = Cache::open(directory.path()).unwrap();
    assert!(same(&cached.unwrap(), &table(2, 6)));
    assert_eq!(metrics.cache_writes.get(), 2);
}

/// How old the copy in this directory says to be.
fn age(directory: &TempDir) -> Option<Duration> {
    let cached = read(&directory.path().join(FILE)).unwrap();
    assert!(same(&cached, &table(1, 5)));
    Some(cached.vouched?.elapsed().unwrap())
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_copy_says_when_a_replica_has_last_vouched_for_it_however_long_the_table_stays_as_it_is() {
    let directory = TempDir::new().unwrap();
    let (cache, _) = Cache::open(directory.path()).unwrap();
    let (live, stop) = (LiveTable::from(table(1, 5)), CancellationToken::new());
    let metrics = SharedMetrics::new(crate::metrics::Metrics::new());
    let (sender, freshness) = watch::channel(fresh());
    let meanwhile = async {
        until(|| directory.path().join(FILE).exists()).await;
        assert_eq!(age(&directory), None, "nobody has yet");
        sender.send_modify(|fresh| fresh.last_contact = Some(tokio::time::Instant::now()));
        until(|| age(&directory).is_some()).await;
        assert!(age(&directory) < Some(HOUR));
        // The last word is as old as it is at the end.
        let contact = tokio::time::Instant::now().checked_sub(HOUR).unwrap();
        sender.send_modify(|fresh| fresh.last_contact = Some(contact));
        stop.cancel();
    };
    tokio::join!(
        cache.keep(live.clone(), freshness, metrics.clone(), stop.clone()),
        meanwhile
    );
    let noted = age(&directory).unwrap();
    assert!((HOUR..2 * HOUR).contains(&noted), "{noted:?}");
    assert_eq!(metrics.cache_writes.get(), 1, "the table is the same");
}

#[tokio::test(start_paused = true)]
async fn a_restart_makes_a_copy_no_younger() {
    let directory = TempDir::new().unwrap();
    let (cache, _) = Cache::open(directory.path()).unwrap();
    write(directory.path(), &cached(table(1, 5)), false).unwrap();
    drop(cache);
    let (cache, found) = Cache::open(directory.path()).unwrap();
    let before = found.unwrap().vouched.unwrap();
    let inherited = Some((tokio::time::Instant::now(), before.elapsed().unwrap()));
    let (_sender, freshness) = watch::channel(Freshness { inherited, ..fresh() });
    let stop = CancellationToken::new();
    stop.cancel();
    let metrics = SharedMetrics::new(crate::metrics::Metrics::new());
    cache
        .keep(LiveTable::from(table(1, 5)), freshness, metrics.clone(), stop)
        .await;
    let after = read(&directory.path().join(FILE)).unwrap().vouched.unwrap();
    let moved = after.duration_since(before).unwrap_or_else(|back| back.duration());
    assert!(moved < Duration::from_secs(1), "{moved:?}");
    assert_eq!(metrics.cache_writes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_removed_is_made_anew() {
    let directory = TempDir::new().unwrap();
    let (cache, _) = Cache::open(directory.path()).unwrap();
    let (live, stop) = (LiveTable::from(table(1, 5)), CancellationToken::new());
    let metrics = SharedMetrics::new(crate::metrics::Metrics::new());
    let last_contact = Some(tokio::time::Instant::now());
    let (_sender, freshness) = watch::channel(Freshness {
        last_contact,
        ..fresh()
    });
    let meanwhile = async {
        until(|| metrics.cache_writes.get() == 1).await;
        fs::remove_file(directory.path().join(FILE)).unwrap();
        stop.cancel();
    };
    tokio::join!(
        cache.keep(live.clone(), freshness, metrics.clone(), stop.clone()),
        meanwhile
    );
    assert!(age(&directory).is_some());
}

async fn until(holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("should have happened");
}

#[test]
fn a_copy_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    write(directory.path(), &cached(table(1, 1)), false).unwrap();
    let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_directory_has_one_proxy() {
    let directory = TempDir::new().unwrap();
    let first = Cache::open(directory.path()).unwrap();
    assert!(matches!(Cache::open(directory.path()), Err(OpenError::Locked)));
    drop(first);
    assert!(Cache::open(directory.path()).is_ok());
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Cache::open(&file.join("below")), Err(OpenError::Io(_))));
}
