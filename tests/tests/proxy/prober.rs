//! The prober itself: what it calls flawless is worth nothing if it cannot see flaws.

use anyhow::{Result, ensure};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{free_port, until};
use holdfast_tests::prober::{Prober, ProberOptions, Seen, Subject};

fn prober(subjects: &[(&str, &str)]) -> Prober {
    let subjects = subjects.iter().map(|(path, identity)| Subject {
        path: (*path).to_owned(),
        identity: (*identity).to_owned(),
    });
    let options = ProberOptions {
        sockets: 1,
        ..ProberOptions::default()
    };
    Prober::new(subjects.collect(), options)
}

async fn sees(prober: &Prober, what: &str, is_it: impl Fn(&Seen) -> bool) -> Result<()> {
    until(what, SOON, async || {
        let seen = prober.seen();
        if is_it(&seen) { Ok(()) } else { Err(seen) }
    })
    .await
}

#[tokio::test]
async fn the_prober_sees_wrong_answers_denied_routes_and_dropped_sockets() -> Result<()> {
    // An echo server in the place of a proxy: it answers as whoever is in the path.
    let echo = Echo::start().await?;
    let mut prober = prober(&[
        ("/t/bob/x", "alice"),
        ("/user/alice/x", "alice"),
        ("/t/alice/x", "alice"),
    ]);
    prober.add_proxy("p0", &echo.address());
    sees(&prober, "wrong answers", |seen| seen.wrong > 1).await?;
    sees(&prober, "denied routes", |seen| seen.no_route > 1).await?;
    sees(&prober, "echoes", |seen| seen.echoes > 1).await?;
    let seen = prober.take();
    ensure!(
        seen.flawless().is_err() && seen.failed == 0 && seen.dropped == 0,
        "{seen:?}"
    );

    // It dies, and nobody told the prober.
    drop(echo);
    sees(&prober, "failed requests", |seen| seen.failed > 1).await?;
    sees(&prober, "dropped WebSockets", |seen| seen.dropped > 0).await
}

#[tokio::test]
async fn the_prober_forgives_what_is_down_or_starting_but_no_wrong_answer() -> Result<()> {
    let echo = Echo::start().await?;
    let mut prober = prober(&[("/t/alice/x", "alice")]);
    let up = prober.add_proxy("p0", &echo.address());
    let nobody = format!("127.0.0.1:{}", free_port());
    prober.add_proxy("p1", &nobody);
    sees(&prober, "a proxy that starts", |seen| {
        seen.not_yet > 1 && seen.first_right.len() == 1
    })
    .await?;
    prober.expect_down(up);
    drop(echo);
    let before = prober.seen().not_yet;
    sees(&prober, "that it goes on", |seen| seen.not_yet > before + 10).await?;
    let seen = prober.take();
    ensure!(seen.wrong + seen.no_route + seen.failed + seen.dropped == 0, "{seen:?}");
    Ok(())
}
