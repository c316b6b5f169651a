//! What fuzzing and its replay check of a table's copy: it is refused, or it is a table that can be written and read again.

use std::ops::Range;

use super::{Checked, decode, encode};

/// Reads the input as it is, and once more with its checksums mended, for noise would never guess them.
pub fn cache(input: &[u8]) {
    for bytes in [input, &mended(input)] {
        let Ok(cached) = decode(&mut Checked::new(bytes)) else {
            continue;
        };
        let table = &cached.table;
        assert_eq!(table.digest(), table.recompute_digest());
        let mut out = Checked::new(Vec::new());
        encode(&mut out, &cached).expect("a table that was read can be written");
        let again = decode(&mut Checked::new(&out.inner[..])).expect("what was written can be read");
        assert_eq!((&again.cluster_id, again.vouched), (&cached.cluster_id, cached.vouched));
        assert_eq!(again.table.sorted(), table.sorted());
        let place = |table: &holdfast_table::Table| (table.epoch(), table.revision(), table.digest());
        assert_eq!(place(&again.table), place(table));
    }
}

/// The same with right checksums wherever one is expected.
fn mended(input: &[u8]) -> Vec<u8> {
    const VOUCHED: Range<usize> = 12..24;
    let mut bytes = input.to_vec();
    let mend = |bytes: &mut [u8], from: usize, at: usize| {
        if let Some(checked) = bytes.get(from..at) {
            let mut checksum = crc32fast::Hasher::new();
            match from {
                0 => [&checked[..VOUCHED.start], &checked[VOUCHED.end..]]
                    .iter()
                    .for_each(|part| checksum.update(part)),
                _ => checksum.update(checked),
            }
            let checksum = checksum.finalize().to_le_bytes();
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&checksum);
            }
        }
    };
    mend(&mut bytes, VOUCHED.start, VOUCHED.end - 4);
    let cluster_id = bytes
        .get(24..26)
        .map_or(0, |length| usize::from(length[0]) + 256 * usize::from(length[1]));
    let mut at = 26 + cluster_id + 8 + 8 + 8 + 32;
    mend(&mut bytes, 0, at);
    at += 4;
    loop {
        let length = bytes
            .get(at..at + 4)
            .map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")));
        match length {
            None => return bytes,
            Some(0) => {
                mend(&mut bytes, 0, at + 4);
                return bytes;
            }
            Some(length) => {
                let end = at.saturating_add(8).saturating_add(length as usize);
                mend(&mut bytes, at, end);
                at = end.saturating_add(4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay;

    const TOKENS: &[&[u8]] = &[
        b"HOLDFAST",
        b"\x02\0\0\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x28\xb5\x2f\xfd",
    ];

    #[test]
    fn a_copy_is_refused_or_is_a_table() {
        replay::replay("cache", TOKENS, 50_000, cache);
    }
}
