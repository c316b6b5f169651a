//! Child processes: started, started again when they die, stopped together.
//!
//! Each child has a pipe from us as its standard input. It ends when the pipe does (`--exit-with-parent`), so closing it
//! asks a child to stop, and our own death asks all of them, whatever we die of. Asking twice is not asking harder,
//! unlike a second SIGTERM: with Ctrl-C at a terminal the children have had a signal of their own already.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The pause before a child is started again, doubled with each further failure. After the first one there is none: users
/// wait for it.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that ran this long had started well.
const STEADY: Duration = Duration::from_secs(10);
/// A longer line of a child's output is passed on in pieces.
const LINE_BYTES_MAX: u64 = 16 * 1024;

/// One child process.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// Shown before each line of its output.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How long it may take to stop before it is killed.
    pub grace: Duration,
}

/// What a child does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildState {
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// How often it has ended by itself soon after its start, not counting signals, since it last ran well.
    pub failures: u32,
    /// How it ended the last time.
    pub ended: Option<String>,
    /// It says that its settings are wrong: starting it again would not mend that.
    pub hopeless: bool,
}

/// Every child's state, by its name.
pub type States = BTreeMap<String, ChildState>;

/// Runs children until it is told to stop.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<()>,
    states: watch::Sender<States>,
}

impl Supervisor {
    /// Starts every child.
    ///
    /// `stop` asks them to stop and gives each its grace; `kill` ends them at once.
    pub fn start(children: Vec<ChildSpec>, stop: &CancellationToken, kill: &CancellationToken) -> Self {
        let states = children
            .iter()
            .map(|child| (child.name.clone(), ChildState::default()))
            .collect();
        let states = watch::Sender::new(states);
        let mut tasks = JoinSet::new();
        for child in children {
            tasks.spawn(keep_running(child, states.clone(), stop.clone(), kill.clone()));
        }
        Supervisor { tasks, states }
    }

    /// What the children do, now and from now on.
    pub fn states(&self) -> watch::Receiver<States> {
        self.states.subscribe()
    }

    /// Returns when every child has ended, which they do only after `stop` or `kill`.
    pub async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn keep_running(
    spec: ChildSpec,
    states: watch::Sender<States>,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    let note = |change: &dyn Fn(&mut ChildState)| {
        states.send_modify(|states| states.get_mut(&spec.name).into_iter().for_each(change));
    };
    let mut pause = Duration::ZERO;
    while !stop.is_cancelled() && !kill.is_cancelled() {
        let started = Instant::now();
        let ended = match start(&spec) {
            Ok((mut child, output)) => {
                note(&|state| state.pid = child.id());
                let status = wait(&mut child, &spec, &stop, &kill).await;
                drain(output).await;
                status.map_or_else(
                    |error| (error.to_string(), None),
                    |status| (describe(status), status.code()),
                )
            }
            Err(error) => (format!("a failed start: {error}"), Some(1)),
        };
        let steady = started.elapsed() >= STEADY;
        let (how, code) = ended;
        note(&|state| {
            state.pid = None;
            state.ended = Some(how.clone());
            state.hopeless = code == Some(i32::from(crate::USAGE));
            state.failures = match (steady, code) {
                (false, Some(_)) => state.failures + 1,
                (true, Some(_)) => 1,
                // A signal came from outside and says nothing about the next start.
                (_, None) => state.failures,
            };
        });
        if stop.is_cancelled() || kill.is_cancelled() {
            tracing::debug!(child = spec.name, "ended with {how}");
            return;
        }
        if steady {
            pause = Duration::ZERO;
        }
        tracing::warn!(child = spec.name, "ended with {how}: starting it again in {pause:?}");
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
            () = stop.cancelled() => {}
            () = kill.cancelled() => {}
        }
    }
}

fn start(spec: &ChildSpec) -> std::io::Result<(Child, JoinSet<()>)> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // Our own settings are not the children's: all of theirs are arguments.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    let mut child = command.spawn()?;
    let mut output = JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        output.spawn(pass_on(spec.name.clone(), stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        output.spawn(pass_on(spec.name.clone(), stderr));
    }
    Ok((child, output))
}

