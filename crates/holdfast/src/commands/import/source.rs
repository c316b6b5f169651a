//! Where routes come from, and what they are called there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_replica::chp_form;
use holdfast_table::Target;
use holdfast_tls::TargetIdentity;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::http::Api;

/// Where routes come from.
pub(super) enum Source {
    File {
        file: String,
        host_routing: bool,
    },
    Chp {
        url: Target,
        token: Option<String>,
        identity: Arc<TargetIdentity>,
        host_routing: bool,
    },
    Cluster(Endpoints),
}

/// A route as somebody gives it, not looked at yet.
#[derive(Debug)]
pub(in crate::commands) struct Draft {
    /// What to call it in a message.
    pub name: String,
    pub routespec: String,
    pub target: String,
    pub data: String,
    pub namespace: String,
}

/// Routes, and what is wrong with those that are none.
pub(in crate::commands) type Drafts = (Vec<Draft>, Vec<String>);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { file, .. } if file == "-" => f.write_str("standard input"),
            Source::File { file, .. } => write!(f, "file {file:?}"),
            Source::Chp { url, .. } => url.fmt(f),
            Source::Cluster(endpoints) => f.write_str(&endpoints.addresses().collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Source {
    /// All its routes.
    ///
    /// # Errors
    /// It cannot be read. Less than all is never returned.
    pub(super) async fn read(&self, timeout: Duration) -> anyhow::Result<Drafts> {
        match self {
            Source::File { file, host_routing } => {
                let text = match file.as_str() {
                    "-" => std::io::read_to_string(std::io::stdin().lock()),
                    file => std::fs::read_to_string(file),
                };
                let text = text.with_context(|| format!("{self} cannot be read"))?;
                read(&text, *host_routing).with_context(|| self.to_string())
            }
            Source::Chp {
                url,
                token,
                identity,
                host_routing,
            } => {
                let api = Api::new(url.clone(), token.clone(), timeout).with(identity.clone());
                let answer = api.ask(Method::GET, "/api/routes").await?;
                match answer.status {
                    StatusCode::OK => {}
                    StatusCode::FORBIDDEN => {
                        bail!("{self} refuses the token\nWhat to do: give CONFIGPROXY_AUTH_TOKEN in --token-file.")
                    }
                    status => bail!(
                        "{self}: {status} {}\nWhat to do: check --from-chp; it is the address of the API.",
                        answer.beginning()
                    ),
                }
                let text = std::str::from_utf8(answer.body()).with_context(|| self.to_string())?;
                read(text, *host_routing).with_context(|| self.to_string())
            }
            Source::Cluster(endpoints) => {
                let listing = RouteReader::new(endpoints.clone(), timeout).list(None, "").await;
                let listing = listing.with_context(|| format!("the routes of {self} cannot be listed"))?;
                let drafts = listing.routes.into_iter().map(|entry| Draft {
                    name: entry.route.spec.to_string(),
                    routespec: entry.route.spec.to_string(),
                    target: entry.route.target.to_string(),
                    data: entry.route.data.as_str().to_owned(),
                    namespace: entry.route.namespace.to_string(),
                });
                Ok((drafts.collect(), Vec::new()))
            }
        }
    }
}

/// Reads a document of either form.
///
/// # Errors
/// It has neither.
pub(in crate::commands) fn read(text: &str, host_routing: bool) -> anyhow::Result<Drafts> {
    let forms = "must be what `holdfast export` writes, or what configurable-http-proxy answers to GET /api/routes";
    let document: BTreeMap<String, &RawValue> = serde_json::from_str(text).context(forms)?;
    // A path of configurable-http-proxy's begins with a slash.
    match document.get("routes") {
        Some(routes) => {
            let routes: Vec<&RawValue> = serde_json::from_str(routes.get()).context(forms)?;
            let drafts = routes.into_iter().enumerate();
            Ok(apart(
                drafts.map(|(at, route)| exported(&format!("route {}", at + 1), route)),
            ))
        }
        None if document.keys().all(|path| path.starts_with('/')) => Ok(apart(
            document
                .into_iter()
                .map(|(path, object)| of_chp(&path, object, host_routing)),
        )),
        None => bail!("{forms}"),
    }
}

fn apart(drafts: impl Iterator<Item = Result<Draft, String>>) -> Drafts {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for draft in drafts {
        match draft {
            Ok(draft) => good.push(draft),
            Err(mistake) => bad.push(mistake),
        }
    }
    (good, bad)
}

fn exported(place: &str, route: &RawValue) -> Result<Draft, String> {
    #[derive(Deserialize)]
    struct Form<'a> {
        routespec: String,
        target: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        #[serde(default)]
        namespace: String,
    }
    let form: Form<'_> = serde_json::from_str(route.get()).map_err(|error| format!("{place}: {error}"))?;
    let data = form.data.map_or("", RawValue::get);
    let data = match data.starts_with('"') {
        true => serde_json::from_str(data).map_err(|error| format!("{place}: data: {error}"))?,
        false => data.to_owned(),
    };
    Ok(Draft {
        name: form.routespec.clone(),
        routespec: form.routespec,
        target: form.target,
        data,
        namespace: form.namespace,
    })
}

