//! How much is in the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// The entries in a log and their bytes. Clones share it.
#[derive(Clone, Default)]
pub struct LogSize(Arc<Mutex<Sizes>>);

#[derive(Default)]
struct Sizes {
    // Index and bytes, in the order of the log.
    entries: VecDeque<(u64, u64)>,
    bytes: u64,
}

/// So much of something.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Entries.
    pub entries: usize,
    /// Bytes of them, as they are stored.
    pub bytes: u64,
}

impl LogSize {
    fn sizes(&self) -> MutexGuard<'_, Sizes> {
        self.0.lock().expect("nobody panics with it")
    }

    /// What there is.
    pub fn now(&self) -> Amount {
        let sizes = self.sizes();
        Amount {
            entries: sizes.entries.len(),
            bytes: sizes.bytes,
        }
    }

    /// The log has another entry at its end.
    pub fn push(&self, index: u64, bytes: usize) {
        let mut sizes = self.sizes();
        sizes.entries.push_back((index, bytes as u64));
        sizes.bytes += bytes as u64;
    }

    /// The log has no entries from this one on.
    pub fn truncate(&self, from: u64) {
        let mut sizes = self.sizes();
        while let Some((_, bytes)) = sizes.entries.pop_back_if(|(index, _)| *index >= from) {
            sizes.bytes -= bytes;
        }
    }

    /// The log has no entries up to this one.
    pub fn purge(&self, upto: u64) {
        let mut sizes = self.sizes();
        while let Some((_, bytes)) = sizes.entries.pop_front_if(|(index, _)| *index <= upto) {
            sizes.bytes -= bytes;
        }
    }

    /// The last of the oldest entries that have to go for the rest to be no more than `keep`; `None` if all may stay.
    pub fn beyond(&self, keep: Amount) -> Option<u64> {
        let sizes = self.sizes();
        let (mut entries, mut bytes) = (sizes.entries.len(), sizes.bytes);
        let mut last = None;
        for (index, size) in &sizes.entries {
            if entries <= keep.entries && bytes <= keep.bytes {
                break;
            }
            last = Some(*index);
            entries -= 1;
            bytes -= size;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Amount = Amount {
        entries: usize::MAX,
        bytes: u64::MAX,
    };

    #[test]
    fn what_is_beyond_is_as_little_as_it_takes() {
        let size = LogSize::default();
        for index in 11..=20 {
            size.push(index, 100);
        }
        let beyond = |entries, bytes| size.beyond(Amount { entries, bytes });
        assert_eq!(size.beyond(EVERYTHING), None);
        assert_eq!(beyond(10, 1_000), None);
        assert_eq!(beyond(9, 1_000), Some(11));
        assert_eq!(beyond(10, 999), Some(11));
        assert_eq!(beyond(10, 450), Some(16));
        assert_eq!(beyond(2, 450), Some(18));
        assert_eq!(beyond(10, 0), Some(20));
        assert_eq!(LogSize::default().beyond(Amount { entries: 0, bytes: 0 }), None);
    }

    #[test]
    fn entries_come_and_go_at_both_ends() {
        let size = LogSize::default();
        for index in 1..=10 {
            size.push(index, 10);
        }
        size.purge(3);
        size.truncate(9);
        assert_eq!((size.now().entries, size.now().bytes), (5, 50));
        size.push(9, 1_000);
        assert_eq!((size.now().entries, size.now().bytes), (6, 1_050));
        size.truncate(0);
        assert_eq!((size.now().entries, size.now().bytes), (0, 0));
        // A snapshot that was installed is far beyond what there was.
        size.push(10, 10);
        size.purge(1_000_000);
        assert_eq!((size.now().entries, size.now().bytes), (0, 0));
    }
}
