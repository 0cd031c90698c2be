//! Where one frame of a WebSocket ends and the next begins (RFC 6455 section 5.2), so that a Close
//! can be put between two of them. Pure.

/// Follows the bytes that a server sends.
#[derive(Clone, Debug, Default)]
pub struct FrameBoundary {
    /// What came of a frame's head.
    head: Vec<u8>,
    /// What is left of a frame's payload.
    left: u64,
    /// It sent a Close: nothing follows that.
    has_closed: bool,
}

/// The longest head: two bytes, a length of eight, a mask of four.
const LONGEST_HEAD: usize = 14;
/// The opcode of a Close.
const CLOSE: u8 = 8;

/// Why a server closes that goes away in order to come back (IANA's registry of close codes).
const SERVICE_RESTART: u16 = 1012;

impl FrameBoundary {
    /// Takes note of bytes that were sent.
    pub fn sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(payload_bytes) = payload_bytes(&self.head) {
                self.has_closed |= self.head[0] & 0x0f == CLOSE;
                self.left = payload_bytes;
                self.head.clear();
            }
            debug_assert!(self.head.len() < LONGEST_HEAD, "a head ends");
        }
    }

    /// Whether a Close was sent.
    pub fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// The Close to send now, if one may stand here: the last frame is whole, and it was no Close.
    /// Control frames may stand between the frames of a message.
    pub fn close(&self) -> Option<[u8; 4]> {
        let may_stand = self.head.is_empty() && self.left == 0 && !self.has_closed;
        let [high, low] = SERVICE_RESTART.to_be_bytes();
        may_stand.then_some([0x80 | CLOSE, 2, high, low])
    }
}

/// How long the payload behind a head is, once the head is whole.
fn payload_bytes(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask_bytes = if second & 0x80 != 0 { 4 } else { 0 };
    let (length_bytes, length) = match second & 0x7f {
        126 => (2, u64::from(u16::from_be_bytes(head.get(2..4)?.try_into().ok()?))),
        127 => (8, u64::from_be_bytes(head.get(2..10)?.try_into().ok()?)),
        short => (0, u64::from(short)),
    };
    (head.len() == 2 + length_bytes + mask_bytes).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, payload_bytes: usize, is_masked: bool) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        let mask = if is_masked { 0x80 } else { 0 };
        match payload_bytes {
            short @ 0..126 => frame.push(mask | short as u8),
            middle @ 126..65_536 => {
                frame.push(mask | 126);
                frame.extend((middle as u16).to_be_bytes());
            }
            long => {
                frame.push(mask | 127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(std::iter::repeat_n(7, if is_masked { 4 } else { 0 }));
        frame.extend(std::iter::repeat_n(0x88, payload_bytes));
        frame
    }

    #[test]
    fn a_close_stands_between_frames_and_nowhere_else() {
        let mut boundary = FrameBoundary::default();
        assert_eq!(boundary.close(), Some([0x88, 2, 0x03, 0xf4]));
        let text = frame(1, 300, false);
        for byte in &text[..text.len() - 1] {
            boundary.sent(&[*byte]);
            assert_eq!(boundary.close(), None);
        }
        boundary.sent(&text[text.len() - 1..]);
        assert!(boundary.close().is_some());
        boundary.sent(&frame(8, 2, false));
        assert_eq!(boundary.close(), None, "it has closed already");
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_come(
            frames in prop::collection::vec(
                (0..3u8, prop_oneof![0..130usize, 65_530..65_540usize], any::<bool>()), 0..6),
            cuts in prop::collection::vec(1..5_000usize, 1..20),
        ) {
            let frames: Vec<Vec<u8>> =
                frames.into_iter().map(|(opcode, length, mask)| frame(opcode, length, mask)).collect();
            let ends: Vec<usize> = frames
                .iter()
                .scan(0, |end, frame| { *end += frame.len(); Some(*end) })
                .collect();
            let bytes = frames.concat();
            let (mut boundary, mut at) = (FrameBoundary::default(), 0);
            for cut in cuts.iter().cycle() {
                prop_assert_eq!(boundary.close().is_some(), at == 0 || ends.contains(&at));
                if at == bytes.len() {
                    break;
                }
                let next = (at + cut).min(bytes.len());
                boundary.sent(&bytes[at..next]);
                at = next;
            }
        }
    }
}
