//! What a target is asked for, and where its redirects lead.

use holdfast_table::{PathError, RouteKey, Target};
use http::Uri;
use http::uri::PathAndQuery;

use crate::policy::Policy;

/// Why a request cannot be asked for at its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unaskable {
    /// Without its prefix, the path reads as something else.
    Path(PathError),
    /// The path is too long with the target's own before it.
    TooLong,
}

/// The request target in origin form: the target's path and query, then the request's, whose bytes stay as they are.
pub(crate) fn origin_form(
    target: &Target,
    key: &RouteKey,
    uri: &Uri,
    policy: &Policy,
) -> Result<Option<Uri>, Unaskable> {
    let own = uri.path_and_query().cloned();
    let own = own.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let (prefix, query) = match policy.prepend_path {
        true => (target.path(), target.query().filter(|query| !query.is_empty())),
        false => ("", None),
    };
    if prefix.is_empty() && query.is_none() && policy.include_prefix {
        return Ok((uri.authority().is_some()).then(|| Uri::from(own)));
    }
    let path = match policy.include_prefix {
        true => own.path(),
        false => without_prefix(own.path(), key)?,
    };
    let mut text = String::with_capacity(target.as_str().len() + own.as_str().len());
    text.push_str(prefix);
    text.push_str(path);
    let queries = [query, own.query()];
    for (query, separator) in queries.into_iter().flatten().zip(['?', '&']) {
        text.push(separator);
        text.push_str(query);
    }
    let joined = PathAndQuery::try_from(text).map_err(|_| Unaskable::TooLong)?;
    Ok(Some(Uri::from(joined)))
}

/// The path behind as many segments as the route has. They were matched whole, so it does not matter how they are spelt.
fn without_prefix<'a>(path: &'a str, key: &RouteKey) -> Result<&'a str, Unaskable> {
    let depth = key.as_str().bytes().filter(|byte| *byte == b'/').count();
    let rest = match path.match_indices('/').nth(depth) {
        Some((at, _)) => &path[at..],
        None => "/",
    };
    match rest.starts_with("//") {
        true => Err(Unaskable::Path(PathError::NetworkPath)),
        false => Ok(rest),
    }
}

/// Where a redirect of the target's leads instead, if it leads to the target itself and is to be changed.
pub(crate) fn location(value: &str, target: &Target, host: Option<&str>, policy: &Policy) -> Option<String> {
    let (scheme, rest) = value.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if !without_default_port(authority, scheme)
        .eq_ignore_ascii_case(without_default_port(target.authority(), target_scheme(target)))
    {
        return None;
    }
    let scheme = policy.protocol_rewrite.map_or(scheme, |protocol| protocol.as_str());
    let authority = host.filter(|_| policy.auto_rewrite).unwrap_or(authority);
    Some(format!("{scheme}://{authority}{rest}"))
}

fn target_scheme(target: &Target) -> &str {
    target.as_str().split_once("://").map_or("", |(scheme, _)| scheme)
}

fn without_default_port<'a>(authority: &'a str, scheme: &str) -> &'a str {
    let port = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => ":80",
        _ if scheme.eq_ignore_ascii_case("https") => ":443",
        _ => return authority,
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use holdfast_table::RouteSpec;

    use super::*;
    use crate::policy::Protocol;

    fn asked(target: &str, spec: &str, uri: &str, policy: &Policy) -> Result<Option<String>, Unaskable> {
        let (target, spec) = (Target::parse(target).unwrap(), RouteSpec::parse(spec).unwrap());
        let uri: Uri = uri.parse().unwrap();
        origin_form(&target, spec.key(), &uri, policy).map(|uri| uri.map(|uri| uri.to_string()))
    }

    #[test]
    fn a_request_keeps_its_bytes_behind_the_targets_path_and_query() {
        let policy = Policy::default();
        for (target, uri, expected) in [
            ("http://10.0.0.1:1", "/user/a/%2Fx?q=%20", None),
            ("http://10.0.0.1:1/", "/a//b", None),
            ("http://10.0.0.1:1", "http://hub.example/a?b", Some("/a?b")),
            ("http://10.0.0.1:1/base/", "/", Some("/base/")),
            ("http://[::1]:80/base?t=1", "/a?b", Some("/base/a?t=1&b")),
            ("http://h.example?t=1", "/a", Some("/a?t=1")),
            ("http+unix://%2Frun%2Fx.sock/p", "/a", Some("/p/a")),
        ] {
            assert_eq!(
                asked(target, "/", uri, &policy),
                Ok(expected.map(str::to_owned)),
                "{target} {uri}"
            );
        }
        let bare = Policy {
            prepend_path: false,
            ..Policy::default()
        };
        assert_eq!(asked("http://h.example/base?t=1", "/", "/a?b", &bare), Ok(None));
    }

    #[test]
    fn the_prefix_is_cut_by_segments() {
        let policy = Policy {
            include_prefix: false,
            ..Policy::default()
        };
        for (spec, uri, expected) in [
            ("/user/alice/", "/user/alice/lab?x", Ok("/lab?x")),
            ("/user/alice/", "/user/%61lice/lab/", Ok("/lab/")),
            ("/user/alice/", "/user/alice", Ok("/")),
            ("/user/alice/", "/user/alice?x", Ok("/?x")),
            ("/", "/user/alice", Ok("/user/alice")),
            ("alice.hub.example/user/", "/user/x", Ok("/x")),
            ("/user/alice/", "/user/alice//evil.example/x", Err(())),
        ] {
            let seen = asked("http://10.0.0.1:1", spec, uri, &policy).map_err(|error| {
                assert_eq!(error, Unaskable::Path(PathError::NetworkPath));
            });
            assert_eq!(seen, expected.map(|uri| Some(uri.to_owned())), "{spec} {uri}");
        }
        assert_eq!(
            asked("http://10.0.0.1:1/base", "/a/", "/a/b", &policy),
            Ok(Some("/base/b".into()))
        );
    }

    #[test]
    fn a_redirect_of_a_target_to_itself_is_rewritten_and_no_other() {
        let target = Target::parse("http://10.0.0.1:8888/base").unwrap();
        let policy = Policy {
            auto_rewrite: true,
            protocol_rewrite: Some(Protocol::Https),
            ..Policy::default()
        };
        let rewritten = |value: &str, policy: &Policy| location(value, &target, Some("hub.example"), policy);
        assert_eq!(
            rewritten("http://10.0.0.1:8888/x?y#z", &policy).unwrap(),
            "https://hub.example/x?y#z"
        );
        for other in ["http://10.0.0.1:8889/x", "/x", "//10.0.0.1:8888/x", "http://10.0.0.1/x"] {
            assert_eq!(rewritten(other, &policy), None, "{other}");
        }
        let host_only = Policy {
            auto_rewrite: true,
            ..Policy::default()
        };
        assert_eq!(
            rewritten("http://10.0.0.1:8888", &host_only).unwrap(),
            "http://hub.example"
        );
        let target = Target::parse("http://Server.example:80").unwrap();
        let protocol_only = Policy {
            protocol_rewrite: Some(Protocol::Https),
            ..Policy::default()
        };
        assert_eq!(
            location("http://server.example/x", &target, Some("h"), &protocol_only).unwrap(),
            "https://server.example/x"
        );
    }
}
