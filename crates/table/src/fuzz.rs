//! What fuzzing and its replay check of paths. In no build but theirs.

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

use crate::path::reference::{longest, segments};
use crate::{Entry, Epoch, Host, RequestPath, Revision, Route, Table};

/// Reads the first lines, up to an empty one, as routespecs, and looks each further line up: the same route as by a plain
/// search among segments, on each host, or refused by both.
pub fn path(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let specs: Vec<&str> = (lines.by_ref().take_while(|line| !line.is_empty()))
        .filter_map(|line| std::str::from_utf8(line).ok())
        .take(64)
        .collect();
    let mut table = Vec::new();
    let (mut hosted, mut plain) = (Vec::new(), Vec::new());
    for spec in specs {
        let Ok(route) = Route::parse(spec, "http://10.0.0.1", "{}", "") else {
            continue;
        };
        let (host, path) = spec.split_at(spec.find('/').expect("a routespec has a path"));
        let mut read = segments(path.as_bytes()).expect("a routespec's path can be asked for");
        assert_eq!(read.pop().as_deref(), Some(""), "a routespec ends with a slash");
        let spec = route.spec.clone();
        match host {
            // The last one of two spellings wins, as in the table.
            "" => plain.push((read, spec)),
            host => hosted.push((canonical(host), read, spec)),
        }
        table.push(Entry {
            route,
            modified: Revision(1),
        });
    }
    let table = Table::from_entries(Epoch(1), Revision(1), table);
    for line in lines.take(64) {
        let Ok(target) = std::str::from_utf8(line) else {
            continue;
        };
        let expected = segments(line);
        let parsed = RequestPath::parse(target);
        assert_eq!(
            parsed.is_ok(),
            expected.is_some(),
            "{target:?}: {parsed:?}, {expected:?}"
        );
        let (Ok(parsed), Some(expected)) = (parsed, expected) else {
            continue;
        };
        for host in [
            None,
            Some("Hub.Example.org.:8000"),
            Some("[::1]:80"),
            Some("other.example"),
        ] {
            let asked = host.map(|host| Host::parse(host).expect("a host"));
            let found = table
                .lookup(asked.as_ref(), &parsed)
                .map(|entry| entry.route.spec.clone());
            let asked = host.map(canonical);
            let of_host = hosted.iter().filter(|(host, ..)| Some(host) == asked.as_ref());
            let of_host: Vec<_> = of_host.map(|(_, read, spec)| (read.clone(), spec.clone())).collect();
            let pick = |routes: &[(Vec<String>, crate::RouteSpec)]| {
                let read: Vec<_> = routes.iter().map(|(read, _)| read.clone()).collect();
                longest(&read, &expected).map(|at| routes[at].1.clone())
            };
            assert_eq!(found, pick(&of_host).or_else(|| pick(&plain)), "{target:?} on {host:?}");
        }
    }
}

fn canonical(host: &str) -> String {
    let end = host.rfind(']').map_or(0, |end| end + 1);
    let port = host[end..].find(':').map_or(host.len(), |at| end + at);
    host[..port].trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where two readers of a path may differ.
    const TOKENS: &[&[u8]] = &[
        b"/",
        b"//",
        b"..",
        b"/../",
        b".",
        b"%2e",
        b"%2E.",
        b"%2f",
        b"%5c",
        b"\\",
        b"%",
        b"%2",
        b"%25",
        b"%252e",
        b"%00",
        b"%0a",
        b"%7f",
        b"%c3%ab",
        "ë".as_bytes(),
        b"%ff",
        b"?",
        b"#",
        b";",
        b"user",
        b"alice",
        b"/user/alice/",
        b"\n",
        b"\n\n",
        b"hub.example.org/",
        b"[::1]/",
        b" ",
        b"@",
        b"%40",
        b":",
        b"*",
        b"+",
    ];

    #[test]
    fn paths_are_read_as_the_plain_reference_reads_them() {
        replay::replay("path", TOKENS, 100_000, path);
    }
}
