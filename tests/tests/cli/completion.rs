use anyhow::{Result, ensure};
use holdfast_tests::fixture::run;

#[tokio::test]
async fn completion_scripts_know_the_commands() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let finished = run(["completion", shell]).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        for command in [
            "replica",
            "proxy",
            "up",
            "chp",
            "api-ssl-reject-unauthorized",
            "status",
            "routes",
            "watch",
            "reconcile",
            "held",
            "import",
            "export",
            "members",
            "leader",
        ] {
            ensure!(finished.stdout.contains(command), "{shell} does not know {command}");
        }
    }
    let finished = run(["completion", "tcsh"]).await?;
    ensure!(
        finished.code == Some(2) && finished.stderr.contains("tcsh"),
        "{finished:?}"
    );
    Ok(())
}

#[tokio::test]
async fn mistakes_on_the_command_line_are_told_all_at_once() -> Result<()> {
    let finished = run([
        "replica",
        "--peers",
        "r0",
        "--heartbeat",
        "50",
        "--listen-client",
        "here",
    ])
    .await?;
    ensure!(finished.code == Some(2), "{finished:?}");
    for part in [
        "--name",
        "--data-dir",
        "--peers",
        "--heartbeat",
        "\"50\"",
        "--listen-client",
        "\"here\"",
    ] {
        ensure!(
            finished.stderr.contains(part),
            "{part} is not named: {}",
            finished.stderr
        );
    }
    ensure!(run(["no-such-command"]).await?.code == Some(2));
    Ok(())
}
