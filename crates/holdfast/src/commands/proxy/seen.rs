//! Flags about what is seen of users' requests.

use clap::Args;
use holdfast_proxy::{AccessLogTo, ProxyConfig, WebsocketActivity};

use crate::config::{Settings, parse};

#[derive(Debug, Args)]
#[command(next_help_heading = "What is seen of requests")]
pub struct SeenArgs {
    /// Writes a line of JSON for each request at the end of this file, or on standard output if it is -. No queries, cookies or other
    /// headers of users appear in it. A file that is moved away is made anew. [default: nowhere]
    #[arg(long, env = "HOLDFAST_ACCESS_LOG", value_name = "FILE")]
    pub(in crate::commands) access_log: Option<String>,

    /// What makes a WebSocket an activity of its route: client-data, any byte of the client's, its browser's answers to pings
    /// among them, as under configurable-http-proxy; frames-without-control, which these are not; or connection, that it is open.
    #[arg(
        long,
        env = "HOLDFAST_WS_ACTIVITY",
        value_name = "RULE",
        default_value = "client-data"
    )]
    pub(in crate::commands) ws_activity: String,

    /// How often the replicas are told which routes were active.
    #[arg(
        long,
        env = "HOLDFAST_ACTIVITY_INTERVAL",
        value_name = "DURATION",
        default_value = "5s"
    )]
    pub(in crate::commands) activity_interval: String,
}

impl SeenArgs {
    pub(super) fn read(&self, settings: &mut Settings, config: &mut ProxyConfig) {
        let to = self.access_log.as_deref().filter(|to| !to.is_empty());
        settings.set(&mut config.access_log, "access-log", to, |text| {
            AccessLogTo::parse(text).map(Some)
        });
        let rule = Some(self.ws_activity.as_str());
        settings.set(
            &mut config.websocket_activity,
            "ws-activity",
            rule,
            WebsocketActivity::parse,
        );
        let interval = Some(self.activity_interval.as_str());
        settings.set(
            &mut config.activity_interval,
            "activity-interval",
            interval,
            parse::positive_duration,
        );
    }
}
