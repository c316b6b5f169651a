use super::*;

use std::io::Write;

use clap::ArgAction;

fn command() -> Command {
    let setting = |name: &'static str| Arg::new(name).long(name);
    let role = Command::new("role")
        .arg(setting("config").value_parser(clap::value_parser!(PathBuf)))
        .arg(setting("port").default_value("1"))
        .arg(Arg::new("log_level").long("log-level"))
        .arg(Arg::new("data_dir").long("data-dir"))
        .arg(
            Arg::new("lines")
                .long("lines")
                .value_delimiter('\n')
                .action(ArgAction::Append),
        )
        // Set for every process, and a test cannot set one itself.
        .arg(setting("path").env("PATH"));
    Command::new("holdfast").subcommand(Command::new("group").subcommand(role))
}

fn load_with(file: Option<&str>, flags: &[&str]) -> (ArgMatches, Settings) {
    let mut line: Vec<OsString> = ["holdfast", "group", "role"].map(OsString::from).into();
    line.extend(flags.iter().map(OsString::from));
    let file = file.map(|text| {
        let mut file = temporary();
        file.1.write_all(text.as_bytes()).unwrap();
        file.0
    });
    if let Some(path) = &file {
        line.extend(["--config".into(), path.clone().into_os_string()]);
    }
    let loaded = load(command, &line).unwrap();
    if let Some(path) = file {
        std::fs::remove_file(path).unwrap();
    }
    loaded
}

fn temporary() -> (PathBuf, std::fs::File) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "holdfast-config-{}-{}.toml",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    let file = std::fs::File::create_new(&path).unwrap();
    (path, file)
}

fn value(matches: &ArgMatches, id: &str) -> Option<String> {
    descend(matches).1.get_one::<String>(id).cloned()
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let (matches, _) = load_with(None, &[]);
    assert_eq!(value(&matches, "port").unwrap(), "1");
    let (matches, _) = load_with(Some("port = 2\ndata-dir = \"/x\""), &[]);
    assert_eq!(value(&matches, "port").unwrap(), "2");
    assert_eq!(value(&matches, "data_dir").unwrap(), "/x");
    let (matches, _) = load_with(Some("port = 2"), &["--port", "3"]);
    assert_eq!(value(&matches, "port").unwrap(), "3");
    let (matches, mut settings) = load_with(Some("path = \"/x\""), &[]);
    assert_eq!(value(&matches, "path").unwrap(), std::env::var("PATH").unwrap());
    settings.refuse("path", "/x", "is wrong");
    assert!(
        settings
            .finish(Some(()))
            .unwrap_err()
            .to_string()
            .contains("\n  HOLDFAST_PATH \"/x\": is wrong\n")
    );
    let (matches, _) = load_with(Some("path = \"/x\""), &["--path", "/y"]);
    assert_eq!(value(&matches, "path").unwrap(), "/y");
}

#[test]
fn a_list_in_the_file_is_the_same_as_commas() {
    let (matches, mut settings) = load_with(Some("data-dir = [\"a\", \"b\"]"), &[]);
    assert_eq!(value(&matches, "data_dir").unwrap(), "a,b");
    assert!(settings.finish(Some(())).is_ok());
}

#[test]
fn a_list_of_lines_in_the_file_keeps_its_commas() {
    let (matches, settings) = load_with(Some("lines = [\"a, b\", \"c\"]"), &[]);
    let lines = descend(&matches).1.get_many::<String>("lines").unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["a, b", "c"]);
    assert_eq!(settings.values["lines"], ["a, b", "c"]);
}

#[test]
fn flags_are_what_was_given_wherever_it_was() {
    #[derive(Args)]
    #[allow(dead_code, reason = "only its flags are looked at")]
    struct Flags {
        #[arg(long, default_value = "1")]
        port: String,
        #[arg(long)]
        data_dir: Option<String>,
        #[arg(long, value_delimiter = '\n')]
        lines: Vec<String>,
    }
    let said = |file: &str, flags: &[&str]| load_with(Some(file), flags).1.flags::<Flags>();
    assert_eq!(said("", &["--log-level", "debug"]), [""; 0]);
    assert_eq!(
        said("port = 2\nlines = [\"a, b\", \"c\"]", &["--data-dir", "/x y"]),
        ["--port=2", "--data-dir=/x y", "--lines=a, b", "--lines=c"]
    );
    assert_eq!(said("port = 2", &["--port", "1"]), [""; 0]);
}

#[test]
fn every_mistake_is_reported_at_once_under_the_name_by_which_it_was_given() {
    let file = "data_dir = \"/x\"\nprot = 2\nnothing = true\nlog-level = \"loud\"";
    let (matches, mut settings) = load_with(Some(file), &["--port", "x"]);
    let wrong = |_: &str| Err::<(), _>("is wrong".to_owned());
    assert!(
        settings
            .read("port", &value(&matches, "port").unwrap(), wrong)
            .is_none()
    );
    assert!(
        settings
            .read("log-level", &value(&matches, "log_level").unwrap(), wrong)
            .is_none()
    );
    assert!(
        settings
            .read_required("data-dir", None, "give a directory", wrong)
            .is_none()
    );
    settings.refuse("SPEC", "user", "must end with '/'");
    let text = settings.finish(Some(())).unwrap_err().to_string();
    for part in [
        "holdfast group role: 7 mistakes, nothing was done:",
        "data_dir in /",
        "there is no such setting; did you mean data-dir?",
        "did you mean port?",
        "the keys are data-dir, lines, log-level, path, port",
        "--port \"x\": is wrong",
        ".toml \"loud\": is wrong",
        "--data-dir is missing: give a directory",
        "SPEC \"user\": must end with '/'",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_among_others() {
    let (_, mut settings) = load_with(None, &["--config", "/nonexistent/holdfast.toml"]);
    settings.refuse("port", "x", "is wrong");
    let text = settings.finish(Some(())).unwrap_err().to_string();
    assert!(
        text.contains("2 mistakes") && text.contains("\"/nonexistent/holdfast.toml\": cannot be read"),
        "{text}"
    );
    let (_, mut settings) = load_with(Some("port = "), &[]);
    assert!(
        settings
            .finish(Some(()))
            .unwrap_err()
            .to_string()
            .contains("is not TOML")
    );
}
