//! `holdfast backup FILE`: takes a backup and checks it while it is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write, stderr, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::{Buf, Bytes};
use holdfast_client::{BackupStream, ReadError};
use holdfast_replica::backup::{self, Backup};
use tokio::sync::mpsc;

use super::{BackupArgs, report};
use crate::commands::{Client, block_on};
use crate::config::Settings;
use crate::output::{self, Format};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Where to.
enum Target {
    Stdout,
    File(PathBuf),
}

/// Runs the command.
pub fn run(args: BackupArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let name = args.file.clone().unwrap_or_default();
    let target = match &args.file {
        None => {
            settings.refuse_as("FILE is missing: name the file to write, or - for standard output".to_owned());
            None
        }
        Some(name) => settings.read("FILE", name, |name| target(name, args.force)),
    };
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let ((target, format), client) = settings.finish(target.zip(format).zip(client))?;
    client.common.start_logging();

    let is_stdout = matches!(target, Target::Stdout);
    let backup = block_on(take(&client, args.stale_ok, target, args.force))?;
    let report = report(&backup, &name, format)?;
    match is_stdout {
        true => output::complain(&report),
        false => output::line(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn target(name: &str, force: bool) -> Result<Target, String> {
    let path = PathBuf::from(name);
    match fs::symlink_metadata(&path) {
        _ if name == "-" && stdout().is_terminal() => Err("a backup is not for a terminal: send it to a file".into()),
        _ if name == "-" => Ok(Target::Stdout),
        _ if path.file_name().is_none() => Err("must be a file's name".into()),
        Ok(metadata) if metadata.is_dir() => Err("is a directory: name a file in it".into()),
        Ok(_) if !force => Err("exists already: name another file, or replace it with --force".into()),
        _ => Ok(Target::File(path)),
    }
}

async fn take(client: &Client, stale_ok: bool, target: Target, force: bool) -> anyhow::Result<Backup> {
    let stream = BackupStream::open(&client.endpoints, stale_ok, client.timeout).await;
    let mut stream = stream.map_err(|error| {
        let next = match stale_ok {
            true => "look with `holdfast status`, and check --endpoints",
            false => {
                "look with `holdfast status`, and check --endpoints; without a quorum, --stale-ok takes what a replica has"
            }
        };
        anyhow!(
            "no backup was taken: asked {}: {error}\nWhat to do: {next}.",
            client.asked()
        )
    })?;
    let (pieces, pulled) = mpsc::channel(4);
    let writing = tokio::task::spawn_blocking(move || write(Pulled::new(pulled), target, force));
    loop {
        let piece = stream.next().await;
        let is_last = !matches!(piece, Ok(Some(_)));
        let Some(piece) = piece.transpose() else { break };
        // A writer that has given up says why when it is asked below.
        if pieces.send(piece).await.is_err() || is_last {
            break;
        }
    }
    drop(pieces);
    writing.await.context("the backup could not be written")?
}

/// Writes what comes, reading it at the same time as somebody would who restores it.
fn write(pulled: Pulled, target: Target, force: bool) -> anyhow::Result<Backup> {
    match target {
        Target::Stdout => {
            let (backup, mut out) = copy(pulled, stdout().lock())?;
            out.flush()?;
            Ok(backup)
        }
        Target::File(path) => {
            let temporary = Temporary::beside(&path)?;
            let (backup, file) = copy(pulled, temporary.file()?)?;
            let cannot = || format!("file {path:?}: cannot be written; nothing is left of it");
            file.sync_all().with_context(cannot)?;
            if !force && fs::symlink_metadata(&path).is_ok() {
                bail!("file {path:?}: exists by now; name another file, or replace it with --force");
            }
            fs::rename(&temporary.0, &path).with_context(cannot)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .with_context(cannot)?;
            Ok(backup)
        }
    }
}

fn copy<W: Write>(pulled: Pulled, to: W) -> anyhow::Result<(Backup, W)> {
    let mut tee = Tee {
        from: pulled,
        to: BufWriter::new(to),
        broken: None,
        taken: 0,
        told: Instant::now(),
        tells: stderr().is_terminal(),
    };
    let read = backup::read(BufReader::with_capacity(256 * 1024, &mut tee));
    if tee.tells {
        output::complain("");
    }
    if let Some(error) = tee.broken {
        return Err(anyhow::Error::from(error).context("the backup cannot be written; nothing is left of it"));
    }
    let backup = read.context("the backup that came cannot be used, and nothing is left of it; take it again")?;
    let to = tee.to.into_inner().map_err(io::IntoInnerError::into_error);
    Ok((
        backup,
        to.context("the backup cannot be written; nothing is left of it")?,
    ))
}

/// What comes from the cluster, to be read by somebody who waits.
struct Pulled {
    pieces: mpsc::Receiver<Result<Bytes, ReadError>>,
    piece: Bytes,
}

impl Pulled {
    fn new(pieces: mpsc::Receiver<Result<Bytes, ReadError>>) -> Self {
        Pulled {
            pieces,
            piece: Bytes::new(),
        }
    }
}

impl Read for Pulled {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let n = bytes.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut bytes[..n]);
        Ok(n)
    }
}

/// Writes what is read through it.
struct Tee<R, W> {
    from: R,
    to: W,
    broken: Option<io::Error>,
    taken: u64,
    told: Instant,
    tells: bool,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(bytes)?;
        if let Err(error) = self.to.write_all(&bytes[..n]) {
            self.broken = Some(error);
            return Err(io::Error::other("the copy cannot be written"));
        }
        self.taken += n as u64;
        if self.tells && self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            let mib = self.taken as f64 / (1024.0 * 1024.0);
            // Nobody is left to be told if it is closed.
            let _ = write!(stderr().lock(), "\r{mib:.1} MiB");
        }
        Ok(n)
    }
}

/// A file beside the one that is meant; gone unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Temporary(
            path.with_file_name(format!(".{name}.{}.tmp", std::process::id())),
        ))
    }

    fn file(&self) -> anyhow::Result<File> {
        // It tells where everybody's server is.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.0);
        file.with_context(|| format!("file {:?}: cannot be made", self.0))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}
