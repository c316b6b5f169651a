//! The reading of a path once more, slow and plain, from the documentation alone: what the real one is compared with.

/// The decoded segments of a request's target, or `None` if it is to be refused.
pub fn segments(target: &[u8]) -> Option<Vec<String>> {
    let path = target.split(|byte| *byte == b'?').next()?;
    let rest = path.strip_prefix(b"/")?;
    if rest.starts_with(b"/") {
        return None;
    }
    rest.split(|byte| *byte == b'/').map(segment).collect()
}

fn segment(raw: &[u8]) -> Option<String> {
    if raw.contains(&b' ') {
        return None;
    }
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        if raw[at] == b'%' {
            let digits = std::str::from_utf8(raw.get(at + 1..at + 3)?).ok()?;
            if !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            bytes.push(raw[at]);
            at += 1;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let is_bad = |character: char| character.is_ascii_control() || character == '\\';
    (text != "." && text != ".." && !text.contains(is_bad)).then_some(text)
}

/// Which of the routes, each given by its segments, takes a request: the one with the most segments that the path begins with.
pub fn longest(routes: &[Vec<String>], segments: &[String]) -> Option<usize> {
    let fits = |route: &&(usize, &Vec<String>)| segments.starts_with(route.1);
    let routes: Vec<(usize, &Vec<String>)> = routes.iter().enumerate().collect();
    let best = routes.iter().filter(fits).max_by_key(|(_, route)| route.len());
    best.map(|(at, _)| *at)
}
