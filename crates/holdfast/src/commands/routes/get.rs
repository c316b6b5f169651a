//! `holdfast routes get`: one route as of now.

use std::process::ExitCode;

use clap::Args;
use holdfast_table::RouteSpec;

use super::{read_failed, reader};
use crate::commands::{ClientArgs, block_on};
use crate::config::Settings;
use crate::output::{self, Format, RouteJson};

/// Shows one route, as of now. Exit code 1 if there is none.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The routespec, like /user/alice/ or alice.hub.example.org/user/alice/.
    #[arg(value_name = "SPEC")]
    spec: String,

    /// table, or json: {"routespec", "target", "data", "namespace", "mod_revision"}.
    #[arg(long, short, env = "HOLDFAST_OUTPUT", value_name = "FORMAT", default_value = "table")]
    output: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command.
pub fn run(args: GetArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let spec = settings.read("SPEC", &args.spec, |text| {
        RouteSpec::parse(text).map_err(|error| error.problem)
    });
    let format = settings.read("output", &args.output, Format::parse);
    let client = args.client.read(&mut settings);
    let ((spec, format), client) = settings.finish(spec.zip(format).zip(client))?;
    client.common.start_logging();

    let found = block_on(async {
        let answer = reader(&client).get(&spec).await;
        answer.map_err(|error| read_failed(error, &format!("{spec} cannot be read"), &client))
    })?;
    let Some(entry) = found else {
        output::complain(&format!("holdfast: there is no route {spec}"));
        return Ok(ExitCode::from(crate::FAILED));
    };
    match format {
        Format::Json => output::json(&RouteJson::from(&entry))?,
        Format::Table => {
            let route = &entry.route;
            output::line(&format!("routespec  {}", route.spec))?;
            output::line(&format!("target     {}", route.target))?;
            output::line(&format!("data       {}", route.data.as_str()))?;
            output::line(&format!("namespace  {}", route.namespace))?;
            output::line(&format!("modified   {}", entry.modified))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
