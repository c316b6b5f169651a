//! What a user reads when there is no answer of a target to be shown.

use bytes::Bytes;
use holdfast_table::PathError;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

/// Seconds until a client should ask again a proxy that has no table yet.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("2");

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The table is known and has no such route.
    NoRoute,
    /// This proxy does not know the table yet, so it cannot say whether there is a route.
    NoTable,
    /// The table is older than the operator lets it be.
    StaleTable,
    /// The target did not answer, or not in HTTP.
    TargetFailed,
    /// The path or the host cannot be read.
    Unreadable(PathError),
    /// The head has more bytes than may be.
    HeadTooLarge,
    /// The body did not come, or too slowly.
    BodyTooSlow,
    /// Another fault in the request's head, in words.
    BadRequest(&'static str),
}

impl Problem {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Problem::NoRoute => StatusCode::NOT_FOUND,
            Problem::NoTable | Problem::StaleTable | Problem::TargetFailed => StatusCode::SERVICE_UNAVAILABLE,
            Problem::Unreadable(_) | Problem::BadRequest(_) => StatusCode::BAD_REQUEST,
            Problem::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Problem::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }

    fn text(self) -> String {
        match self {
            Problem::NoRoute => "There is no server at this address.".to_owned(),
            Problem::NoTable => {
                "This proxy is starting and does not know yet where your server is. Please try again in a moment."
                    .to_owned()
            }
            Problem::StaleTable => {
                "This proxy has not heard for a while where your server is. Please try again in a moment.".to_owned()
            }
            Problem::TargetFailed => {
                "The server at this address does not answer. It may have stopped, or may still be starting.".to_owned()
            }
            Problem::Unreadable(error) => format!("The request cannot be read: {error}."),
            Problem::HeadTooLarge => {
                "The request's headers are too large. It may help to delete this site's cookies.".to_owned()
            }
            Problem::BodyTooSlow => "Too little of what was sent has come in time. Please try again.".to_owned(),
            Problem::BadRequest(what) => format!("The request cannot be read: {what}."),
        }
    }

    /// A whole answer. Nothing of the request appears in it.
    pub(crate) fn response(self, form: Form) -> Response<Bytes> {
        let status = self.status();
        let (kind, body) = match form {
            Form::Html => ("text/html; charset=utf-8", html(status, &self.text())),
            Form::Text => ("text/plain; charset=utf-8", format!("{status}\n\n{}\n", self.text())),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.add_retry_after(headers);
        response
    }

    /// Asks to come back, where that alone helps.
    pub(crate) fn add_retry_after(self, headers: &mut HeaderMap) {
        if matches!(self, Problem::NoTable | Problem::StaleTable) {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
    }
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For browsers.
    Html,
    /// For everybody else.
    Text,
}

impl Form {
    /// HTML for who asks for it.
    pub(crate) fn wanted(request: &HeaderMap) -> Self {
        match request.get(ACCEPT).and_then(|accept| accept.to_str().ok()) {
            Some(accept) if accept.contains("text/html") => Form::Html,
            _ => Form::Text,
        }
    }
}

fn html(status: StatusCode, text: &str) -> String {
    let title = escape(&status.to_string());
    let text = escape(text);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{text}</p></body></html>\n"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_escaped_and_only_for_who_asks() {
        let mut request = HeaderMap::new();
        let problem = Problem::Unreadable(PathError::DotSegment);
        let plain = problem.response(Form::wanted(&request));
        assert_eq!(plain.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        request.insert(ACCEPT, HeaderValue::from_static("text/html,*/*"));
        let page = problem.response(Form::wanted(&request));
        assert_eq!(page.status(), StatusCode::BAD_REQUEST);
        assert!(std::str::from_utf8(page.body()).unwrap().contains("no &#39;.&#39; or"));
    }

    #[test]
    fn only_ignorance_asks_to_retry() {
        assert!(
            Problem::NoTable
                .response(Form::Text)
                .headers()
                .contains_key(RETRY_AFTER)
        );
        assert!(
            Problem::StaleTable
                .response(Form::Text)
                .headers()
                .contains_key(RETRY_AFTER)
        );
        assert!(
            !Problem::NoRoute
                .response(Form::Text)
                .headers()
                .contains_key(RETRY_AFTER)
        );
        assert_eq!(Problem::NoTable.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(Problem::NoRoute.status(), StatusCode::NOT_FOUND);
    }
}
