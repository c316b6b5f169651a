//! The disk's own floor: what a log pays for one entry, without any store.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use holdfast_benches::Latencies;

/// About one entry of a log.
const ENTRY: [u8; 256] = [b'.'; 256];
const ENTRIES: usize = 200;
/// As three members on one disk do.
const FILES: usize = 3;

/// Appends of one entry, each synced before the next.
#[derive(Default)]
pub struct Probes {
    one: Latencies,
    three: Latencies,
}

impl Probes {
    /// Appends to one file, then to three at once.
    ///
    /// # Errors
    /// The disk's.
    pub fn probe(&mut self) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("holdfast-bench-disk-").tempdir()?;
        let append = |file: usize| -> Result<Latencies> {
            let mut file = File::create(folder.path().join(format!("{file}.log")))?;
            let mut latencies = Latencies::new();
            for _ in 0..ENTRIES {
                let began = Instant::now();
                file.write_all(&ENTRY)?;
                file.sync_data()?;
                latencies.add(began.elapsed());
            }
            Ok(latencies)
        };
        self.one.merge(&append(FILES)?);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..FILES).map(|file| scope.spawn(move || append(file))).collect();
            for thread in threads {
                let latencies = thread.join().ok().context("a probe panicked")??;
                self.three.merge(&latencies);
            }
            Ok(())
        })
    }
}

impl fmt::Display for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the disk alone, {} bytes appended and fdatasync: one file {}; {FILES} files at once {}",
            ENTRY.len(),
            self.one,
            self.three
        )
    }
}
