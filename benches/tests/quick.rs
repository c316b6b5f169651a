//! The benchmarks run; what they measure in so short a time means nothing.

use std::process::Command;

fn runs(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the benchmark was built");
    let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(
        output.status.success() && told[0].contains("took"),
        "{}\n{}",
        told[0],
        told[1]
    );
}

#[test]
fn the_store_benchmark_runs() {
    runs(env!("CARGO_BIN_EXE_store"), &["--quick"]);
}

#[test]
fn the_proxy_benchmark_runs() {
    // One peer, where it is installed: where it is not, that is said.
    runs(env!("CARGO_BIN_EXE_proxy"), &["--quick", "--peers", "haproxy"]);
}
