//! Sends who comes without TLS to where there is TLS.

use http::header::LOCATION;
use http::{HeaderValue, Request, Response, StatusCode};

use crate::body::Body;
use crate::metrics::Reject;
use crate::pages::Problem;
use crate::request::read;

/// The same host and path with TLS, at `port`. It always names a host, so a path like `//elsewhere` leads nowhere else.
pub(crate) fn to_tls<B>(request: &Request<B>, port: u16) -> Result<Response<Body>, (Reject, Problem)> {
    let asked = read(request)?;
    let no_host = (Reject::Host, Problem::BadRequest("there is no Host header"));
    let host = asked.host.ok_or(no_host)?;
    let (host, path) = (host.as_str(), asked.origin_form);
    let location = match port {
        443 => format!("https://{host}{path}"),
        port => format!("https://{host}:{port}{path}"),
    };
    let unfit = (Reject::Path, Problem::BadRequest("its path cannot be in a header"));
    let location = HeaderValue::try_from(location).map_err(|_| unfit)?;
    let mut response = Response::new(Body::whole(Default::default()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}
