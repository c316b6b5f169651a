//! A table's digest from its definition: the sum, modulo 2^256, of one BLAKE3 hash for each route.

use super::{Content, Version};

/// Where the value of a route stands in its target.
pub const TARGET: &str = "http://127.0.0.1:9/";
const DATA: &str = "{}";
const NAMESPACE: &str = "default";

/// 32 bytes, least significant first.
pub type Sum = [u8; 32];

/// The digest of a table.
pub fn of(content: &Content) -> Sum {
    let entries = content.iter();
    entries.fold([0; 32], |sum, (spec, version)| add(sum, of_route(spec, version)))
}

/// What one route adds to its table's digest.
pub fn of_route(spec: &str, version: &Version) -> Sum {
    let target = format!("{TARGET}{}", version.value);
    let mut hasher = blake3::Hasher::new();
    for field in [spec, &target, DATA, NAMESPACE] {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field.as_bytes());
    }
    hasher.update(&version.modified.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// The sum of both.
pub fn add(one: Sum, other: Sum) -> Sum {
    let mut sum = [0; 32];
    let mut carry = 0;
    for (byte, (one, other)) in sum.iter_mut().zip(one.into_iter().zip(other)) {
        let wide = u16::from(one) + u16::from(other) + carry;
        [*byte, _] = wide.to_le_bytes();
        carry = wide >> 8;
    }
    sum
}

/// What has to be added to take `term` away.
pub fn negative(term: Sum) -> Sum {
    let mut one = [0; 32];
    one[0] = 1;
    add(term.map(|byte| !byte), one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_taken_away_is_not_there() {
        let version = |modified| Version {
            value: "v".into(),
            modified,
        };
        let (one, other) = (of_route("/a/", &version(1)), of_route("/a/", &version(2)));
        assert_ne!(one, other);
        assert_eq!(add(add(one, other), negative(one)), other);
        assert_eq!(add(one, negative(one)), [0; 32]);
    }
}
