//! `holdfast backup FILE`: takes a backup and checks it while it is written.

use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use bytes::{Buf, Bytes};
use holdfast_client::{BackupStream, ReadError};
use holdfast_replica::backup::{self, Backup};
use tokio::sync::mpsc;

use super::{BackupArgs, report};
use crate::commands::{Client, block_on};
use crate::config::Settings;
use crate::file;
use crate::output::{self, Format, Progress};

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
    match name {
        "-" if stdout().is_terminal() => Err("a backup is not for a terminal: send it to a file".into()),
        "-" => Ok(Target::Stdout),
        name => file::parse(name, force).map(Target::File),
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
        Target::File(path) => file::write(&path, force, |file| copy(pulled, file)),
    }
}

fn copy<W: Write>(pulled: Pulled, to: W) -> anyhow::Result<(Backup, W)> {
    let mut tee = Tee {
        from: pulled,
        to: BufWriter::new(to),
        broken: None,
        taken: 0,
        progress: Progress::default(),
    };
    let read = backup::read(BufReader::with_capacity(256 * 1024, &mut tee));
    tee.progress.end();
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
    progress: Progress,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(bytes)?;
        if let Err(error) = self.to.write_all(&bytes[..n]) {
            self.broken = Some(error);
            return Err(io::Error::other("the copy cannot be written"));
        }
        self.taken += n as u64;
        let taken = self.taken;
        self.progress
            .say(|| format!("{:.1} MiB", taken as f64 / (1024.0 * 1024.0)));
        Ok(n)
    }
}
