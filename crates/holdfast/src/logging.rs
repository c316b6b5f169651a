//! Logs: to standard error, for people or for machines; or as configurable-http-proxy does.

use std::fmt;
use std::io::{IsTerminal, stderr, stdout};
use std::sync::OnceLock;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::{Handle, Layer};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

/// The filter in use; there is one logger in a process.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
    /// configurable-http-proxy's, on standard output as there: scripts read it.
    ConfigProxy,
}

impl LogFormat {
    /// Reads the value of `--log-format`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("must be text or json".into()),
        }
    }
}

/// Which events are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// Reads the value of `--log-level`: a level, or directives like `info,holdfast_proxy=debug`.
    ///
    /// A level alone is meant for Holdfast: what it is built on speaks up from `warn` on only, and openraft, which warns
    /// at every heartbeat of a peer that is away, from `error` on.
    pub fn parse(text: &str) -> Result<Self, String> {
        let directives = match text {
            "off" | "error" => text.to_owned(),
            "warn" | "info" | "debug" | "trace" => format!("warn,openraft=error,holdfast={text}"),
            _ if text.contains('=') || text.contains(',') => text.to_owned(),
            _ => String::new(),
        };
        match EnvFilter::try_new(&directives) {
            Ok(_) if !directives.is_empty() => Ok(LogLevel(directives)),
            _ => Err(
                "must be off, error, warn, info, debug or trace, or directives like info,holdfast_proxy=debug".into(),
            ),
        }
    }
}

/// Starts logging; once per process.
pub fn start(format: LogFormat, level: &LogLevel) {
    let (filter, handle) = Layer::new(EnvFilter::new(&level.0));
    let _ = FILTER.set(handle);
    // A log line that cannot be written is lost. To report that on the same closed pipe would be a panic, and that at
    // the very moment when a child whose parent was killed has to end in good order.
    let lines = layer().with_writer(stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::ConfigProxy => registry
            .with(lines.with_writer(stdout).with_ansi(false).event_format(ConfigProxy))
            .try_init(),
    };
    debug_assert!(started.is_ok(), "logging is started once");
}

/// Logs by another level from now on.
pub fn change_level(level: &LogLevel) {
    // Fails only once the logger is gone, with nobody left to be told.
    let _ = FILTER.get().map(|filter| filter.reload(EnvFilter::new(&level.0)));
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `2026-11-23T04:14:20.162Z [ConfigProxy] info: message`.
struct ConfigProxy;

impl<S, N> FormatEvent<S, N> for ConfigProxy
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut line)?;
        let level = event.metadata().level().as_str().to_lowercase();
        write!(line, " [ConfigProxy] {level}: ")?;
        ctx.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_holdfast() {
        assert_eq!(
            LogLevel::parse("debug").unwrap().0,
            "warn,openraft=error,holdfast=debug"
        );
        assert_eq!(LogLevel::parse("info,h2=trace").unwrap().0, "info,h2=trace");
        for wrong in ["", "loud", "holdfast=loud"] {
            assert!(LogLevel::parse(wrong).is_err(), "{wrong}");
        }
    }
}
