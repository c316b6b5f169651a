//! A plain and strict reading of what a client sends over HTTP/1.1 (RFC 9112), all of it at once: what the real one is
//! compared with.

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The method, byte for byte.
    pub method: Vec<u8>,
    /// The target, byte for byte.
    pub target: Vec<u8>,
    /// The body without its framing; of one that is not whole, what there is of it.
    pub body: Vec<u8>,
    /// Whether it is whole.
    pub whole: bool,
    /// Whether there are trailers behind it.
    pub trailers: bool,
}

/// What follows the last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing.
    Clean,
    /// Part of a request.
    Part,
    /// What is no request, or may be read in two ways.
    Refused,
    /// Something that the RFC lets in, but that nobody has to take: bytes that a URI should not have, an old version, an
    /// upgrade. Whether there are requests behind it depends.
    Doubt,
}

/// Every request, and why there are no more.
pub fn requests(mut bytes: &[u8]) -> (Vec<Asked>, End) {
    let mut all = Vec::new();
    loop {
        for _ in 0..4 {
            bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        }
        if bytes.is_empty() {
            return (all, End::Clean);
        }
        let mut asked = Asked::default();
        match request(&mut bytes, &mut asked) {
            Ok(()) => {
                asked.whole = true;
                all.push(asked);
            }
            Err(end) => {
                // A head that is whole is a request, whatever becomes of its body.
                if !asked.method.is_empty() {
                    all.push(asked);
                }
                return (all, end);
            }
        }
    }
}

fn request(bytes: &mut &[u8], asked: &mut Asked) -> Result<(), End> {
    let mut left = *bytes;
    let first = line(&mut left)?;
    let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err(End::Refused);
    };
    if method.is_empty() || !method.iter().all(is_token) || target.is_empty() || target.contains(&b'#') {
        return Err(End::Refused);
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        return Err(End::Refused);
    }
    let (mut lengths, mut codings, mut doubt) = (Vec::new(), Vec::new(), version != b"HTTP/1.1");
    let mut headers = 0;
    loop {
        let line = line(&mut left)?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(End::Refused)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is_bad = |byte: &u8| matches!(byte, 0..=8 | 10..=31 | 127);
        if name.is_empty() || !name.iter().all(is_token) || value.iter().any(is_bad) {
            return Err(End::Refused);
        }
        match name.to_ascii_lowercase().as_slice() {
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            b"upgrade" | b"expect" | b"connection" => doubt = true,
            _ => {}
        }
        headers += 1;
    }
    doubt |= headers > 90 || method == b"CONNECT" || !target.starts_with(b"/") || !target.iter().all(is_of_a_path);
    let length = match (&lengths[..], &codings[..]) {
        ([], []) => Some(0),
        ([digits], []) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            let digits = std::str::from_utf8(digits).map_err(|_| End::Refused)?;
            Some(digits.parse().map_err(|_| End::Refused)?)
        }
        ([], [coding]) if coding == b"chunked" && version == b"HTTP/1.1" => None,
        _ => return Err(End::Refused),
    };
    (asked.method, asked.target) = (method.to_vec(), target.to_vec());
    if doubt {
        return Err(End::Doubt);
    }
    match length {
        Some(length) => {
            let here = usize::try_from(length).unwrap_or(usize::MAX).min(left.len());
            let (body, rest) = left.split_at(here);
            asked.body = body.to_vec();
            left = rest;
            if (body.len() as u64) < length {
                return Err(End::Part);
            }
        }
        None => chunks(&mut left, asked)?,
    }
    *bytes = left;
    Ok(())
}

fn chunks(left: &mut &[u8], asked: &mut Asked) -> Result<(), End> {
    loop {
        let line = line(left)?;
        let digits = line
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii_end();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(End::Refused);
        }
        // Too large a number is refused here, however many zeros are before it.
        let digits = std::str::from_utf8(digits).map_err(|_| End::Refused)?;
        let size = usize::from_str_radix(digits, 16).map_err(|_| End::Refused)?;
        if size == 0 {
            break;
        }
        let here = size.min(left.len());
        asked.body.extend(&left[..here]);
        *left = &left[here..];
        if here < size {
            return Err(End::Part);
        }
        match left {
            [b'\r', b'\n', ..] => *left = &left[2..],
            [] | [b'\r'] => return Err(End::Part),
            _ => return Err(End::Refused),
        }
    }
    while !line(left)?.is_empty() {
        asked.trailers = true;
    }
    Ok(())
}

/// The next line; nothing but CR LF ends one, and CR stands nowhere else.
fn line<'a>(left: &mut &'a [u8]) -> Result<&'a [u8], End> {
    let end = left.iter().position(|byte| *byte == b'\n').ok_or(End::Part)?;
    let line = left[..end].strip_suffix(b"\r").ok_or(End::Refused)?;
    *left = &left[end + 1..];
    match line.contains(&b'\r') {
        true => Err(End::Refused),
        false => Ok(line),
    }
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// RFC 3986, and no more.
fn is_of_a_path(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(byte)
}
