//! A real proxy between raw sockets: what goes in, what comes out, and what a target gets to see.

mod drain;
mod fixture;
mod forwarding;
mod hygiene;
mod routing;
mod table;
mod websockets;
