//! LiveTable: the table that is served now.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use holdfast_table::{Epoch, Revision, Table};
use tokio::sync::watch;

/// The newest table known, replaced as a whole; a handle that is cheap to clone. `None` until there is a first one.
///
/// Once there is a table there is always one: nothing takes it away.
#[derive(Clone)]
pub struct LiveTable {
    shared: Arc<Shared>,
}

struct Shared {
    table: ArcSwapOption<Table>,
    position: watch::Sender<Option<(Epoch, Revision)>>,
}

impl LiveTable {
    /// Without a table.
    pub fn empty() -> Self {
        LiveTable {
            shared: Arc::new(Shared {
                table: ArcSwapOption::empty(),
                position: watch::Sender::new(None),
            }),
        }
    }

    /// The table, for the length of one lookup. Takes no lock; do not hold it across an `await`.
    pub fn current(&self) -> Guard<Option<Arc<Table>>> {
        self.shared.table.load()
    }

    /// The table, to be kept as long as wanted.
    pub fn load(&self) -> Option<Arc<Table>> {
        self.shared.table.load_full()
    }

    /// Where the table is. Changes after the table did: who sees a position here finds that table, or a newer one.
    pub fn watch(&self) -> watch::Receiver<Option<(Epoch, Revision)>> {
        self.shared.position.subscribe()
    }

    /// Serves `table` from now on. A [`Subscriber`](crate::Subscriber) does this for its own; it is public for those
    /// who have a table from elsewhere.
    pub fn replace(&self, table: Table) {
        let position = (table.epoch(), table.revision());
        self.shared.table.store(Some(Arc::new(table)));
        self.shared.position.send_replace(Some(position));
    }
}

impl From<Table> for LiveTable {
    fn from(table: Table) -> Self {
        let live = LiveTable::empty();
        live.replace(table);
        live
    }
}

impl fmt::Debug for LiveTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveTable")
            .field(&*self.shared.position.borrow())
            .finish()
    }
}
