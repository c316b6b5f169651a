//! Starts real clusters and attacks them: what the integration tests and the demo `incident` share.

pub mod apart;
pub mod clients;
pub mod echo;
pub mod fixture;
pub mod herd;
pub mod history;
pub mod http;
pub mod http2;
pub mod leader_kills;
pub mod prober;
mod serving;
pub mod soak;
pub mod tls;
pub mod websocket;
pub mod writes;
