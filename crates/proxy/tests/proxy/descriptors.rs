//! Few file descriptors.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use crate::fixture::{Conversation, Setup, Target, soon};

/// Says to a test that it is in a process of its own.
const ALONE: &str = "HOLDFAST_TEST_ALONE";

/// Runs a test of this program once more, with so many open files at most: the limit is a whole process's.
fn alone_with(open_files: u32, test: &str) {
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -n {open_files} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn without_descriptors_those_who_are_in_are_served_and_the_others_wait() {
    if std::env::var_os(ALONE).is_none() {
        let test = "descriptors::without_descriptors_those_who_are_in_are_served_and_the_others_wait";
        return alone_with(200, test);
    }
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    assert_eq!(setup.proxy.metric("holdfast_proxy_connections_max").await, 50.0);
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut inside = Conversation::connect(setup.proxy.public).await;
    inside.send(request).await;
    assert_eq!(inside.answer().await.status(), 200);

    // Until nothing is given back any more: the proxy may still be writing its copy of the table.
    let (mut held, mut before) = (Vec::new(), usize::MAX);
    while held.len() != before {
        before = held.len();
        while let Ok(file) = File::open("/dev/null") {
            held.push(file);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // For the client itself; the proxy gets none.
    held.pop();
    let mut outside = Conversation::connect(setup.proxy.public).await;
    outside.send(request).await;
    let early = tokio::time::timeout(Duration::from_millis(500), outside.read_more()).await;
    assert!(early.is_err());
    inside.send(request).await;
    assert_eq!(soon(inside.answer()).await.status(), 200);

    drop(held);
    assert_eq!(soon(outside.answer()).await.status(), 200);
    let series = r#"holdfast_proxy_accept_paused_total{reason="failed"}"#;
    let paused = setup.proxy.metric(series).await;
    assert!((2.0..=10.0).contains(&paused), "tried {paused} times in half a second");
}
