//! Just enough of RFC 6455 to hold a connection open and see that it lives: handshake, small frames, both sides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The sample key of RFC 6455, section 1.3, with which clients here ask.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to [`KEY`], from the same section.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const OPEN_WITHIN: Duration = Duration::from_secs(10);
const PAYLOAD_MAX: usize = 64 * 1024;
const HEAD_MAX: usize = 16 * 1024;

/// A text frame's opcode.
pub const TEXT: u8 = 1;
/// A close frame's opcode.
pub const CLOSE: u8 = 8;
/// A ping's opcode.
pub const PING: u8 = 9;
/// A pong's opcode.
pub const PONG: u8 = 10;

/// A whole frame.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub opcode: u8,
    /// What it carries, unmasked.
    pub payload: Vec<u8>,
}

/// What a server answers to this key (section 4.2.2).
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Opens a WebSocket at `address` (`host:port`) and `path`.
///
/// # Errors
/// Nobody answers, or the answer is not a switch of protocols; the text quotes it.
pub async fn open(address: &str, path: &str) -> Result<TcpStream> {
    let stream = timeout(OPEN_WITHIN, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    open_over(stream, address, path).await
}

/// Opens one on a connection that is there, at `host` and `path`.
///
/// # Errors
/// The answer is not a switch of protocols; the text quotes it.
pub async fn open_over<S>(mut stream: S, host: &str, path: &str) -> Result<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout(OPEN_WITHIN, async {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        // Byte by byte, so that nothing of the first frame is swallowed.
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < HEAD_MAX, "an endless head");
            head.push(stream.read_u8().await.with_context(|| quote(&head))?);
        }
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        ensure!(
            text.starts_with("http/1.1 101"),
            "no switch of protocols: {}",
            quote(&head)
        );
        ensure!(
            text.contains(&ACCEPT.to_ascii_lowercase()),
            "a wrong sec-websocket-accept: {}",
            quote(&head)
        );
        Ok(stream)
    })
    .await?
}

fn quote(head: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&head[..head.len().min(400)]))
}

/// Writes one whole frame. A client masks (with a constant mask: there is nothing to hide here), a server does not.
///
/// # Errors
/// The connection broke.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), opcode: u8, payload: &[u8], mask: bool) -> Result<()> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    ensure!(payload.len() <= PAYLOAD_MAX, "too large a payload");
    let mut frame = vec![0x80 | opcode];
    let masked = if mask { 0x80 } else { 0 };
    match u16::try_from(payload.len()) {
        Ok(length) if length < 126 => frame.push(masked | length as u8),
        Ok(length) => {
            frame.push(masked | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(masked | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    if mask {
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend(payload);
    }
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one whole frame.
///
/// # Errors
/// The connection broke, or the frame is fragmented or larger than 64 KiB.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
    ensure!(first & 0xf0 == 0x80, "a fragmented frame");
    let length = match second & 0x7f {
        126 => usize::from(stream.read_u16().await?),
        127 => usize::try_from(stream.read_u64().await?)?,
        length => usize::from(length),
    };
    ensure!(length <= PAYLOAD_MAX, "too large a frame");
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Frame {
        opcode: first & 0x0f,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_the_sample_key_is_the_sample_answer() {
        assert_eq!(accept(KEY), ACCEPT);
    }
}
