//! Access log: a line of JSON for each request, written beside the requests.
//!
//! A request never waits for it: a line that finds the queue full is lost, and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_table::Entry;
use holdfast_wire::timestamp;
use http::{HeaderValue, Method, Request, Version};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::body::Progress;
use crate::headers;
use crate::request;

/// Lines that wait to be written.
const QUEUE: usize = 8_192;
/// Lines that are written at once.
const BATCH: usize = 256;
/// What is kept of a path, in bytes; a route may have no more than four times as many.
const PATH_BYTES_MAX: usize = 2_048;
const HOST_BYTES_MAX: usize = 255;
const METHOD_BYTES_MAX: usize = 32;
const CAUSE_BYTES_MAX: usize = 512;
/// Trouble that goes on is told again after this.
const SAME_NEWS: Duration = Duration::from_secs(30);

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTo {
    /// Standard output.
    Stdout,
    /// The end of a file, which is made if it is missing. Taken away, it is made anew.
    File(PathBuf),
}

impl AccessLogTo {
    /// Reads the value of `--access-log`: `-`, or a file.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("must be a file, or - for standard output".into()),
            "-" => Ok(AccessLogTo::Stdout),
            path => Ok(AccessLogTo::File(path.into())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            AccessLogTo::Stdout => Path::new("-"),
            AccessLogTo::File(path) => path,
        }
    }
}

/// Takes the lines of all requests.
pub(crate) struct AccessLog {
    queue: SyncSender<Box<Facts>>,
    lost: Counter,
}

/// What writes them, until every [`AccessLog`] is gone.
pub(crate) struct Writer {
    queue: Receiver<Box<Facts>>,
    lines: SyncSender<Box<Facts>>,
    output: Output,
}

/// One request, until its answer or its tunnel has ended: then its line is written.
pub(crate) struct Record {
    log: Arc<AccessLog>,
    began: Instant,
    facts: Option<Box<Facts>>,
}

/// What a line tells. Nothing that could be a secret: no query, no cookie, no other header of the client's.
#[derive(Default)]
pub(crate) struct Facts {
    time_ms: u64,
    id: Option<HeaderValue>,
    trace: Option<String>,
    pub(crate) client: Option<HeaderValue>,
    protocol: Version,
    method: Method,
    host: Option<String>,
    path: Option<String>,
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) status: u16,
    pub(crate) upload: Option<Arc<Progress>>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    duration: Duration,
    pub(crate) upgraded: bool,
    pub(crate) error: Option<&'static str>,
    pub(crate) cause: Option<String>,
}

/// A line, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    id: Option<&'a str>,
    trace: Option<&'a str>,
    client: Option<&'a str>,
    protocol: &'static str,
    method: &'a str,
    host: Option<&'a str>,
    path: Option<&'a str>,
    route: Option<&'a str>,
    target: Option<&'a str>,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    upgraded: bool,
    error: Option<&'static str>,
    cause: Option<&'a str>,
}

impl Writer {
    /// Opens the file.
    ///
    /// # Errors
    /// It cannot be made, or written to.
    pub(crate) fn open(to: &AccessLogTo) -> io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        let output = match to {
            AccessLogTo::Stdout => Output::Stdout,
            AccessLogTo::File(path) => Output::File(LogFile::open(path.clone())?),
        };
        Ok(Writer { queue, lines, output })
    }

    /// Writes on a thread of its own from now on. What it returns second comes when the last line is written.
    ///
    /// # Errors
    /// There are too many threads.
    pub(crate) fn start(self, lost: Counter) -> io::Result<(Arc<AccessLog>, oneshot::Receiver<()>)> {
        let Writer {
            queue,
            lines,
            mut output,
        } = self;
        let (ended, end) = oneshot::channel();
        let uncounted = lost.clone();
        let write = move || {
            let mut batch = Batch::default();
            while let Ok(first) = queue.recv() {
                batch.push(&first);
                queue.try_iter().take(BATCH - 1).for_each(|facts| batch.push(&facts));
                batch.write(&mut output, &uncounted);
            }
            drop(ended);
        };
        thread::Builder::new().name("access-log".into()).spawn(write)?;
        Ok((Arc::new(AccessLog { queue: lines, lost }), end))
    }
}

