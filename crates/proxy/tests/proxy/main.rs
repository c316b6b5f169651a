//! A real proxy between raw sockets: what goes in, what comes out, and what a target gets to see.

mod access_log;
mod activity;
mod certificates;
mod descriptors;
mod differential;
mod doors;
mod drain;
mod fixture;
mod forwarding;
mod http2;
mod hygiene;
mod policy;
mod routing;
mod table;
mod targets;
mod tls;
mod websockets;
