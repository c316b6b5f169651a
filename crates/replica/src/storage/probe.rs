//! How long the disk takes to make a write last, asked of it at every start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// From here on a disk is slow: elections would come of its pauses.
pub const SLOW: Duration = Duration::from_millis(20);

const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 4096;
/// A disk that is slow has shown it by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// What nine of ten syncs of a small write into `dir` did not exceed.
///
/// # Errors
/// The disk takes no writes.
pub fn sync_time(dir: &Path) -> io::Result<Duration> {
    let path = dir.join("probe");
    let mut file = File::create(&path)?;
    let began = Instant::now();
    let mut times = Vec::with_capacity(SAMPLES);
    while times.len() < SAMPLES && began.elapsed() < PATIENCE {
        let sample = Instant::now();
        file.write_all(&[0; SAMPLE_BYTES])?;
        file.sync_data()?;
        times.push(sample.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times[(times.len() - 1) * 9 / 10])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_asked_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert!(sync_time(dir.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(sync_time(&dir.path().join("missing")).is_err());
    }
}
