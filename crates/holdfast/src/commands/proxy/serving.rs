//! What a proxy is told of users and targets, be it by `holdfast proxy` or by `holdfast up`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use holdfast_client::Endpoints;
use holdfast_proxy::ProxyConfig;

use super::forwarding::ForwardingArgs;
use super::seen::SeenArgs;
use super::users::UserArgs;
use crate::config::Settings;

/// What may be the same for all proxies.
#[derive(Debug, Args)]
pub struct ServingArgs {
    #[command(flatten)]
    pub(in crate::commands) users: UserArgs,

    #[command(flatten)]
    pub(in crate::commands) forwarding: ForwardingArgs,

    #[command(flatten)]
    pub(in crate::commands) seen: SeenArgs,
}

impl ServingArgs {
    /// A proxy on `ip` as these flags have it; its name, its replicas, its directory and its port are still to be said.
    pub fn read(&self, settings: &mut Settings, ip: IpAddr) -> Option<ProxyConfig> {
        let nowhere = Endpoints::parse(&["127.0.0.1:1"]).ok()?;
        let mut config = ProxyConfig::new(String::new(), nowhere, SocketAddr::new(ip, 0), PathBuf::new());
        self.users.read(settings, ip, &mut config);
        self.forwarding.read(settings, &mut config);
        self.seen.read(settings, &mut config);
        Some(config)
    }
}
