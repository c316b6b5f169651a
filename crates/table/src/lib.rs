//! What a route table is: pure, no I/O, no clock, no async, no protobuf.

pub mod allow;
pub mod batch;
pub mod delta;
pub mod digest;
pub mod fence;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod held;
pub mod history;
pub mod lineage;
pub mod losses;
pub mod path;
pub mod ranges;
pub mod revision;
pub mod route;
pub mod sessions;
pub mod state;
pub mod table;

pub use allow::{Allowed, Denied, TargetRule};
pub use batch::{Batch, BatchError, Change, Precondition};
pub use delta::Delta;
pub use digest::Digest;
pub use fence::{Hub, HubEpoch, HubId, Hubs};
pub use held::{Hold, HoldPolicy, Holds, Settlement, Stamp};
pub use lineage::Lineage;
pub use losses::Loss;
pub use path::{Host, PathError, RequestPath};
pub use revision::{Epoch, Revision};
pub use route::{Data, FieldError, Namespace, Route, RouteKey, RouteSpec, Scheme, Target};
pub use state::{Command, Forgotten, Outcome, Rejection, State, Written};
pub use table::{DeltaError, Entry, Table};