/// Waits for a child's end; brings it about if asked to.
async fn wait(
    child: &mut Child,
    spec: &ChildSpec,
    stop: &CancellationToken,
    kill: &CancellationToken,
) -> std::io::Result<ExitStatus> {
    // `Child::wait` would close it, and with it end the child.
    let pipe = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => drop(pipe),
        () = kill.cancelled() => {}
    }
    tokio::select! {
        status = timeout(spec.grace, child.wait()) => match status {
            Ok(status) => return status,
            Err(_) => tracing::warn!(child = spec.name, "did not end within {:?}: killing it", spec.grace),
        },
        () = kill.cancelled() => {}
    }
    child.start_kill()?;
    child.wait().await
}

/// The rest of a dead child's output. Bounded: a process that the child left behind may hold the pipe open.
async fn drain(mut output: JoinSet<()>) {
    let _ = timeout(Duration::from_secs(1), async {
        while output.join_next().await.is_some() {}
    })
    .await;
}

/// Passes on a child's output to our standard error, each line with the child's name before it.
async fn pass_on(name: String, output: impl AsyncRead + Unpin) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(format!("[{name}] ").as_bytes());
        match (&mut output).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // In one write, so that lines of several children do not mix. If nobody reads them any more they are lost, and
        // the child must not notice.
        let _ = stderr().lock().write_all(&line);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, grace: Duration) -> ChildSpec {
        ChildSpec {
            name: "c0".into(),
            program: "/bin/sh".into(),
            arguments: ["-c", script].map(OsString::from).into(),
            grace,
        }
    }

    struct Running {
        states: watch::Receiver<States>,
        stop: CancellationToken,
        kill: CancellationToken,
        supervisor: Supervisor,
    }

    fn run(child: ChildSpec) -> Running {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let supervisor = Supervisor::start(vec![child], &stop, &kill);
        Running {
            states: supervisor.states(),
            stop,
            kill,
            supervisor,
        }
    }

    impl Running {
        async fn until(&mut self, holds: impl Fn(&ChildState) -> bool) -> ChildState {
            let states = self.states.wait_for(|states| holds(&states["c0"]));
            timeout(Duration::from_secs(20), states).await.unwrap().unwrap()["c0"].clone()
        }
    }

    #[tokio::test]
    async fn a_killed_child_is_started_again_and_a_stopped_one_ends_with_its_pipe() {
        let mut running = run(shell("cat", Duration::from_secs(20)));
        let first = running.until(|state| state.pid.is_some()).await.pid.unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let second = running.until(|state| state.pid.is_some_and(|pid| pid != first)).await;
        assert_eq!((second.ended.as_deref(), second.failures), (Some("signal 9"), 0));
        running.stop.cancel();
        timeout(Duration::from_secs(20), running.supervisor.ended())
            .await
            .unwrap();
        assert_eq!(running.states.borrow()["c0"].ended.as_deref(), Some("exit code 0"));
    }

    #[tokio::test]
    async fn a_child_that_fails_is_counted_and_one_with_wrong_settings_is_hopeless() {
        let mut running = run(shell("exit 2", Duration::from_secs(20)));
        let state = running.until(|state| state.failures >= 2).await;
        assert!(
            state.hopeless && state.ended.as_deref() == Some("exit code 2"),
            "{state:?}"
        );
        running.stop.cancel();
        timeout(Duration::from_secs(20), running.supervisor.ended())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_child_that_does_not_stop_is_killed_after_its_grace_or_at_once() {
        let deaf = "while :; do sleep 1; done";
        let mut running = run(shell(deaf, Duration::from_millis(50)));
        running.until(|state| state.pid.is_some()).await;
        running.stop.cancel();
        timeout(Duration::from_secs(20), running.supervisor.ended())
            .await
            .unwrap();

        let mut running = run(shell(deaf, Duration::from_secs(3600)));
        running.until(|state| state.pid.is_some()).await;
        running.stop.cancel();
        running.kill.cancel();
        timeout(Duration::from_secs(20), running.supervisor.ended())
            .await
            .unwrap();
        assert_eq!(running.states.borrow()["c0"].ended.as_deref(), Some("signal 9"));
    }
}