impl AccessLog {
    /// The request has come, from this address.
    pub(crate) fn begin<B>(self: &Arc<Self>, client: Option<HeaderValue>, request: &Request<B>) -> Box<Record> {
        // As it was, or will be, looked up.
        let asked = request::read(request).ok();
        let host = asked.as_ref().and_then(|asked| asked.host.as_ref());
        let facts = Facts {
            time_ms: timestamp::now_ms(),
            // Not a clone, which would keep the whole head for as long as there is a record.
            id: request
                .headers()
                .get(headers::X_REQUEST_ID)
                .and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()),
            trace: headers::trace_id(request.headers()),
            client,
            protocol: request.version(),
            method: request.method().clone(),
            host: host.map(|host| shortened(host.as_str(), HOST_BYTES_MAX)),
            path: asked.map(|asked| shortened(asked.path.as_str(), PATH_BYTES_MAX)),
            ..Facts::default()
        };
        Box::new(Record {
            log: self.clone(),
            began: Instant::now(),
            facts: Some(Box::new(facts)),
        })
    }
}

impl Record {
    /// Notes something.
    pub(crate) fn note(&mut self, note: impl FnOnce(&mut Facts)) {
        if let Some(facts) = &mut self.facts {
            note(facts);
        }
    }
}

impl Facts {
    /// Notes why there was no answer, or no whole one. The first reason counts.
    pub(crate) fn failed(&mut self, error: &'static str, cause: Option<String>) {
        if self.error.is_none() {
            self.error = Some(error);
            self.cause = cause.map(|cause| shortened(&cause, CAUSE_BYTES_MAX));
        }
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    fn line(&self) -> Line<'_> {
        let method = self.method.as_str();
        let route = self.entry.as_ref().map(|entry| &entry.route);
        Line {
            time: timestamp::to_text(self.time_ms),
            id: self.id.as_ref().and_then(|id| id.to_str().ok()),
            trace: self.trace.as_deref(),
            client: self.client.as_ref().and_then(|client| client.to_str().ok()),
            protocol: match self.protocol {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            method: &method[..method.len().min(METHOD_BYTES_MAX)],
            host: self.host.as_deref(),
            path: self.path.as_deref(),
            route: route.map(|route| route.spec.as_str()),
            // Its query may be a secret.
            target: route.map(|route| route.target.origin()),
            status: self.status,
            bytes_in: self.bytes_in + self.upload.as_ref().map_or(0, |upload| upload.bytes()),
            bytes_out: self.bytes_out,
            duration_ms: self.duration.as_micros() as f64 / 1_000.0,
            upgraded: self.upgraded,
            error: self.error,
            cause: self.cause.as_deref(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut facts) = self.facts.take() {
            if facts.status == 0 {
                facts.failed("client", Some("it left before there was an answer".into()));
            }
            facts.duration = self.began.elapsed();
            if self.log.queue.try_send(facts).is_err() {
                self.log.lost.inc();
            }
        }
    }
}

/// At most so many bytes of a text, by whole characters.
fn shortened(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// Lines that are written together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    /// A line was written in part, so what follows begins a new one.
    torn: bool,
    told: Option<Instant>,
}

impl Batch {
    fn push(&mut self, facts: &Facts) {
        match serde_json::to_string(&facts.line()) {
            Ok(line) => {
                push_escaped(&mut self.bytes, &line);
                self.bytes.push(b'\n');
                self.lines += 1;
            }
            Err(error) => tracing::error!(%error, "a line of the access log cannot be made"),
        }
    }

    fn write(&mut self, output: &mut Output, lost: &Counter) {
        if std::mem::take(&mut self.torn) {
            self.bytes.insert(0, b'\n');
        }
        if let Err(error) = output.write(&self.bytes) {
            self.torn = true;
            lost.inc_by(self.lines);
            if self.told.is_none_or(|told| told.elapsed() >= SAME_NEWS) {
                self.told = Some(Instant::now());
                tracing::error!(%error, "lines of the access log are lost");
            }
        }
        self.bytes.clear();
        self.lines = 0;
    }
}

/// JSON as it is, but for characters that a terminal might obey, or that break lines for some: they stand in strings alone.
fn push_escaped(bytes: &mut Vec<u8>, json: &str) {
    let mut character = [0; 4];
    for letter in json.chars() {
        if letter.is_control()
            || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            bytes.extend_from_slice(format!("\\u{:04x}", u32::from(letter)).as_bytes());
        } else {
            bytes.extend_from_slice(letter.encode_utf8(&mut character).as_bytes());
        }
    }
}

enum Output {
    Stdout,
    File(LogFile),
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Output::File(file) => file.write(bytes),
        }
    }
}

