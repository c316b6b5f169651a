//! Hostile: a user's server that misbehaves as the last part of the path says, by TCP and at a unix socket.

use std::path::Path;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

use super::MEGABYTE;
use crate::echo::unix_target;
use crate::serving::serve;
use crate::websocket::ACCEPT;

pub(super) struct Hostile {
    /// Its target by TCP.
    pub(super) url: String,
    /// Its target at the socket.
    pub(super) unix_url: String,
    _tasks: JoinSet<()>,
}

impl Hostile {
    pub(super) async fn start(socket: &Path) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(TcpListenerStream::new(listener), misbehave));
        let listener = UnixListener::bind(socket)?;
        tasks.spawn(serve(UnixListenerStream::new(listener), misbehave));
        Ok(Hostile {
            url,
            unix_url: unix_target(socket),
            _tasks: tasks,
        })
    }
}

/// Ends with the connection; whatever goes wrong is what was wanted.
async fn misbehave(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let how = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match how {
        b"hangs-up" => return,
        b"half-ends" => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        b"big" => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 * MEGABYTE);
            let _ = stream.write_all(head.as_bytes()).await;
            let some = vec![7; 64 * 1024];
            while stream.write_all(&some).await.is_ok() {}
        }
        _ => {}
    }
    let mut rest = vec![0; 16 * 1024];
    while let Ok(1..) = stream.read(&mut rest).await {}
}