fn of_chp(path: &str, object: &RawValue, host_routing: bool) -> Result<Draft, String> {
    let spec = chp_form::spec(path, host_routing).map_err(|error| format!("{path}: {error}"))?;
    let object: chp_form::Object = serde_json::from_str(object.get()).map_err(|error| format!("{path}: {error}"))?;
    let target = chp_form::target(&object).ok_or_else(|| format!("{path}: has no target that is a string"))?;
    Ok(Draft {
        name: path.to_owned(),
        routespec: spec.as_str().to_owned(),
        target,
        data: chp_form::data(object, &spec).map_err(|error| format!("{path}: {error}"))?,
        namespace: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chps_routes_become_those_that_its_hub_would_write() {
        let text = r#"{
            "/": {"target": "http://hub:8081", "hub": true, "jupyterhub": true, "last_activity": "2026-11-22T00:00:00Z"},
            "/user/zoë x": {"target": "http://10.0.0.1:1", "user": "zoë x", "n": 1.50, "jupyterhub": true},
            "/docs": {"target": "http://10.0.0.2:1"}
        }"#;
        let (drafts, mistakes) = read(text, false).unwrap();
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let seen: Vec<_> = drafts
            .iter()
            .map(|draft| [&draft.routespec, &draft.target, &draft.data].map(String::as_str))
            .collect();
        assert_eq!(
            seen,
            [
                ["/", "http://hub:8081", r#"{"hub":true}"#],
                ["/docs/", "http://10.0.0.2:1", r#"{"jupyterhub":null}"#],
                [
                    "/user/zo%C3%AB%20x/",
                    "http://10.0.0.1:1",
                    r#"{"n":1.50,"user":"zoë x"}"#
                ],
            ]
        );
        let (drafts, _) = read(r#"{"/a.hub.test/user/a": {"target": "http://10.0.0.1:1"}}"#, true).unwrap();
        assert_eq!(drafts[0].routespec, "a.hub.test/user/a/");
        assert_eq!(drafts[0].data, r#"{"host":"a.hub.test","jupyterhub":null}"#);
    }

    #[test]
    fn every_mistake_is_told_and_no_other_document_is_taken() {
        let (drafts, mistakes) = read(
            r#"{"routes":[{"routespec":"/a/"},{"target":1},{"routespec":"/c/","target":"http://h:1"}]}"#,
            false,
        )
        .unwrap();
        assert_eq!((drafts.len(), mistakes.len()), (1, 2));
        assert!(
            mistakes[0].starts_with("route 1: ") && mistakes[1].starts_with("route 2: "),
            "{mistakes:?}"
        );
        let (_, mistakes) = read(r#"{"/a":{},"/b/../c":{"target":"http://h:1"},"/d":[]}"#, false).unwrap();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        for none in ["", "[]", "{", r#"{"user":{}}"#, r#"{"routes":{}}"#] {
            assert!(read(none, false).is_err(), "{none}");
        }
    }
}