/// The file at a path, even if it is moved away.
struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(LogFile {
            file: append_to(&path)?,
            path,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_at_its_path() {
            self.file = append_to(&self.path)?;
        }
        self.file.write_all(bytes)
    }

    fn is_at_its_path(&self) -> bool {
        let (Ok(there), Ok(ours)) = (self.path.metadata(), self.file.metadata()) else {
            return false;
        };
        (there.dev(), there.ino()) == (ours.dev(), ours.ino())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Revision, Route};
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    fn facts(path: &str) -> Facts {
        let target = "http://10.0.0.1:8888/base?token=secret";
        let route = Route::parse("/user/alice/", target, "", "").unwrap();
        let modified = Revision(1);
        Facts {
            path: Some(path.to_owned()),
            status: 200,
            entry: Some(Arc::new(Entry { route, modified })),
            ..Facts::default()
        }
    }

    fn lines(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn whatever_is_in_it_a_line_is_a_line_and_obeyed_by_nobody() {
        let hostile = "/a\"}\n{\"b\u{1b}[2J\u{9b}31m\u{7f}\u{85}\u{2028}\u{2029}\u{202e}\u{2066}\0\\ü漢\u{1f40d}";
        let mut batch = Batch::default();
        batch.push(&facts(hostile));
        batch.push(&facts("/next"));
        let text = String::from_utf8(batch.bytes.clone()).unwrap();
        let harmless = |letter: char| letter == '\n' || !letter.is_control();
        assert!(text.chars().all(harmless), "{text:?}");
        assert!(
            !text.contains(['\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}']),
            "{text:?}"
        );
        let lines = lines(&batch.bytes);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["path"], hostile);
        assert_eq!(lines[1]["path"], "/next");
        assert_eq!(lines[1]["target"], "http://10.0.0.1:8888");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn what_is_kept_is_bounded_and_cut_between_characters() {
        assert_eq!(shortened("", 4), "");
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "abc");
        assert_eq!(shortened("aüü", 4), "aü");
        let mut facts = Facts::default();
        facts.failed("connect", Some("x".repeat(10_000)));
        facts.failed("silent", None);
        assert_eq!(facts.error, Some("connect"));
        assert_eq!(facts.cause.unwrap().len(), CAUSE_BYTES_MAX);
    }

    #[test]
    fn a_file_that_is_moved_away_is_made_anew_and_a_line_that_is_lost_is_counted() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("access.log");
        let mut output = Output::File(LogFile::open(path.clone()).unwrap());
        let (mut batch, lost) = (Batch::default(), Counter::default());
        let mut write = |output: &mut Output, path: &str| {
            batch.push(&facts(path));
            batch.write(output, &lost);
        };
        write(&mut output, "/1");
        let moved = folder.path().join("access.log.1");
        std::fs::rename(&path, &moved).unwrap();
        write(&mut output, "/2");
        assert_eq!(lines(&std::fs::read(&moved).unwrap())[0]["path"], "/1");
        assert_eq!(lines(&std::fs::read(&path).unwrap())[0]["path"], "/2");

        // Nobody may write there, not even root.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        write(&mut output, "/3");
        assert_eq!(lost.get(), 1);
        std::fs::remove_dir(&path).unwrap();
        write(&mut output, "/4");
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(found.starts_with('\n') && found.contains("/4"), "{found:?}");
        assert_eq!(lost.get(), 1);
    }

    #[test]
    fn a_place_is_read() {
        assert_eq!(AccessLogTo::parse("-"), Ok(AccessLogTo::Stdout));
        assert_eq!(AccessLogTo::parse("/x/y"), Ok(AccessLogTo::File("/x/y".into())));
        assert!(AccessLogTo::parse("").is_err());
    }

    #[tokio::test]
    async fn a_writer_that_is_stuck_costs_lines_and_holds_up_nobody() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pipe");
        make_pipe(&path);
        // Opened for reading too, so that nobody waits for the other side; then a full pipe stops the writer.
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let lost = Counter::default();
        let writer = Writer::open(&AccessLogTo::File(path)).unwrap();
        let (log, end) = writer.start(lost.clone()).unwrap();
        let sent = QUEUE + 5_000;
        for _ in 0..sent {
            drop(Record {
                log: log.clone(),
                began: Instant::now(),
                facts: Some(Box::new(facts("/x"))),
            });
        }
        assert!(lost.get() > 0, "{sent} lines went into a pipe that nobody reads");
        drop(log);
        let lost = lost.get() as usize;
        let read = tokio::task::spawn_blocking(move || {
            use std::io::BufRead as _;
            let lines = io::BufReader::new(reader).lines().take(sent - lost);
            lines.filter(|line| line.as_ref().unwrap().ends_with('}')).count()
        });
        assert_eq!(read.await.unwrap(), sent - lost, "all that were not counted as lost");
        let _ = end.await;
    }

    fn make_pipe(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }
}
