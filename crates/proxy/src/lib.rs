//! HTTP and WebSocket reverse proxy: it follows the cluster's table, keeps a copy on disk and serves from memory.
//!
//! [`ProxyConfig`] -> [`Proxy`] (`build`) -> `run` until a token is cancelled, then drain.

mod accept;
mod admin;
mod cache;
pub mod config;
mod forward;
mod metrics;
mod pages;
pub mod proxy;
mod signal;
mod targets;
mod tunnel;

pub use cache::{Refusal as CacheRefusal, read as read_cache};
pub use config::{ConfigError, ProxyConfig};
pub use proxy::{BuildError, Proxy, RunError};
