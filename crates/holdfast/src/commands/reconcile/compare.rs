//! Where hub, table, targets and proxies disagree, and what may be done about it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_table::{Entry, Revision, RouteKey, RouteSpec, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hub::{Server, Wanted};
use super::targets::{Reach, address};

/// Users named in one line.
const NAMED_MAX: usize = 5;

/// Everything that was looked at, the table first and the hub last.
pub(super) struct Seen<'a> {
    /// Of the hub's namespace.
    pub routes: &'a [Entry],
    pub wanted: &'a Wanted,
    /// By address; one that is missing was not looked at.
    pub reached: &'a HashMap<String, Reach>,
    pub proxies: &'a [Proxy],
    /// Replicas that did not answer; proxies that follow them are not among the proxies.
    pub silent_replicas: &'a [String],
}

/// A proxy as somebody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    pub name: String,
    /// `None`: it has the table that was looked at, or a newer one.
    pub problem: Option<(Kind, String)>,
}

/// How two of them disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    TwoUsersOneTarget,
    ServerWithoutRoute,
    RouteWithoutServer,
    DeadTarget,
    ProxyDiffers,
    ProxyBehind,
    ReplicaSilent,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::TwoUsersOneTarget => "two users on one target",
            Kind::ServerWithoutRoute => "server without route",
            Kind::RouteWithoutServer => "route without server",
            Kind::DeadTarget => "dead target",
            Kind::ProxyDiffers => "proxy has another table",
            Kind::ProxyBehind => "proxy behind",
            Kind::ReplicaSilent => "replica does not answer",
        }
    }
}

/// What would mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// The hub adds the route when it checks its routes; it alone knows the target.
    HubChecks,
    /// The route goes if it is still this version.
    Delete(RouteSpec, Revision),
    /// What an operator may do, who knows more.
    ByHand(String),
}

impl Repair {
    /// True if it cannot do harm, whatever else is true.
    pub(super) fn is_safe(&self) -> bool {
        !matches!(self, Repair::ByHand(_))
    }

    pub(super) fn text(&self) -> String {
        match self {
            Repair::HubChecks => "have the hub check its routes".to_owned(),
            Repair::Delete(_, revision) => format!("delete the route if it is still at revision {revision}"),
            Repair::ByHand(text) => text.clone(),
        }
    }
}

/// One disagreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disagreement {
    pub kind: Kind,
    /// A routespec, a target, a proxy's or a replica's name.
    pub about: String,
    pub what: String,
    pub repair: Repair,
}

impl Disagreement {
    /// True if it was seen before, and nothing has been done about it since.
    pub(super) fn is_same(&self, earlier: &Disagreement) -> bool {
        (self.kind, &self.about, &self.repair) == (earlier.kind, &earlier.about, &earlier.repair)
    }
}

/// On whose behalf the hub added a route.
enum Owner {
    User(String),
    Service(String),
    Hub,
    /// Configured by somebody.
    Other,
}

/// How many routes are users' servers'.
pub(super) fn routes_of_users(routes: &[Entry]) -> usize {
    let owners = routes.iter().map(owner);
    owners.filter(|owner| matches!(owner, Owner::User(_))).count()
}

/// Every disagreement, sorted by kind and name.
pub(super) fn compare(seen: &Seen<'_>) -> Vec<Disagreement> {
    let mut found = Vec::new();
    missing_routes(seen, &mut found);
    judge_routes(seen, &mut found);
    shared_targets(seen, &mut found);
    for proxy in seen.proxies {
        let Some((kind, what)) = &proxy.problem else { continue };
        found.push(Disagreement {
            kind: *kind,
            about: proxy.name.clone(),
            what: what.clone(),
            repair: by_hand("look with `holdfast status`; if it does not catch up by itself, restart it"),
        });
    }
    found.extend(seen.silent_replicas.iter().map(|replica| Disagreement {
        kind: Kind::ReplicaSilent,
        about: replica.clone(),
        what: "proxies that follow it were not looked at".to_owned(),
        repair: by_hand("look with `holdfast status`"),
    }));
    found.sort_by(|a, b| (a.kind, &a.about).cmp(&(b.kind, &b.about)));
    found
}

/// Servers and services that are ready and have no route.
fn missing_routes(seen: &Seen<'_>, found: &mut Vec<Disagreement>) {
    let mut missing = |about: &str, what: String, repair: Repair| {
        found.push(Disagreement {
            kind: Kind::ServerWithoutRoute,
            about: about.to_owned(),
            what,
            repair,
        });
    };
    let routed: BTreeSet<&RouteKey> = seen.routes.iter().map(|entry| entry.route.spec.key()).collect();
    for server in seen.wanted.servers.iter().filter(|server| server.ready) {
        match &server.spec {
            Some(spec) if routed.contains(spec.key()) => {}
            Some(spec) => missing(
                spec.as_str(),
                format!("{} is ready", described(server)),
                Repair::HubChecks,
            ),
            None => missing(
                &server.url,
                format!(
                    "{} is ready, and nothing can be routed to such an address",
                    described(server)
                ),
                by_hand("stop the server, and give it or its user another name"),
            ),
        }
    }
    for service in &seen.wanted.services {
        let is_its = |entry: &Entry| {
            matches!(owner(entry), Owner::Service(name) if name == service.name)
                && path(&entry.route.spec) == service.prefix
        };
        if !seen.routes.iter().any(is_its) {
            let what = format!("service {} has an address", service.name);
            missing(&service.prefix, what, Repair::HubChecks);
        }
    }
    if !seen.routes.iter().any(|entry| matches!(owner(entry), Owner::Hub)) {
        missing(
            "the hub",
            "no route leads to the hub itself".to_owned(),
            Repair::HubChecks,
        );
    }
}

