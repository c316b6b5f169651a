//! Envoy: a static listener and clusters, and the routes in a file of their own, which it reads again when it is replaced.

use std::fs;

use anyhow::Result;
use holdfast_tests::fixture::Process;

use super::{Kind, Place, Routes};

const FILE: &str = "envoy.json";
const ROUTES: &str = "routes.json";
const TYPE: &str = "type.googleapis.com";

/// How the routes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Tried one after the other.
    List,
    /// Found in a tree of prefixes.
    Tree,
}

pub(super) fn prepare(place: &Place, routes: &Routes, form: Form) -> Result<Process> {
    let clusters: Vec<_> = (0..routes.targets().len())
        .map(|target| cluster(routes, target))
        .collect();
    let routes_file = place.folder().join(ROUTES);
    let config = format!(
        r#"{{"node": {{"id": "bench", "cluster": "bench"}}, "static_resources": {{
  "listeners": [{{"name": "users", "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
    "filter_chains": [{{"filters": [{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
      "@type": "{TYPE}/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
      "stat_prefix": "users", "use_remote_address": true, "generate_request_id": false, "stream_idle_timeout": "0s",
      "upgrade_configs": [{{"upgrade_type": "websocket"}}],
      "rds": {{"route_config_name": "routes", "config_source": {{"resource_api_version": "V3",
        "path_config_source": {{"path": "{routes_file}"}}}}}},
      "http_filters": [{{"name": "envoy.filters.http.router", "typed_config": {{
        "@type": "{TYPE}/envoy.extensions.filters.http.router.v3.Router"}}}}]
    }}}}]}}]}}],
  "clusters": [{clusters}]}}}}"#,
        port = place.port,
        routes_file = routes_file.display(),
        clusters = clusters.join(",\n")
    );
    fs::write(place.folder().join(FILE), config)?;
    write_routes(place, routes, form)?;
    let kind = match form {
        Form::List => Kind::Envoy,
        Form::Tree => Kind::EnvoyTree,
    };
    // Hot restart shares memory under an id that two of one machine would fight for.
    Ok(place
        .process(kind)?
        .args(["--disable-hot-restart", "-l", "error", "-c", FILE]))
}

/// All routes, in place of the file that is there.
pub(super) fn write_routes(place: &Place, routes: &Routes, form: Form) -> Result<()> {
    let each: Vec<_> = (0..routes.count()).map(|route| one(routes, route, form)).collect();
    let each = each.join(",\n");
    let matched = match form {
        Form::List => format!(r#""routes": [{each}]"#),
        Form::Tree => format!(
            r#""matcher": {{"matcher_tree": {{
  "input": {{"name": "path", "typed_config": {{
    "@type": "{TYPE}/envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": ":path"}}}},
  "prefix_match_map": {{"map": {{{each}}}}}}}}}"#
        ),
    };
    let config = format!(
        r#"{{"resources": [{{"@type": "{TYPE}/envoy.config.route.v3.RouteConfiguration", "name": "routes",
  "virtual_hosts": [{{"name": "users", "domains": ["*"], {matched}}}]}}]}}"#
    );
    let new = place.folder().join("new.json");
    fs::write(&new, config)?;
    // Only a file that is moved there is seen.
    fs::rename(new, place.folder().join(ROUTES))?;
    Ok(())
}

fn one(routes: &Routes, route: usize, form: Form) -> String {
    let (prefix, target) = (routes.prefix(route), routes.target(route));
    let to = format!(r#""route": {{"cluster": "t{target}", "timeout": "0s"}}"#);
    match form {
        Form::List => format!(r#"{{"match": {{"prefix": "{prefix}"}}, {to}}}"#),
        Form::Tree => format!(
            r#""{prefix}": {{"action": {{"name": "route", "typed_config": {{"@type": "{TYPE}/envoy.config.route.v3.Route", "match": {{"prefix": "/"}}, {to}}}}}}}"#
        ),
    }
}

/// With limits that no load of ours reaches.
fn cluster(routes: &Routes, target: usize) -> String {
    const MOST: u32 = 1_000_000;
    let address = routes.targets()[target];
    format!(
        r#"{{"name": "t{target}", "type": "STATIC", "connect_timeout": "5s",
    "circuit_breakers": {{"thresholds": [{{"max_connections": {MOST}, "max_pending_requests": {MOST}, "max_requests": {MOST}}}]}},
    "load_assignment": {{"cluster_name": "t{target}", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {{
      "socket_address": {{"address": "{ip}", "port_value": {port}}}}}}}}}]}}]}}}}"#,
        ip = address.ip(),
        port = address.port()
    )
}
