//! What the hub says: which servers its users have, and which services there are. All of it, or an error.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_table::{RouteSpec, Target};
use holdfast_tls::TargetIdentity;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::http::{self, Api};
use crate::output::Progress;

/// A busy hub takes seconds for a page, and longer for a check of all its routes.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Users to a page; the hub may have a lower limit.
const PAGE: u64 = 200;
/// A page begins with the last users of the one before. If it knows none of them, somebody has left meanwhile and others
/// have moved to where we do not look.
const OVERLAP: u64 = 10;
/// So often the list is begun anew.
const WALKS_MAX: usize = 5;
/// What the token must be allowed, without any restriction: who sees a part of the users would take the others' routes
/// for superfluous.
const SCOPES: [&str; 4] = ["list:users", "read:servers", "list:services", "read:services"];
/// To have the hub check its routes.
const REPAIR_SCOPE: &str = "proxy";

/// Everything that the hub wants to be routed for others.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Running, or just being started or stopped.
    pub servers: Vec<Server>,
    pub services: Vec<Service>,
}

/// One server of a user.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub user: String,
    /// Empty for the default server.
    pub name: String,
    /// As the hub gives it: a path, or a URL where each user has a host.
    pub url: String,
    /// Its route. `None`: no route can be so.
    pub spec: Option<RouteSpec>,
    /// False while it is being started, stopped, looked at or renamed. Then whoever does that sees to its route.
    pub ready: bool,
}

/// A service with an address of its own.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub name: String,
    /// The path of its route. With a host for each service the hub does not tell which.
    pub prefix: String,
}

/// The hub's REST API.
pub(super) struct Hub {
    api: Api,
}

#[derive(Deserialize)]
struct Myself {
    scopes: HashSet<String>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<UserModel>,
    #[serde(rename = "_pagination")]
    position: Position,
}

#[derive(Deserialize)]
struct Position {
    offset: u64,
    limit: u64,
    total: u64,
    next: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct UserModel {
    name: String,
    servers: Option<BTreeMap<String, ServerModel>>,
}

#[derive(Deserialize)]
struct ServerModel {
    url: String,
    ready: bool,
    #[serde(default)]
    pending: Value,
}

#[derive(Deserialize)]
struct ServiceModel {
    #[serde(default)]
    url: Value,
    #[serde(default)]
    prefix: Value,
}

impl Hub {
    /// `url` is the hub's own or that of its API: `http://hub:8081`, `http://hub:8081/jupyter/hub/api`.
    pub fn new(url: Target, token: String, identity: Arc<TargetIdentity>) -> Self {
        let api = Api::new(url, Some(token), ANSWER_WITHIN).with(identity);
        Hub {
            api: api.accepting("application/jupyterhub-pagination+json"),
        }
    }

    /// Reads the setting.
    pub fn url(text: &str) -> Result<Target, String> {
        let url = http::url(text)?;
        match url.path().ends_with("/hub/api") {
            true => Ok(url),
            false => http::url(&format!("{}/hub/api", text.trim_end_matches('/'))),
        }
    }

    /// Makes sure that the token shows everything, and with `repair` that it may have the hub check its routes.
    ///
    /// # Errors
    /// It does not, or the hub does not answer.
    pub async fn check_token(&self, repair: bool) -> anyhow::Result<()> {
        let myself: Myself = self.get("/user").await?;
        let needed = SCOPES.iter().chain(repair.then_some(&REPAIR_SCOPE));
        let missing: Vec<&str> = needed
            .copied()
            .filter(|scope| !myself.scopes.contains(*scope))
            .collect();
        ensure!(
            missing.is_empty(),
            "the token may not see everything, or only for some users: it lacks {}\nWhat to do: give a token of a \
             service or user whose role has these scopes, without any filter.",
            missing.join(", ")
        );
        Ok(())
    }

    /// All servers that are not stopped, and all services.
    ///
    /// # Errors
    /// The hub did not answer, or not with all of them.
    pub async fn wanted(&self, progress: &mut Progress) -> anyhow::Result<Wanted> {
        let services: BTreeMap<String, ServiceModel> = self.get("/services").await?;
        let services = services.into_iter().filter_map(|(name, service)| {
            let prefix = service.prefix.as_str().filter(|prefix| !prefix.is_empty())?.to_owned();
            service.url.as_str().filter(|url| !url.is_empty())?;
            Some(Service { name, prefix })
        });
        let services = services.collect();
        for _ in 0..WALKS_MAX {
            if let Some(users) = self.users(progress).await? {
                let servers = users.into_iter().map(servers).collect::<anyhow::Result<Vec<_>>>()?;
                return Ok(Wanted {
                    servers: servers.into_iter().flatten().collect(),
                    services,
                });
            }
        }
        bail!("the hub's users come and go faster than they can be listed: try again when it is quieter")
    }

