//! The format that RocksDB's write-ahead log and its manifest share: records in blocks, each piece with a checksum.

use std::borrow::Cow;

/// Records do not cross the border of a block but in pieces.
const BLOCK: usize = 32 * 1024;
/// Checksum, length and type of a piece.
const HEADER: usize = 7;
/// What a disk writes at once, at least.
const SECTOR: usize = 512;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Where a file is damaged, and how.
pub type Damage = (usize, &'static str);
/// Where a record begins, and what is in it.
pub type Record<'a> = (usize, Cow<'a, [u8]>);

/// The records of a file, up to an end that was torn.
pub struct Records<'a> {
    bytes: &'a [u8],
    // Both from the beginning of the file.
    begin: usize,
    at: usize,
    whole: usize,
}

impl<'a> Records<'a> {
    /// Of a file whose `bytes` from `begin` on these are; there begins a record.
    pub fn new(bytes: &'a [u8], begin: usize) -> Self {
        Records {
            bytes,
            begin,
            at: begin,
            whole: begin,
        }
    }

    /// Where the last record ends that was returned.
    pub fn whole(&self) -> usize {
        self.whole
    }

    /// True if there is more after what could be read: to be asked at the end.
    pub fn is_torn(&self) -> bool {
        self.at < self.begin + self.bytes.len()
    }

    /// The next piece, `None` if the file ends before it or within.
    fn piece(&mut self) -> Result<Option<(u8, &'a [u8])>, Damage> {
        let at = self.at;
        let piece = self.read_piece();
        if piece.is_err() && self.is_unwritten(at) {
            self.at = at;
            return Ok(None);
        }
        piece
    }

    /// True if the file has nothing but zeros from a sector on that the piece at `at` reaches into: a file system may give
    /// a file its new length before its new bytes.
    fn is_unwritten(&self, at: usize) -> bool {
        let rest = self.bytes.get(at - self.begin..).unwrap_or_default();
        let length = rest
            .get(4..6)
            .map_or(0, |length| usize::from(length[0]) | usize::from(length[1]) << 8);
        let written = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let zeros = (at + written).next_multiple_of(SECTOR) - at;
        zeros < rest.len().min(HEADER + length)
    }

    fn read_piece(&mut self) -> Result<Option<(u8, &'a [u8])>, Damage> {
        let left = BLOCK - self.at % BLOCK;
        if left < HEADER {
            self.at += left;
        }
        let at = self.at;
        let rest = self.bytes.get(at - self.begin..).unwrap_or_default();
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if *header == [0; HEADER] && rest.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if HEADER + length > BLOCK - at % BLOCK {
            return Err((at, "a record longer than its block"));
        }
        let Some(payload) = body.get(..length) else {
            return Ok(None);
        };
        if !matches!(kind, FULL..=LAST) && kind & 0x80 == 0 {
            return Err((at, "a record of no known type"));
        }
        let checksum = crc32c(&rest[HEADER - 1..HEADER + length]);
        if checksum.rotate_right(15).wrapping_add(0xa282_ead8) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err((at, "a checksum that does not match"));
        }
        self.at += HEADER + length;
        Ok(Some((kind, payload)))
    }

    fn record(&mut self) -> Result<Option<Record<'a>>, Damage> {
        let mut begun: Option<(usize, Vec<u8>)> = None;
        loop {
            let at = self.at;
            let Some((kind, payload)) = self.piece()? else {
                return Ok(None);
            };
            begun = match (kind, begun) {
                (FULL, None) => {
                    self.whole = self.at;
                    return Ok(Some((at, Cow::Borrowed(payload))));
                }
                (FIRST, None) => Some((at, payload.to_vec())),
                (MIDDLE, Some((at, mut record))) => {
                    record.extend_from_slice(payload);
                    Some((at, record))
                }
                (LAST, Some((at, mut record))) => {
                    record.extend_from_slice(payload);
                    self.whole = self.at;
                    return Ok(Some((at, Cow::Owned(record))));
                }
                (FULL..=LAST, _) => return Err((at, "a piece of a record without the others")),
                // Says something about the file itself.
                (_, begun) => begun,
            };
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.record().transpose();
        if matches!(record, Some(Err(_))) {
            self.at = self.begin + self.bytes.len();
        }
        record
    }
}

/// CRC-32C (Castagnoli), as RocksDB uses it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    fn piece(kind: u8, payload: &[u8]) -> Vec<u8> {
        let checked = [&[kind], payload].concat();
        let checksum = crc32c(&checked).rotate_right(15).wrapping_add(0xa282_ead8);
        let length = u16::try_from(payload.len()).unwrap();
        [&checksum.to_le_bytes()[..], &length.to_le_bytes(), &checked].concat()
    }

    #[test]
    fn records_are_whole_up_to_a_torn_end_wherever_reading_begins() {
        // The first block has no room for another header at its end.
        let long = vec![7; BLOCK - HEADER - 3];
        let file = [
            piece(FULL, &long),
            vec![0; 3],
            piece(FIRST, b"in "),
            piece(MIDDLE, b"three "),
            piece(LAST, b"pieces"),
            piece(FULL, b"torn"),
        ]
        .concat();
        let second = BLOCK - 3;
        for (begin, expected) in [(0, 2), (second, 1)] {
            for missing in 1..HEADER + 4 {
                let mut records = Records::new(&file[begin..file.len() - missing], begin);
                let read: Vec<_> = records.by_ref().map(Result::unwrap).collect();
                assert_eq!(read.len(), expected);
                let (at, last) = read.last().unwrap();
                assert_eq!((*at, &last[..]), (second, &b"in three pieces"[..]));
                assert_eq!(records.whole(), file.len() - HEADER - 4);
            }
        }
        let mut damaged = file.clone();
        damaged[second + 3 + HEADER] ^= 1;
        let mut records = Records::new(&damaged, 0);
        assert!(records.next().unwrap().is_ok());
        assert_eq!(records.next(), Some(Err((BLOCK, "a checksum that does not match"))));
        assert_eq!((records.next(), records.whole()), (None, second));
    }

    #[test]
    fn zeros_from_a_sector_on_to_the_end_are_a_torn_end_and_no_others() {
        let whole = piece(FULL, b"whole");
        let file = [whole.clone(), piece(FULL, &[7; 3 * SECTOR])].concat();
        let read = |zeros: std::ops::Range<usize>| {
            let mut bytes = file.clone();
            bytes[zeros].fill(0);
            let mut records = Records::new(&bytes, 0);
            let good = records.by_ref().take_while(Result::is_ok).count();
            (good, records.is_torn(), records.whole())
        };
        for from in [SECTOR, 2 * SECTOR, 3 * SECTOR] {
            assert_eq!(read(from..file.len()), (1, true, whole.len()), "{from}");
        }
        for damage in [SECTOR..2 * SECTOR, SECTOR + 1..file.len(), file.len() - 1..file.len()] {
            let mut bytes = file.clone();
            bytes[damage.clone()].fill(0);
            let last = Records::new(&bytes, 0).last();
            let torn = damage.start.next_multiple_of(SECTOR) < file.len() && damage.end == file.len();
            assert_eq!(last.unwrap().is_err(), !torn, "{damage:?}");
        }
        assert_eq!(read(0..0), (2, false, file.len()));
    }
}
