//! Frames: where one frame of a WebSocket ends and the next begins (RFC 6455, section 5.2), for only there may a proxy say something of its
//! own; and which of them are data.

/// Two bytes, the longest length, and a mask.
const HEAD_BYTES_MAX: usize = 14;
const CLOSE: u8 = 8;
/// Set in the kind of pings, pongs and closes.
const CONTROL: u8 = 8;

/// Says that this end is going away (close code 1001), as a server does.
pub(crate) const GOODBYE: &[u8] = &[0x88, 0x02, 0x03, 0xe9];
/// The same as a client does: masked, though with nothing, for there is nothing to hide.
pub(crate) const GOODBYE_MASKED: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// Follows the frames of one direction.
#[derive(Default)]
pub(crate) struct Frames {
    head: [u8; HEAD_BYTES_MAX],
    /// How much of a head is here, of the frame that begins.
    known: u8,
    /// How much of a frame is to come.
    left: u64,
    closed: bool,
    data: bool,
}

impl Frames {
    /// Looks at the next bytes; returns where in them the last frame ends that does.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        self.data = false;
        let mut end = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                self.head[usize::from(self.known)] = bytes[at];
                self.known += 1;
                at += 1;
                let Some(left) = payload(&self.head[..usize::from(self.known)]) else {
                    continue;
                };
                self.closed |= self.head[0] & 0x0f == CLOSE;
                (self.known, self.left) = (0, left);
            } else {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= here as u64;
                at += here;
            }
            self.data |= self.head[0] & CONTROL == 0;
            if self.left == 0 {
                end = Some(at);
            }
        }
        end
    }

    /// Forgets a frame that has begun and was not passed on.
    pub(crate) fn rewind(&mut self) {
        (self.known, self.left) = (0, 0);
    }

    /// True if the next byte begins a frame.
    pub(crate) fn is_between(&self) -> bool {
        self.left == 0 && self.known == 0
    }

    /// True if some of what passed last is of a frame that is no ping, pong or close.
    pub(crate) fn is_data(&self) -> bool {
        self.data
    }

    /// True once a side has said that it closes: nothing may follow that.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// How long a frame's payload is, if its whole head is here.
fn payload(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let length_bytes = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + length_bytes + mask_bytes {
        return None;
    }
    Some(match length_bytes {
        0 => u64::from(second & 0x7f),
        bytes => head[2..2 + bytes]
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTINUATION: u8 = 0;
    const TEXT: u8 = 1;
    const PING: u8 = 9;
    const PONG: u8 = 10;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        let mask = if masked { 0x80 } else { 0 };
        match length {
            0..126 => frame.push(mask | length as u8),
            126..0x1_0000 => {
                frame.push(mask | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![7; length + if masked { 4 } else { 0 }]);
        frame
    }

    #[test]
    fn the_ends_of_frames_are_found_in_pieces_of_any_size() {
        let lengths = [0, 1, 125, 126, 300, 0xffff, 0x1_0000, 0, 5];
        for masked in [false, true] {
            let (mut stream, mut ends) = (Vec::new(), Vec::new());
            for length in lengths {
                stream.extend(frame(1, length, masked));
                ends.push(stream.len());
            }
            for piece in [1, 2, 3, 7, 1000, 8192, stream.len()] {
                let mut frames = Frames::default();
                let mut at = 0;
                for bytes in stream.chunks(piece) {
                    let last = ends.iter().rev().find(|end| (at + 1..=at + bytes.len()).contains(*end));
                    assert_eq!(frames.pass(bytes), last.map(|end| end - at), "pieces of {piece}");
                    at += bytes.len();
                    assert_eq!(frames.is_between(), ends.contains(&at), "pieces of {piece}, at {at}");
                }
                assert!(!frames.is_closed());
            }
        }
    }

    #[test]
    fn a_goodbye_is_a_frame_that_closes() {
        for goodbye in [GOODBYE, GOODBYE_MASKED] {
            let mut frames = Frames::default();
            assert_eq!(frames.pass(goodbye), Some(goodbye.len()));
            assert!(frames.is_closed() && frames.is_between());
        }
        let mut absurd = Frames::default();
        assert_eq!(
            absurd.pass(&[0x82, 0x7f, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
            None
        );
        assert!(!absurd.is_between());
    }

    #[test]
    fn pings_pongs_and_closes_are_no_data() {
        let mut frames = Frames::default();
        for (kind, length, data) in [
            (PONG, 0, false),
            (TEXT, 0, true),
            (PING, 125, false),
            (CONTINUATION, 70_000, true),
            (PONG, 4, false),
            (TEXT, 126, true),
            (CLOSE, 2, false),
        ] {
            frames.pass(&frame(kind, length, true));
            assert_eq!(frames.is_data(), data, "{kind} {length}");
            frames.pass(&frame(kind, length, false));
            assert_eq!(frames.is_data(), data, "{kind} {length}");
        }
        frames.pass(&[frame(PONG, 4, true), frame(TEXT, 1, true), frame(PONG, 4, true)].concat());
        assert!(frames.is_data());
        frames.pass(&[]);
        assert!(!frames.is_data());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_data_comes(
            sizes in prop::collection::vec((any::<bool>(), 0..300_usize), 1..10),
            cuts in prop::collection::vec(1..40_usize, 1..200),
        ) {
            let bytes: Vec<u8> = sizes.iter().flat_map(|(data, size)| match data {
                true => frame(TEXT, *size, true),
                false => frame(PONG, size % 126, true),
            }).collect();
            let mut frames = Frames::default();
            let (mut rest, mut data) = (&bytes[..], false);
            for cut in cuts.iter().cycle() {
                let (some, after) = rest.split_at(rest.len().min(*cut));
                frames.pass(some);
                data |= frames.is_data();
                rest = after;
                if rest.is_empty() { break }
            }
            prop_assert_eq!(data, sizes.iter().any(|(data, _)| *data));
            prop_assert!(frames.is_between());
        }

        #[test]
        fn whatever_comes_is_read(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
            let mut frames = Frames::default();
            for chunk in chunks {
                frames.pass(&chunk);
                prop_assert!(usize::from(frames.known) < HEAD_BYTES_MAX);
            }
        }
    }
}
