//! The one reading of a request's head, for whatever is decided by it.

use holdfast_table::{Host, RequestPath};
use http::header::HOST;
use http::{HeaderMap, Method, Request, Version};

use crate::connection::HEAD_BYTES_MAX;
use crate::metrics::Reject;
use crate::pages::Problem;
use crate::websocket;

/// Whom a request asks, and for what.
pub(crate) struct Asked<'a> {
    /// `None` for HTTP/1.0, which may not say.
    pub(crate) host: Option<Host<'a>>,
    pub(crate) path: RequestPath<'a>,
    /// Path and query, byte for byte.
    pub(crate) origin_form: &'a str,
}

/// Reads whom a request asks, and for what.
///
/// # Errors
/// Whatever could be read in two ways: answer 400, and tell nobody else of the request.
pub(crate) fn read<B>(request: &Request<B>) -> Result<Asked<'_>, (Reject, Problem)> {
    let uri = request.uri();
    if request.version() == Version::HTTP_2 && size(request.headers()) > HEAD_BYTES_MAX as usize {
        return Err((Reject::Head, Problem::HeadTooLarge));
    }
    let origin_form = match uri.path_and_query() {
        Some(path)
            if path.as_str() != "*" && (request.method() != Method::CONNECT || websocket::is_wanted(request)) =>
        {
            path.as_str()
        }
        _ => {
            let problem = Problem::BadRequest("this is no proxy for CONNECT or '*'");
            return Err((Reject::Method, problem));
        }
    };
    if uri
        .scheme_str()
        .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
    {
        return Err((Reject::Method, Problem::BadRequest("its scheme is not http or https")));
    }
    let host = read_host(request).map_err(|problem| (Reject::Host, problem))?;
    let host = host.map(Host::parse).transpose();
    let host = host.map_err(|error| (Reject::Host, Problem::Unreadable(error)))?;
    let path = RequestPath::parse(origin_form).map_err(|error| (Reject::Path, Problem::Unreadable(error)))?;
    Ok(Asked {
        host,
        path,
        origin_form,
    })
}

/// The size of a list of headers, as HTTP/2 counts it (RFC 9113, section 6.5.2).
fn size(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    sizes.sum()
}

/// The one host that a request names, `None` for HTTP/1.0 without a `Host`.
fn read_host<B>(request: &Request<B>) -> Result<Option<&str>, Problem> {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Problem::BadRequest("there is more than one Host header")),
        (None, None) if request.version() == Version::HTTP_2 && authority.is_some() => return Ok(authority),
        (None, None) if request.version() < Version::HTTP_11 => None,
        (None, None) => return Err(Problem::BadRequest("there is no Host header")),
        (Some(host), None) => Some(
            host.to_str()
                .map_err(|_| Problem::BadRequest("the Host header is no text"))?,
        ),
    };
    match authority {
        Some(authority) if host.is_none_or(|host| !authority.eq_ignore_ascii_case(host)) => Err(Problem::BadRequest(
            "the request's target names another host than the Host header",
        )),
        _ => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_request_names_exactly_one_host() {
        let request = |uri: &str, version: Version, hosts: &[&'static str]| {
            let mut request = Request::new(());
            *request.uri_mut() = uri.parse().unwrap();
            *request.version_mut() = version;
            for host in hosts {
                request.headers_mut().append(HOST, HeaderValue::from_static(host));
            }
            read(&request)
                .map(|asked| asked.host.map(|host| host.as_str().to_owned()))
                .ok()
        };
        let a = || Some(Some("a".to_owned()));
        assert_eq!(request("/", Version::HTTP_11, &["a:1"]), a());
        assert_eq!(request("http://A:1/", Version::HTTP_11, &["a:1"]), a());
        assert_eq!(request("/", Version::HTTP_10, &[]), Some(None));
        assert_eq!(request("/", Version::HTTP_11, &[]), None);
        assert_eq!(request("/", Version::HTTP_11, &["a", "a"]), None);
        assert_eq!(request("http://b/", Version::HTTP_11, &["a"]), None);
        assert_eq!(request("http://a:2/", Version::HTTP_11, &["a:1"]), None);
        assert_eq!(request("http://b/", Version::HTTP_10, &[]), None);
        assert_eq!(request("ftp://a/", Version::HTTP_11, &["a"]), None);
        assert_eq!(request("http://u@a/", Version::HTTP_11, &["u@a"]), None);
        assert_eq!(request("https://A:1/", Version::HTTP_2, &[]), a());
        assert_eq!(request("https://a:1/", Version::HTTP_2, &["A:1"]), a());
        assert_eq!(request("https://a/", Version::HTTP_2, &["b"]), None);
        assert_eq!(request("/", Version::HTTP_2, &[]), None);
        assert_eq!(request("/", Version::HTTP_2, &["a"]), a());
    }
}
