//! Talking to the cluster: write, read, and follow its table.
//!
//! Everything here is made to be cloned and shared, and to be given up at any moment by dropping its future.

pub mod activity;
mod attempts;
pub mod backoff;
pub mod backup;
pub mod credentials;
pub mod endpoints;
mod following;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod live_table;
pub mod operator;
mod read_ahead;
pub mod reader;
pub mod refusals;
pub mod subscriber;
#[cfg(test)]
mod testing;
pub mod writer;

pub use activity::{ActivitySource, Reports};
pub use backup::BackupStream;
pub use credentials::{Credentials, CredentialsError, ReplicaTls};
pub use endpoints::{EndpointError, Endpoints};
pub use live_table::LiveTable;
pub use operator::{Operator, OperatorError};
pub use read_ahead::read_ahead;
pub use reader::{Listing, ReadError, RouteReader};
pub use refusals::Refusals;
pub use subscriber::{Cached, Freshness, Source, Subscriber, SubscriberConfig};
pub use writer::{Answer, RouteWriter, WriteError, WriterOptions};
