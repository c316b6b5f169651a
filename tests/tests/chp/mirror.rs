//! A target that says what it was asked.

use std::convert::Infallible;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Headers that say who answers whom, on which the proxies have to agree. Others are of one connection, or a library's.
const SHOWN: [&str; 9] = [
    "host",
    "cookie",
    "x-here",
    "x-asked",
    "x-forwarded-for",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-host",
    "content-type",
];

/// A running mirror; it ends when this is dropped.
pub struct Mirror {
    port: u16,
    gate: watch::Sender<Gate>,
    _tasks: JoinSet<()>,
}

/// Before those that ask for `/waits`.
#[derive(Default)]
struct Gate {
    asked: bool,
    open: bool,
}

impl Mirror {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let gate = watch::Sender::<Gate>::default();
        let asked = gate.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let asked = asked.clone();
                let service = service_fn(move |request| answer(request, port, asked.clone()));
                connections.spawn(async move {
                    // A proxy that was killed leaves broken connections behind: nothing to report.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Mirror {
            port,
            gate,
            _tasks: tasks,
        })
    }

    /// The target that leads here, below `path`.
    pub fn target(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Returns once somebody asks for `/waits`.
    pub async fn asked(&self) {
        // There is a sender as long as there is a mirror.
        let _ = self.gate.subscribe().wait_for(|gate| gate.asked).await;
    }

    /// Lets go those that asked for `/waits`.
    pub fn let_go(&self) {
        self.gate.send_modify(|gate| gate.open = true);
    }
}

async fn answer(
    request: Request<Incoming>,
    port: u16,
    gate: watch::Sender<Gate>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path();
    if path.ends_with("/waits") {
        gate.send_modify(|gate| gate.asked = true);
        let _ = gate.subscribe().wait_for(|gate| gate.open).await;
    }
    let mut response = Response::builder()
        .header("content-type", "application/json")
        .header("x-answered", "yes");
    if path.ends_with("/redirects") {
        response = response.status(StatusCode::FOUND);
        response = response.header("location", format!("http://127.0.0.1:{port}/elsewhere?a=b"));
    }
    if path.ends_with("/fails") {
        response = response.status(StatusCode::IM_A_TEAPOT);
    }
    let shown = SHOWN.into_iter().filter_map(|name| {
        let values: Vec<&str> = head
            .headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        (!values.is_empty()).then(|| (name.to_owned(), json!(values)))
    });
    let asked = json!({
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": Value::Object(shown.collect()),
        "body": String::from_utf8_lossy(&body),
    });
    Ok(response.body(Full::from(asked.to_string())).unwrap_or_default())
}
