//! HTTP and WebSocket reverse proxy: it follows the cluster's table, keeps a copy on disk and serves from memory.
//!
//! [`ProxyConfig`] -> [`Proxy`] (`build`) -> `run` until a token is cancelled, then drain.
//!
//! A request's way: `accept` (limits) -> `connection` (TLS, HTTP/1.1 or HTTP/2) -> `forward` (`request`, the table,
//! `headers`, `rewrite`) -> `targets` (`pool`, `connect`); a WebSocket goes on in `tunnel`.

mod accept;
pub mod access_log;
pub mod activity;
mod admin;
mod body;
mod cache;
mod client;
pub mod config;
mod connect;
mod connection;
mod descriptors;
pub mod error_pages;
mod forward;
mod frames;
mod head;
mod headers;
pub mod listen;
mod metrics;
mod pages;
pub mod policy;
mod pool;
pub mod proxy;
mod pulse;
mod redirect;
#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
mod request;
mod rewrite;
mod signal;
mod staleness;
mod stream;
mod targets;
mod tunnel;
mod websocket;
mod workers;

pub use access_log::AccessLogTo;
pub use activity::WebsocketActivity;
pub use cache::{Refusal as CacheRefusal, read as read_cache};
pub use config::{ConfigError, ProxyConfig, Redirect};
pub use error_pages::ErrorPages;
pub use holdfast_tls::{ClientCertificates, ServerTls, TargetTls, TlsCiphers, TlsError, TlsVersions};
pub use listen::Address;
pub use policy::{Policy, Protocol, TrustedProxies};
pub use proxy::{BuildError, Proxy, RunError};

#[cfg(fuzzing)]
pub mod fuzz {
    //! What cargo-fuzz calls.
    pub use crate::cache::fuzz::cache;
    pub use crate::connection::fuzz::head;
}
