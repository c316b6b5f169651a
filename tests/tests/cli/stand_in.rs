//! A stand-in for somebody's HTTP API: a function answers every request.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: String,
    /// The header, empty if there is none.
    pub authorization: String,
}

impl Asked {
    /// A number in the query.
    pub fn number(&self, name: &str) -> Option<usize> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == name)?.1.parse().ok()
    }
}

/// It ends when this is dropped.
pub struct StandIn {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl StandIn {
    /// Has `answer` say the status and the body.
    pub async fn start<A>(answer: impl Fn(Asked) -> A + Clone + Send + 'static) -> Result<Self>
    where
        A: Future<Output = (u16, String)> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request| respond(answer(asked(&request))));
                let connection = hyper::server::conn::http1::Builder::new();
                let connection = connection.serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Ok(StandIn { address, _tasks: tasks })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn asked(request: &Request<Incoming>) -> Asked {
    let authorization = request.headers().get(AUTHORIZATION);
    Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: authorization
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
    }
}

async fn respond(answer: impl Future<Output = (u16, String)>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = answer.await;
    let response = Response::builder().status(status).body(Full::from(body));
    Ok(response.unwrap_or_default())
}
