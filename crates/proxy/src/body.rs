//! Bodies on their way: what a client sends to a target, and what a target sends to a client.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::access_log::Record;
use crate::activity::Use;
use crate::metrics::{Active, TargetFailure};
use crate::pulse::Pulse;
use crate::targets::Lease;

/// The most of an answer that is sent in one piece where it matters that something passes: the next one shows that it
/// was taken.
const PIECE_BYTES_MAX: usize = 16 * 1024;
/// As much of a request's body has to come in the time that its client is given for more of it.
const MORE_BYTES: usize = 1024;

/// The body of a request to a target.
pub(crate) struct Upload {
    /// `None`: there is none.
    body: Option<Incoming>,
    progress: Option<Arc<Progress>>,
    used: Option<Use>,
    pulse: Option<Pulse>,
    pace: Pace,
}

impl Upload {
    pub(crate) fn none() -> Self {
        Upload {
            body: None,
            progress: None,
            used: None,
            pulse: None,
            pace: Pace::new(Duration::MAX),
        }
    }

    /// What a client sends, who may take `limit` for more of it; the progress is that of a body which is not at its end
    /// already.
    pub(crate) fn relayed(body: Incoming, limit: Duration, used: &Use) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Upload::none(), None);
        }
        let progress = Arc::new(Progress::default());
        let upload = Upload {
            body: Some(body),
            progress: Some(progress.clone()),
            used: Some(used.clone()),
            pulse: Pulse::present(),
            pace: Pace::new(limit),
        };
        (upload, Some(progress))
    }
}

/// How far an upload has come, as seen by who waits for the answer to it.
#[derive(Default)]
pub(crate) struct Progress {
    ended: AtomicBool,
    failed: AtomicBool,
    slow: AtomicBool,
    answered: AtomicBool,
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// True if the whole body was handed on.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// True if the client broke off, or sent what is no body.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// True if the client took too long for more of it.
    pub(crate) fn was_slow(&self) -> bool {
        self.slow.load(Ordering::Acquire)
    }

    /// Whatever the target waits for by now, it is not the rest of the body.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// How much of it was handed on.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

/// For how long a client may take for more of a body while its target waits for it.
struct Pace {
    limit: Duration,
    /// Set while more is waited for.
    until: Option<Pin<Box<Sleep>>>,
    /// What has come since.
    bytes: usize,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Pace {
            limit,
            until: None,
            bytes: 0,
        }
    }

    fn came(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= MORE_BYTES {
            (self.until, self.bytes) = (None, 0);
        }
    }

    /// To be asked while nothing comes: ready when that has been so for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.until
            .get_or_insert_with(|| Box::pin(sleep(limit)))
            .as_mut()
            .poll(cx)
    }
}

