//! Admission: so many bytes of writes are under way at once; more is refused, not queued.

use std::sync::Arc;

use holdfast_wire::errors::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// The bytes of all writes that this replica decides or passes on at one time. Two of the largest batches fit.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a write counts for at least: its place in queues and maps.
const BYTES_MIN: usize = 1024;

/// Bounds what writers that outrun the disk can pile up in memory.
pub struct Admission(Arc<Semaphore>);

/// A write that was taken in. It counts for as long as a clone of this is with something of it that is in memory.
#[derive(Clone, Debug)]
pub struct Admitted {
    // None for what no writer has asked for.
    _bytes: Option<Arc<OwnedSemaphorePermit>>,
}

impl Admitted {
    /// What a replica writes by itself, and never more than one of it at a time.
    pub fn own() -> Self {
        Admitted { _bytes: None }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Admission(Arc::new(Semaphore::new(BYTES_MAX)))
    }
}

impl Admission {
    /// Takes a write of `bytes` in, until what is returned is dropped, with all its clones.
    ///
    /// # Errors
    /// `overloaded`: nothing was written; the writer waits a little and tries again.
    pub fn take(&self, bytes: usize) -> Result<Admitted, Status> {
        let bytes = u32::try_from(bytes.clamp(BYTES_MIN, BYTES_MAX)).unwrap_or(u32::MAX);
        let permit = self.0.clone().try_acquire_many_owned(bytes).map_err(|_| {
            let most = BYTES_MAX / (1024 * 1024);
            Reason::Overloaded.status(format!(
                "{most} MiB of writes are under way; wait a little, then try again"
            ))
        })?;
        Ok(Admitted {
            _bytes: Some(Arc::new(permit)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_beyond_the_bound_are_refused_until_others_end() {
        let admission = Admission::default();
        let half = admission.take(BYTES_MAX / 2).unwrap();
        let small: Vec<_> = (0..BYTES_MAX / 2 / BYTES_MIN)
            .map(|_| admission.take(1).unwrap())
            .collect();
        let refused = admission.take(1).unwrap_err();
        assert_eq!(Reason::from_status(&refused), Some(Reason::Overloaded));
        drop(half);
        assert!(admission.take(usize::MAX).is_err(), "as long as there are others");
        drop(small);
        assert!(
            admission.take(usize::MAX).is_ok(),
            "the largest write fits when there is no other"
        );
    }
}
