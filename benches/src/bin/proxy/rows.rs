//! Every figure of the output, and what Holdfast's must be.

use holdfast_benches::comparison::{Beside, Row, Target};
use holdfast_benches::proxies::Kind;

const AS_FAST: Target = Target::RatioAtLeast(0.9);
const AS_CHEAP: Target = Target::RatioAtMost(1.1);
const AS_SOON: Target = Target::RatioAtMost(1.0);
const TIMES_CHP: Target = Target::RatioAtLeast(9.0);

pub const ROWS: &[Row] = &[
    row("1,000 routes to 16 targets", "requests/s", AS_FAST),
    to(Kind::Chp, "1,000 routes to 16 targets", "requests/s", TIMES_CHP),
    told("1,000 routes to 16 targets: CPU per request", "us"),
    row("10,000 routes to 16 targets", "requests/s", AS_FAST),
    to(Kind::Chp, "10,000 routes to 16 targets", "requests/s", TIMES_CHP),
    row("10,000 routes to 16 targets: CPU per request", "us", AS_CHEAP),
    row("100,000 routes to 16 targets", "requests/s", AS_FAST),
    to(Kind::Chp, "100,000 routes to 16 targets", "requests/s", TIMES_CHP),
    told("100,000 routes to 16 targets: CPU per request", "us"),
    row("1,000 routes to 1,000 targets", "requests/s", AS_FAST),
    told("1,000 routes to 1,000 targets: CPU per request", "us"),
    row("5,000 routes to 5,000 targets", "requests/s", AS_FAST),
    told("5,000 routes to 5,000 targets: CPU per request", "us"),
    row("1,000 requests/s, 10,000 routes: p50", "ms", AS_CHEAP),
    row("1,000 requests/s, 10,000 routes: p99", "ms", AS_CHEAP),
    row("10 KiB answers, 10,000 routes", "requests/s", AS_FAST),
    told("10 KiB answers, 10,000 routes: CPU per request", "us"),
    row("64 WebSockets", "echoes/s", Target::RatioAtLeast(0.95)),
    told("64 WebSockets: CPU per echo", "us"),
    row("memory per idle WebSocket", "KiB", Target::AtMost(20.0)),
    row("memory, 100,000 routes", "MiB", Target::AtMost(75.0)),
    to(
        Kind::Haproxy,
        "start, 10,000 routes (Holdfast: from its cache)",
        "ms",
        AS_SOON,
    ),
    to(
        Kind::Haproxy,
        "start, 10,000 routes (Holdfast: from a replica)",
        "ms",
        AS_SOON,
    ),
    to(
        Kind::Haproxy,
        "start, 100,000 routes (Holdfast: from its cache)",
        "ms",
        AS_SOON,
    ),
    to(
        Kind::Haproxy,
        "start, 100,000 routes (Holdfast: from a replica)",
        "ms",
        AS_SOON,
    ),
    to(Kind::Haproxy, "one more by command, 10 routes", "ms", AS_SOON),
    to(Kind::Haproxy, "one more by command, 1,000 routes", "ms", AS_SOON),
    to(Kind::Haproxy, "one more by command, 10,000 routes", "ms", AS_SOON),
    to(Kind::Haproxy, "one more by command, 100,000 routes", "ms", AS_SOON),
    told("one more by a call, 10 routes", "ms"),
    told("one more by a call, 1,000 routes", "ms"),
    told("one more by a call, 10,000 routes", "ms"),
    told("one more by a call, 100,000 routes", "ms"),
    told("a path looked up in a table of 1,000 routes", "ns"),
    told("a path looked up in a table of 1,000,000 routes", "ns"),
    told("one more in a table of 1,000 routes", "us"),
    told("one more in a table of 1,000,000 routes", "us"),
    told("alone, 10 routes", "requests/s"),
    told("alone, 10 routes: CPU per request", "us"),
    told("alone, 1,000,000 routes", "requests/s"),
    told("alone, 1,000,000 routes: CPU per request", "us"),
    row("alone, 1,000,000 routes to 10: requests/s", "x", Target::AtLeast(0.95)),
    told("alone, 1,000 routes: one more by command", "ms"),
    told("alone, 1,000,000 routes: one more by command", "ms"),
    row("alone, 1,000,000 routes to 1,000: one more", "x", Target::AtMost(1.1)),
    told("alone, 1,000 routes: memory", "MiB"),
    told("alone, 1,000,000 routes: memory", "MiB"),
    told("alone, 1,000,000 routes: memory per route", "bytes"),
    told("alone, 1,000 routes: start from its cache", "ms"),
    told("alone, 1,000 routes: start from a replica", "ms"),
    told("alone, 1,000,000 routes: start from its cache", "ms"),
    told("alone, 1,000,000 routes: start from a replica", "ms"),
];

/// Beside the best.
const fn row(name: &'static str, unit: &'static str, target: Target) -> Row {
    Row {
        name,
        unit,
        target,
        beside: Beside::Best,
    }
}

/// Beside this one.
const fn to(peer: Kind, name: &'static str, unit: &'static str, target: Target) -> Row {
    Row {
        name,
        unit,
        target,
        beside: Beside::One(peer.name()),
    }
}

/// Without a target.
const fn told(name: &'static str, unit: &'static str) -> Row {
    row(name, unit, Target::None)
}