/// Why a request's body breaks off: the connection to the target is closed, so that it cannot take it for a whole one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client's body broke off, or cannot be read")]
    Client(#[from] hyper::Error),
    #[error("the client took too long for more of its body")]
    Slow,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Upload {
            body,
            progress,
            used,
            pulse,
            pace,
        } = self.get_mut();
        let Some(body) = body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            let Some(progress) = progress.as_ref().filter(|progress| !progress.is_answered()) else {
                return Poll::Pending;
            };
            ready!(pace.poll(cx));
            progress.slow.store(true, Ordering::Release);
            return Poll::Ready(Some(Err(UploadError::Slow)));
        };
        if let Some(progress) = progress {
            match &frame {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    pace.came(bytes);
                    progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                    if let Some(used) = used {
                        used.touch();
                    }
                    if let Some(pulse) = pulse {
                        pulse.beat();
                    }
                    progress.frames.fetch_add(1, Ordering::Relaxed);
                    if body.is_end_stream() {
                        progress.ended.store(true, Ordering::Release);
                    }
                }
                Some(Err(_)) => progress.failed.store(true, Ordering::Release),
                None => progress.ended.store(true, Ordering::Release),
            }
        }
        Poll::Ready(frame.map(|frame| Ok(frame?)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// Waits for the answer to an upload, as long as either goes on: `None` after `patience` without a frame of it.
pub(crate) async fn answered<F: Future>(
    answer: F,
    patience: Option<Duration>,
    progress: Option<&Arc<Progress>>,
) -> Option<F::Output> {
    let Some(patience) = patience else {
        return Some(answer.await);
    };
    let mut answer = std::pin::pin!(answer);
    let mut seen = 0;
    loop {
        if let Ok(answer) = tokio::time::timeout(patience, answer.as_mut()).await {
            return Some(answer);
        }
        match progress.map(|progress| progress.frames()) {
            Some(frames) if frames != seen => seen = frames,
            _ => return None,
        }
    }
}

/// What is sent to a client, never held back: each frame goes on as it comes.
pub(crate) struct Body {
    content: Content,
    record: Option<Box<Record>>,
}

enum Content {
    /// Of our own making.
    Whole(Bytes),
    /// A target's.
    Relayed(Relayed),
}

/// A target's answer, with the connection that it comes from.
pub(crate) struct Relayed {
    body: Incoming,
    /// What of the body is here and not handed on yet.
    rest: Bytes,
    ended: bool,
    /// The connection, which is used again if the answer is read to its end.
    lease: Option<Lease>,
    patience: Option<Box<Patience>>,
    /// Of an answer whose end is an activity.
    used: Option<Use>,
    pulse: Option<Pulse>,
    _active: Active,
}

/// For how long a target may be silent within its answer.
struct Patience {
    limit: Duration,
    /// Set while a frame is waited for.
    until: Option<Pin<Box<Sleep>>>,
}

impl Body {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Content::Whole(bytes).into()
    }

    pub(crate) fn relayed(
        body: Incoming,
        lease: Lease,
        patience: Option<Duration>,
        used: Option<Use>,
        active: Active,
    ) -> Self {
        Content::Relayed(Relayed {
            ended: false,
            body,
            rest: Bytes::new(),
            lease: Some(lease),
            patience: patience.map(|limit| Box::new(Patience { limit, until: None })),
            used,
            pulse: Pulse::present(),
            _active: active,
        })
        .into()
    }

    /// Has it counted what is sent, and the end of it noted.
    pub(crate) fn recorded(&mut self, record: Box<Record>) {
        self.record = Some(record);
    }

    fn has_ended(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Relayed(relayed) => relayed.ended || relayed.is_end_stream(),
        }
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Body { content, record: None }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let ended = self.has_ended();
        if let Some(record) = &mut self.record {
            record.note(|facts| {
                if !ended && !facts.is_head() {
                    facts.failed("client", Some("it left before the answer's end".into()));
                }
            });
        }
    }
}

impl Relayed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.piece())));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.ended = frame.is_none();
                if let Some(patience) = &mut self.patience {
                    patience.until = None;
                }
                Poll::Ready(frame.map(|frame| match frame {
                    Ok(frame) => Ok(self.in_pieces(frame)),
                    Err(error) => Err(BodyError::Target(error)),
                }))
            }
            Poll::Pending => match &mut self.patience {
                Some(patience) => patience.poll(cx).map(|()| Some(Err(BodyError::Silent))),
                None => Poll::Pending,
            },
        }
    }

    fn in_pieces(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if self.pulse.is_none() {
            return frame;
        }
        match frame.into_data() {
            Ok(data) => {
                self.rest = data;
                self.piece()
            }
            Err(frame) => frame,
        }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        let bytes = self.rest.len().min(PIECE_BYTES_MAX);
        Frame::data(self.rest.split_to(bytes))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

impl Patience {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        until.as_mut().poll(cx)
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if self.ended || self.body.is_end_stream() {
            if let Some(lease) = self.lease.take() {
                lease.give_back();
            }
            if let Some(used) = &mut self.used {
                used.touch();
            }
        }
    }
}

/// Why an answer breaks off: the client's connection is closed, so that it cannot take it for a whole one.
#[derive(Debug)]
pub(crate) enum BodyError {
    Target(hyper::Error),
    Silent,
}

impl BodyError {
    fn word(&self) -> &'static str {
        match self {
            BodyError::Target(_) => TargetFailure::Response,
            BodyError::Silent => TargetFailure::Silent,
        }
        .word()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyError::Target(_) => "the target's answer broke off",
            BodyError::Silent => "the target was silent for too long within its answer",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BodyError::Target(error) => Some(error),
            BodyError::Silent => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Body { content, record } = self.get_mut();
        let frame = match content {
            Content::Whole(bytes) if bytes.is_empty() => None,
            Content::Whole(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Content::Relayed(relayed) => ready!(relayed.poll(cx)),
        };
        if let Some(record) = record {
            record.note(|facts| match &frame {
                Some(Ok(frame)) => facts.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64,
                Some(Err(error)) => facts.failed(error.word(), Some(error.to_string())),
                None => {}
            });
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Relayed(relayed) => relayed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Relayed(relayed) if relayed.rest.is_empty() => relayed.body.size_hint(),
            Content::Relayed(_) => SizeHint::default(),
        }
    }
}