/// Routes that lead to nobody, or that nobody wants.
fn judge_routes(seen: &Seen<'_>, found: &mut Vec<Disagreement>) {
    let mut servers: HashMap<&RouteKey, &Server> = HashMap::new();
    for server in &seen.wanted.servers {
        servers.extend(server.spec.as_ref().map(|spec| (spec.key(), server)));
    }
    let reach = |entry: &Entry| seen.reached.get(&address(&entry.route.target));
    // Silence tells something only where users' servers can be heard at all.
    let hears = seen
        .routes
        .iter()
        .any(|entry| matches!(owner(entry), Owner::User(_)) && matches!(reach(entry), Some(Reach::Accepts)));
    for entry in seen.routes {
        let spec = &entry.route.spec;
        let target = &entry.route.target;
        let wanted = match owner(entry) {
            Owner::User(_) => match servers.get(spec.key()) {
                Some(server) if !server.ready => continue,
                server => server.is_some(),
            },
            Owner::Service(name) => {
                let mut services = seen.wanted.services.iter();
                services.any(|service| service.name == name && service.prefix == path(spec))
            }
            Owner::Hub | Owner::Other => true,
        };
        let (kind, what, repair) = match (wanted, reach(entry)) {
            (true, Some(Reach::Accepts) | None) => continue,
            (true, Some(Reach::Refuses(why))) => (
                Kind::DeadTarget,
                format!("{target}: {why}"),
                restart(servers.get(spec.key())),
            ),
            (true, Some(Reach::Silent(why))) => {
                let doubt = if hears {
                    ""
                } else {
                    "; no user's server can be reached from here"
                };
                (
                    Kind::DeadTarget,
                    format!("{target}: {why}{doubt}"),
                    restart(servers.get(spec.key())),
                )
            }
            (false, Some(Reach::Refuses(why))) => (
                Kind::RouteWithoutServer,
                format!("{} is not known to the hub, and {target}: {why}", owned(entry)),
                Repair::Delete(spec.clone(), entry.modified),
            ),
            (false, Some(Reach::Silent(why))) if hears => (
                Kind::RouteWithoutServer,
                format!("{} is not known to the hub, and {target}: {why}", owned(entry)),
                Repair::Delete(spec.clone(), entry.modified),
            ),
            (false, Some(Reach::Silent(why))) => (
                Kind::RouteWithoutServer,
                format!(
                    "{} is not known to the hub; {target}: {why}; nor can any user's server be reached from here",
                    owned(entry)
                ),
                by_hand("run this where the targets can be reached, or delete the route with `holdfast routes delete`"),
            ),
            (false, Some(Reach::Accepts) | None) => (
                Kind::RouteWithoutServer,
                format!(
                    "{} is not known to the hub, but {target} accepts connections",
                    owned(entry)
                ),
                by_hand("find out whose server that is; stop it, or delete the route with `holdfast routes delete`"),
            ),
        };
        found.push(Disagreement {
            kind,
            about: spec.to_string(),
            what,
            repair,
        });
    }
}

/// Targets to which the routes of several users lead.
fn shared_targets(seen: &Seen<'_>, found: &mut Vec<Disagreement>) {
    let mut users: BTreeMap<(String, &str), BTreeMap<String, &Entry>> = BTreeMap::new();
    for entry in seen.routes {
        if let Owner::User(user) = owner(entry) {
            let target: &Target = &entry.route.target;
            users
                .entry((address(target), target.path()))
                .or_default()
                .insert(user, entry);
        }
    }
    for (_, users) in users.into_iter().filter(|(_, users)| users.len() > 1) {
        let mut named: Vec<String> = users
            .iter()
            .take(NAMED_MAX)
            .map(|(user, entry)| format!("{user} by {}", entry.route.spec))
            .collect();
        if let more @ 1.. = users.len().saturating_sub(NAMED_MAX) {
            named.push(format!("{more} more"));
        }
        let target = users.into_values().next().map(|entry| entry.route.target.to_string());
        found.push(Disagreement {
            kind: Kind::TwoUsersOneTarget,
            about: target.unwrap_or_default(),
            what: format!("is reached by {}", named.join(", ")),
            repair: by_hand("find out whose server it is, and delete the others' routes with `holdfast routes delete`"),
        });
    }
}

fn owner(entry: &Entry) -> Owner {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Marks {
        user: Value,
        service: Value,
        hub: Value,
    }
    // Data that we cannot read were not written by a hub.
    let marks: Marks = serde_json::from_str(entry.route.data.as_str()).unwrap_or_default();
    match (marks.user, marks.service, marks.hub) {
        (Value::String(user), ..) => Owner::User(user),
        (_, Value::String(service), _) => Owner::Service(service),
        (_, _, Value::Bool(true)) => Owner::Hub,
        _ => Owner::Other,
    }
}

fn owned(entry: &Entry) -> String {
    match owner(entry) {
        Owner::User(user) => format!("this server of {user}"),
        Owner::Service(service) => format!("service {service} at this address"),
        Owner::Hub | Owner::Other => "it".to_owned(),
    }
}

fn described(server: &Server) -> String {
    match server.name.as_str() {
        "" => format!("the server of {}", server.user),
        name => format!("the server {name} of {}", server.user),
    }
}

fn restart(server: Option<&&Server>) -> Repair {
    match server {
        Some(server) => by_hand(&format!("stop {} and start it again", described(server))),
        None => by_hand("start what should be there, or delete the route"),
    }
}

fn by_hand(text: &str) -> Repair {
    Repair::ByHand(text.to_owned())
}

/// A routespec without its host.
fn path(spec: &RouteSpec) -> &str {
    let text = spec.as_str();
    &text[text.find('/').unwrap_or(0)..]
}

#[cfg(test)]
mod tests;
