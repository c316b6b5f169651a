//! WebSockets: how one is asked for over HTTP/1.1 (RFC 6455) and over HTTP/2 (RFC 8441), and granted.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use hyper::ext::Protocol;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::headers::tokens;

/// What a server mixes into its answer, to show that it knows what it was asked (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// True for a request that asks for a WebSocket. One that asks for another protocol is an ordinary one.
pub(crate) fn is_wanted<B>(request: &Request<B>) -> bool {
    match request.version() {
        Version::HTTP_11 => request.method() == Method::GET && is_websocket(request.headers()),
        Version::HTTP_2 => {
            let protocol = request.extensions().get::<Protocol>();
            request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
        }
        _ => false,
    }
}

/// True if the connection is switched, or to be switched, to a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let alone = match (protocols.next(), protocols.next()) {
        (Some(protocol), None) => protocol.as_bytes().eq_ignore_ascii_case(b"websocket"),
        _ => false,
    };
    let mut connection = headers.get_all(CONNECTION).iter().flat_map(tokens);
    alone && connection.any(|token| token.eq_ignore_ascii_case("upgrade"))
}

pub(crate) fn insert_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Adds what HTTP/1.1 asks for beyond HTTP/2, and returns what the answer must say.
pub(crate) fn insert_key(headers: &mut HeaderMap) -> HeaderValue {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let accept = accept_for(&key);
    headers.insert(SEC_WEBSOCKET_KEY, text(&key));
    headers
        .entry(SEC_WEBSOCKET_VERSION)
        .or_insert(HeaderValue::from_static("13"));
    accept
}

fn accept_for(key: &str) -> HeaderValue {
    let hashed = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    text(&STANDARD.encode(hashed))
}

/// Base64 always makes a header's value.
fn text(base64: &str) -> HeaderValue {
    HeaderValue::try_from(base64).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// True if the answer to [`insert_key`] is right; what HTTP/2 does not know is taken from it.
pub(crate) fn take_accept(headers: &mut HeaderMap, expected: &HeaderValue) -> bool {
    headers.remove(SEC_WEBSOCKET_ACCEPT).as_ref() == Some(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, version: Version, connection: &'static str, upgrade: &'static str) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::try_from(method).unwrap();
        *request.version_mut() = version;
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static(connection));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static(upgrade));
        request
    }

    #[test]
    fn only_a_get_of_http_1_1_upgrades_and_only_to_websocket() {
        let wanted = |method, version, connection, upgrade| is_wanted(&request(method, version, connection, upgrade));
        assert!(wanted("GET", Version::HTTP_11, "keep-alive, Upgrade", "WebSocket"));
        assert!(!wanted("POST", Version::HTTP_11, "upgrade", "websocket"));
        assert!(!wanted("GET", Version::HTTP_10, "upgrade", "websocket"));
        assert!(!wanted("GET", Version::HTTP_2, "upgrade", "websocket"));
        assert!(!wanted("GET", Version::HTTP_11, "close", "websocket"));
        assert!(!wanted("GET", Version::HTTP_11, "upgrade", "h2c"));
        assert!(!wanted("GET", Version::HTTP_11, "upgrade", "websocket, h2c"));
    }

    #[test]
    fn over_http_2_the_connect_method_says_which_protocol() {
        let mut request = request("CONNECT", Version::HTTP_2, "", "");
        assert!(!is_wanted(&request));
        request.extensions_mut().insert(Protocol::from_static("connect-ip"));
        assert!(!is_wanted(&request));
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        assert!(is_wanted(&request));
    }

    #[test]
    fn a_key_is_answered_as_the_rfc_shows() {
        assert_eq!(accept_for("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (mut asked, mut other) = (HeaderMap::new(), HeaderMap::new());
        let accept = insert_key(&mut asked);
        assert_ne!(accept, insert_key(&mut other));
        assert_eq!(accept, accept_for(asked[SEC_WEBSOCKET_KEY].to_str().unwrap()));
        let mut answer = HeaderMap::from_iter([(SEC_WEBSOCKET_ACCEPT, accept.clone())]);
        assert!(take_accept(&mut answer, &accept) && answer.is_empty());
        assert!(!take_accept(&mut answer, &accept));
    }
}