    /// Every user with a server that is not stopped; `None` if one may have been missed, for they moved.
    async fn users(&self, progress: &mut Progress) -> anyhow::Result<Option<Vec<UserModel>>> {
        let mut users: BTreeMap<String, UserModel> = BTreeMap::new();
        let mut offset = 0;
        loop {
            let path = format!("/users?state=active&sort=id&offset={offset}&limit={PAGE}");
            let page: Page = self.get(&path).await?;
            let Position {
                offset: at,
                limit,
                total,
                next,
            } = page.position;
            let expected = total.saturating_sub(at).min(limit);
            ensure!(
                at == offset && page.items.len() as u64 == expected,
                "the hub gave {} of {expected} users from number {offset} on: the token does not see all of them",
                page.items.len()
            );
            let overlap = OVERLAP.min(limit / 2);
            let is_known = page.items.iter().any(|user| users.contains_key(&user.name));
            if offset > 0 && overlap > 0 && !is_known {
                return Ok(None);
            }
            offset = at + limit - overlap;
            users.extend(page.items.into_iter().map(|user| (user.name.clone(), user)));
            progress.say(|| format!("the hub's users: {} of {total}", users.len()));
            if next.is_none() {
                return Ok(Some(users.into_values().collect()));
            }
        }
    }

    /// Has the hub check its routes, as it does by itself every now and then: it adds what is missing and removes what it
    /// does not know.
    ///
    /// # Errors
    /// It did not.
    pub async fn check_routes(&self) -> anyhow::Result<()> {
        let answer = self.api.ask(Method::POST, "/proxy").await?;
        ensure!(
            answer.status.is_success(),
            "the hub cannot check its routes: {} {}",
            answer.status,
            answer.beginning()
        );
        Ok(())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.api.ask(Method::GET, path).await?;
        match answer.status {
            StatusCode::OK => answer.json().with_context(|| format!("GET {path}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
                "the hub refuses the token: GET {path}: {}\nWhat to do: check --token-file.",
                answer.status
            ),
            status => bail!(
                "GET {path}: {status} {}\nWhat to do: check --hub-url.",
                answer.beginning()
            ),
        }
    }
}

fn servers(user: UserModel) -> anyhow::Result<Vec<Server>> {
    let servers = user.servers.with_context(|| {
        format!(
            "the hub tells nothing of the servers of user {:?}: the token lacks read:servers",
            user.name
        )
    })?;
    let of = |(name, server): (String, ServerModel)| Server {
        user: user.name.clone(),
        spec: RouteSpec::parse(&routespec(&server.url)).ok(),
        ready: server.ready && !server.pending.is_string(),
        name,
        url: server.url,
    };
    Ok(servers.into_iter().map(of).collect())
}

/// The routespec of a server at this address: a path stays what it is, of a URL the host goes before the path.
fn routespec(url: &str) -> String {
    let Some((_, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
    format!("{}{path}", &authority[..port.unwrap_or(authority.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_address_is_its_route() {
        for (url, expected) in [
            ("/user/alice/", "/user/alice/"),
            ("/jupyter/user/zo%C3%AB@b/second/", "/jupyter/user/zo%C3%AB@b/second/"),
            ("http://alice.hub.test:8000/user/alice/", "alice.hub.test/user/alice/"),
            ("https://alice.hub.test/user/alice/", "alice.hub.test/user/alice/"),
            ("http://[::1]:8000/user/alice/", "[::1]/user/alice/"),
            ("http://[::1]/user/alice/", "[::1]/user/alice/"),
        ] {
            assert_eq!(routespec(url), expected);
        }
    }

    #[test]
    fn the_hubs_url_may_be_its_apis() {
        for (url, path) in [
            ("http://hub:8081", "/hub/api"),
            ("http://hub:8081/", "/hub/api"),
            ("http://hub:8081/hub/api", "/hub/api"),
            ("http://hub:8081/jupyter/", "/jupyter/hub/api"),
            ("http://hub:8081/jupyter/hub/api/", "/jupyter/hub/api"),
            ("http+unix://%2Frun%2Fhub.sock", "/hub/api"),
        ] {
            assert_eq!(Hub::url(url).unwrap().path(), path, "{url}");
        }
    }
}
