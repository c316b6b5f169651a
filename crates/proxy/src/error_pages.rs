//! Error pages of the operator's: asked of a server, as JupyterHub has them, or read from files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::Target;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::body::{Body, Upload};
use crate::pages::Problem;
use crate::targets::Targets;

/// The largest page.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// How long a page may take; then the built-in one does.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages asked for at once: when many servers have gone, their users must not take the hub down as well.
const ASKING_MAX: usize = 64;

/// Where error pages come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ErrorPages {
    /// Plain ones of the proxy's own.
    #[default]
    BuiltIn,
    /// `GET <target>/<status code>?url=<what was asked for>`; JupyterHub's is `<hub>/error`.
    Target(Target),
    /// `<status code>.html` or else `error.html` in this directory, read each time.
    Directory(PathBuf),
}

/// Makes error pages.
pub(crate) struct ErrorPager {
    source: ErrorPages,
    asking: Semaphore,
}

impl ErrorPager {
    pub(crate) fn new(source: ErrorPages) -> Self {
        ErrorPager {
            source,
            asking: Semaphore::new(ASKING_MAX),
        }
    }

    /// True if pages are made for what was asked for.
    pub(crate) fn needs_uri(&self) -> bool {
        matches!(self.source, ErrorPages::Target(_))
    }

    /// The operator's page for a problem; `None`: show a built-in one.
    pub(crate) async fn page(&self, targets: &Targets, problem: Problem, uri: Option<&Uri>) -> Option<Response<Body>> {
        // What cannot be read is not repeated to anybody; and a hub's page about a proxy that is starting would be wrong.
        let (of_server, of_file) = match problem {
            Problem::NoRoute | Problem::TargetFailed => (true, true),
            Problem::NoTable | Problem::StaleTable => (false, true),
            Problem::Unreadable(_) | Problem::BadRequest(_) | Problem::HeadTooLarge | Problem::BodyTooSlow => {
                (false, false)
            }
        };
        let page = match &self.source {
            ErrorPages::Target(target) if of_server => {
                let _turn = self.asking.try_acquire().ok()?;
                match timeout(PAGE_TIMEOUT, ask(targets, target, problem, uri?)).await {
                    Ok(page) => page,
                    Err(_) => {
                        tracing::warn!(%target, "no error page within {PAGE_TIMEOUT:?}");
                        None
                    }
                }
            }
            ErrorPages::Directory(directory) if of_file => read(directory, problem).await,
            _ => None,
        };
        let mut page = page?;
        *page.status_mut() = problem.status();
        let headers = page.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        problem.add_retry_after(headers);
        Some(page)
    }
}

async fn ask(targets: &Targets, target: &Target, problem: Problem, uri: &Uri) -> Option<Response<Body>> {
    let code = problem.status().as_u16();
    let asked_for = uri.path_and_query().map_or("/", |path| path.as_str());
    let url: String = url::form_urlencoded::byte_serialize(asked_for.as_bytes()).collect();
    let mut request = Request::get(format!("{}/{code}?url={url}", target.path()))
        .body(Upload::none())
        .ok()?;
    let host = target.host().map_or("localhost", |_| target.authority());
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(host).ok()?);
    headers.insert(ACCEPT, HeaderValue::from_static("text/html"));
    let failed = |error: &dyn std::error::Error| {
        tracing::warn!(%target, "no error page: {error}");
    };
    let (response, lease) = match targets.send(target, request, None).await {
        Ok(answered) => answered,
        Err(error) => {
            failed(&error);
            return None;
        }
    };
    let (parts, body) = response.into_parts();
    let body = match Limited::new(body, PAGE_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            failed(error.as_ref());
            return None;
        }
    };
    lease.give_back();
    let mut page = Response::new(Body::whole(body));
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        if let Some(value) = parts.headers.get(&name) {
            page.headers_mut().insert(name, value.clone());
        }
    }
    Some(page)
}

async fn read(directory: &Path, problem: Problem) -> Option<Response<Body>> {
    let own = format!("{}.html", problem.status().as_u16());
    for name in [own.as_str(), "error.html"] {
        if let Ok(page) = tokio::fs::read(directory.join(name)).await {
            let mut response = Response::new(Body::whole(Bytes::from(page)));
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, html);
            return Some(response);
        }
    }
    tracing::warn!(directory = %directory.display(), page = own, "no error page");
    None
}
