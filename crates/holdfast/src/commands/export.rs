//! `holdfast export`: the routes as one JSON document, byte for byte.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use holdfast_client::Listing;
use holdfast_table::Route;
use serde::Serialize;
use serde_json::value::RawValue;

use super::routes::{read_failed, reader};
use super::{ClientArgs, any_namespace, block_on};
use crate::config::Settings;
use crate::{file, output};

/// Writes the routes as JSON, as of one revision that is no older than this call.
///
/// It is what `holdfast import` reads: {"epoch", "revision", "digest", "routes": [{"routespec", "target", "data",
/// "namespace"}, ...]}, a route to a line. Routespecs, targets and data are what was written, byte for byte. It is no
/// backup: see `holdfast backup --help`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Only routes of this namespace: what one hub owns. '*': of every namespace.
    #[arg(
        long,
        env = "HOLDFAST_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    namespace: String,

    /// The file to write. [default: standard output]
    #[arg(long, env = "HOLDFAST_OUTPUT_FILE", value_name = "FILE")]
    output_file: Option<String>,

    /// Replaces a file of this name.
    #[arg(long, env = "HOLDFAST_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: ExportArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let namespace = settings.read("namespace", &args.namespace, any_namespace);
    let path: Option<Option<PathBuf>> = settings.read_optional("output-file", args.output_file.as_deref(), |name| {
        file::parse(name, args.force)
    });
    let client = args.client.read(&mut settings);
    let ((namespace, path), client) = settings.finish(namespace.zip(path).zip(client))?;
    client.common.start_logging();

    let listing = block_on(async {
        let answer = reader(&client).list(namespace.as_ref(), "").await;
        answer.map_err(|error| read_failed(error, "the routes cannot be listed", &client))
    })?;
    let document = document(&listing)?;
    match path {
        None => output::line(&document)?,
        Some(path) => {
            file::write(&path, args.force, |mut file| {
                writeln!(file, "{document}")?;
                Ok(((), file))
            })?;
            let count = output::counted(listing.routes.len(), "route", "routes");
            output::complain(&format!(
                "{count} at revision {} in {}",
                listing.revision,
                path.display()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct RouteJson<'a> {
    routespec: &'a str,
    target: &'a str,
    data: DataJson<'a>,
    namespace: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum DataJson<'a> {
    /// Bare, and so byte for byte.
    Object(&'a RawValue),
    /// As a string: white space around an object is no part of it.
    Text(&'a str),
}

fn document(listing: &Listing) -> anyhow::Result<String> {
    let mut text = format!(
        "{{\"epoch\":{},\"revision\":{},\"digest\":\"{}\",\"routes\":[",
        listing.epoch, listing.revision, listing.digest
    );
    for (at, entry) in listing.routes.iter().enumerate() {
        text.push_str(if at == 0 { "\n" } else { ",\n" });
        text.push_str(&route(&entry.route)?);
    }
    text.push_str("\n]}");
    Ok(text)
}

fn route(route: &Route) -> serde_json::Result<String> {
    let data = route.data.as_str();
    let data = match serde_json::from_str::<&RawValue>(data) {
        Ok(object) if object.get() == data => DataJson::Object(object),
        _ => DataJson::Text(data),
    };
    serde_json::to_string(&RouteJson {
        routespec: route.spec.as_str(),
        target: route.target.as_str(),
        data,
        namespace: route.namespace.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::import::{plan, source};
    use holdfast_table::{Digest, Entry, Epoch, Revision};

    #[test]
    fn what_is_imported_is_what_was_exported_byte_for_byte() {
        let mut routes = Vec::new();
        for (at, data) in [
            "{}",
            r#"{"n": 1.000000000000000000001, "big":1e999, "nested":{"a":[true,null,{}]}}"#,
            " {\"a\":\r\n\t1}\n",
            r#"{"user":"zo\u00eb \" \\ 漢"}"#,
            r#"{"a":1,"a":2}"#,
        ]
        .iter()
        .enumerate()
        {
            for (spec, target) in [
                (format!("/user/zo%C3%AB%2fx{at}/"), "http://10.0.0.1:8888"),
                (format!("/user/`\"'@~+{at}/"), "HTTP://Name:80/"),
                (
                    format!("a{at}.Hub.example/user/x/"),
                    "http+unix://%2Frun%2Fa%20b.sock/x?q=1",
                ),
            ] {
                routes.push(Route::parse(&spec, target, data, "hub-2").unwrap());
            }
        }
        let listing = Listing {
            epoch: Epoch(1),
            revision: Revision(9),
            digest: Digest::default(),
            routes: routes
                .iter()
                .map(|route| Entry {
                    route: route.clone(),
                    modified: Revision(1),
                })
                .collect(),
            last_activity_ms: Vec::new(),
            holds: Vec::new(),
        };
        let exported = document(&listing).unwrap();
        let (drafts, mistakes) = source::read(&exported, false).unwrap();
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(plan::parse(drafts, None), (routes, Vec::new()));
        assert!(
            source::read(
                &document(&Listing {
                    routes: Vec::new(),
                    ..listing
                })
                .unwrap(),
                false
            )
            .is_ok()
        );
    }
}
