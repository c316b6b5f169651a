//! Flags about where users come in.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use clap::Args;
use holdfast_proxy::Address;
use listenfd::ListenFd;

use crate::config::{Settings, parse};

#[derive(Debug, Args)]
#[command(next_help_heading = "Where users come in")]
pub(super) struct DoorArgs {
    /// Serves users on this address. [default: every address]
    #[arg(long, env = "HOLDFAST_IP", value_name = "IP")]
    ip: Option<String>,

    /// Serves users on this port: HTTP/1.1, HTTP/2, WebSockets, and /_chp_healthz. Sockets that systemd hands over take
    /// the place of --ip and --port.
    #[arg(long, env = "HOLDFAST_PORT", value_name = "PORT", default_value = "8000")]
    port: String,

    /// Serves users on this unix socket instead of --ip and --port.
    #[arg(long, env = "HOLDFAST_SOCKET", value_name = "FILE")]
    socket: Option<String>,

    /// Serves users here as well: comma-separated IP:PORT, or unix:FILE.
    #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDRESS,...")]
    listen: Option<String>,
}

/// Where users come in.
pub(super) struct Doors {
    /// Of this machine, for listeners that are told a port alone.
    pub(super) ip: IpAddr,
    pub(super) listen: Vec<Address>,
}

impl DoorArgs {
    pub(super) fn read(&self, settings: &mut Settings) -> Option<Doors> {
        let ip = settings.read("ip", self.ip.as_deref().unwrap_or_default(), parse::ip);
        let port = settings.read("port", &self.port, parse::port);
        let socket = settings.read_optional("socket", self.socket.as_deref(), |path| {
            Address::parse(&format!("unix:{path}"))
        });
        let further = settings.read_optional("listen", self.listen.as_deref(), addresses);
        let inherited = inherited(settings);
        let (ip, port, socket, further) = (ip?, port?, socket?, further?);
        let own = || vec![socket.unwrap_or(Address::Tcp(SocketAddr::new(ip, port)))];
        let mut listen = if inherited.is_empty() { own() } else { inherited };
        listen.extend(further.into_iter().flatten());
        Some(Doors { ip, listen })
    }
}

fn addresses(list: &str) -> Result<Vec<Address>, String> {
    let address = |text| Address::parse(text).map_err(|problem| format!("{text:?} {problem}"));
    list.split(',').map(str::trim).map(address).collect()
}

/// Sockets that whoever started this process listens on for it.
fn inherited(settings: &mut Settings) -> Vec<Address> {
    let mut handed = ListenFd::from_env();
    let mut addresses = Vec::new();
    for at in 0..handed.len() {
        let tcp = handed.take_tcp_listener(at).ok().flatten().map(OwnedFd::from);
        let socket = tcp.or_else(|| handed.take_unix_listener(at).ok().flatten().map(OwnedFd::from));
        match socket {
            Some(socket) => addresses.push(Address::Inherited(Arc::new(socket))),
            None => settings.refuse_as(format!(
                "LISTEN_FDS: socket {at} is neither TCP nor a unix stream: hand over others"
            )),
        }
    }
    addresses
}
