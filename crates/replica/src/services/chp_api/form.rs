//! A route as configurable-http-proxy has it: a decoded path, and an object with the target among the data.

use std::collections::BTreeMap;

use holdfast_table::{FieldError, Route, RouteSpec};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::value::{RawValue, to_raw_value};

/// What JupyterHub leaves as it is in a routespec: `quote(.., safe="@/~")` of Python.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'@')
    .remove(b'~')
    .remove(b'_')
    .remove(b'.')
    .remove(b'-');
/// Its presence says that a route is the hub's. All of the namespace are, so only its absence is kept, as `null`.
const HUBS_MARK: &str = "jupyterhub";

/// A JSON object whose values are the text that somebody wrote: no number is rounded on its way.
pub type Object = BTreeMap<String, Box<RawValue>>;

/// The routespec, in the spelling that a hub gives it, of a decoded path. One trailing slash counts for nothing; with
/// `host_routing` the first segment is a host.
///
/// # Errors
/// [`FieldError`]: no request could ever match it.
pub fn spec(path: &str, host_routing: bool) -> Result<RouteSpec, FieldError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let spelled = format!("{}/", utf8_percent_encode(path, PLAIN));
    match host_routing && spelled.len() > 1 {
        true => RouteSpec::parse(&spelled[1..]),
        false => RouteSpec::parse(&spelled),
    }
}

/// The path of a routespec: decoded, with a leading slash and without a trailing one.
pub fn path(spec: &RouteSpec) -> String {
    let text = spec.as_str();
    let text = text.strip_suffix('/').unwrap_or(text);
    let decoded = percent_decode_str(text).decode_utf8_lossy();
    match decoded.starts_with('/') {
        true => decoded.into_owned(),
        false => format!("/{decoded}"),
    }
}

/// The target in an object; `None` if it has none, or one that is no string.
pub fn target(object: &Object) -> Option<String> {
    serde_json::from_str(object.get("target")?.get()).ok()
}

/// The data to keep of an object.
///
/// # Errors
/// Never, for what was read from JSON.
pub fn data(mut object: Object, spec: &RouteSpec) -> Result<String, serde_json::Error> {
    object.remove("target");
    // Ours to say.
    object.remove("last_activity");
    if let Some((host, _)) = spec.as_str().split_once('/').filter(|(host, _)| !host.is_empty()) {
        object.insert("host".into(), to_raw_value(host)?);
    }
    match object.get(HUBS_MARK).map(|mark| mark.get()) {
        None => drop(object.insert(HUBS_MARK.into(), to_raw_value(&())?)),
        Some("true" | "null") => drop(object.remove(HUBS_MARK)),
        Some(_) => {}
    }
    serde_json::to_string(&object)
}

/// The object of a route.
///
/// # Errors
/// Its data are no JSON object, which no route's are.
pub fn object(route: &Route) -> Result<Object, serde_json::Error> {
    let mut object: Object = serde_json::from_str(route.data.as_str())?;
    object.insert("target".into(), to_raw_value(route.target.as_str())?);
    match object.get(HUBS_MARK).map(|mark| mark.get()) {
        None => drop(object.insert(HUBS_MARK.into(), to_raw_value(&true)?)),
        Some("null") => drop(object.remove(HUBS_MARK)),
        Some(_) => {}
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_was_written_is_read_in_the_same_spelling() {
        for (text, shown, host_routing) in [
            ("/", "/", false),
            ("/user/zo%C3%AB/", "/user/zoë", false),
            ("/user/a@b~c/", "/user/a@b~c", false),
            ("/user/a%20b/", "/user/a b", false),
            ("/", "/", true),
            ("hub.example.org/user/x/", "/hub.example.org/user/x", true),
        ] {
            assert_eq!(path(&RouteSpec::parse(text).unwrap()), shown);
            assert_eq!(spec(shown, host_routing).unwrap().as_str(), text);
        }
        assert_eq!(spec("", false).unwrap().as_str(), "/");
        assert_eq!(spec("/user/x/", false).unwrap().as_str(), "/user/x/");
    }

    #[test]
    fn an_object_is_shown_as_it_was_written() {
        for (written, kept) in [
            (r#"{"a":1.50,"jupyterhub":true,"target":"http://h:1"}"#, r#"{"a":1.50}"#),
            (r#"{"target":"http://h:1"}"#, r#"{"jupyterhub":null}"#),
            (r#"{"jupyterhub":0,"target":"http://h:1"}"#, r#"{"jupyterhub":0}"#),
        ] {
            let given: Object = serde_json::from_str(written).unwrap();
            let spec = RouteSpec::parse("/x/").unwrap();
            let target = target(&given).unwrap();
            let data = data(given, &spec).unwrap();
            assert_eq!(data, kept);
            let route = Route::parse(spec.as_str(), &target, &data, "").unwrap();
            assert_eq!(serde_json::to_string(&object(&route).unwrap()).unwrap(), written);
        }
        let none: Object = serde_json::from_str(r#"{"target":1}"#).unwrap();
        assert_eq!(target(&none), None);
    }
}
