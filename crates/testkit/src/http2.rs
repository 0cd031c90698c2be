//! HTTP/2 by the frame, for clients that mean harm: exactly the bytes that a test wants sent (RFC
//! 9113, RFC 7541).

/// What a client with prior knowledge sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    /// Bytes of a body.
    pub const DATA: u8 = 0;
    /// The head of a message, or its trailers.
    pub const HEADERS: u8 = 1;
    /// The end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the connection.
    pub const SETTINGS: u8 = 4;
    /// A question whether the other side is there.
    pub const PING: u8 = 6;
    /// No new streams.
    pub const GOAWAY: u8 = 7;
    /// Room for more bytes of bodies.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a head.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// The last of a stream.
    pub const END_STREAM: u8 = 0x1;
    /// The last of a head.
    pub const END_HEADERS: u8 = 0x4;
    /// An answer to a ping or to settings.
    pub const ACK: u8 = 0x1;
}

/// The parameter that says how much of each stream a peer may send at first.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Returns one frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length =
        u32::try_from(payload.len()).expect("a frame is shorter than 2^24 bytes").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns a frame that sets parameters.
pub fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let payload = parameters.iter().flat_map(|(name, value)| {
        let mut parameter = name.to_be_bytes().to_vec();
        parameter.extend(value.to_be_bytes());
        parameter
    });
    frame(kind::SETTINGS, 0, 0, &payload.collect::<Vec<_>>())
}

/// Returns a frame that opens the window of a stream, or of the connection (0).
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// Returns the fields that begin a request, to `http://a` and a path of at most 126 bytes. They
/// leave the table of fields as it is.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    // Scheme http; the names of path, method and authority by their places in the static table.
    let mut block = vec![0x86];
    for (name, value) in [(0x02, method), (0x04, path), (0x01, "a")] {
        block.push(name);
        put_text(&mut block, value);
    }
    block
}

/// Adds a field to a block, by name. With `indexed` it is kept in the table, under number 62, and
/// those before it move up by one.
pub fn put_field(block: &mut Vec<u8>, indexed: bool, name: &str, value: &str) {
    block.push(if indexed { 0x40 } else { 0 });
    put_text(block, name);
    put_text(block, value);
}

/// Adds a field of the table, by its number of at most 126.
pub fn put_indexed(block: &mut Vec<u8>, number: u8) {
    block.push(0x80 | number);
}

/// A text of up to 126 bytes, or one that takes two bytes more for its length.
fn put_text(block: &mut Vec<u8>, text: &str) {
    let length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        // An integer with a prefix of seven bits.
        let mut rest = length - 127;
        block.push(127);
        while rest >= 128 {
            block.push((rest % 128) as u8 | 0x80);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_fields_are_as_the_rfcs_say() {
        assert_eq!(frame(kind::PING, flag::ACK, 0, &[7; 8])[..9], [0, 0, 8, 6, 1, 0, 0, 0, 0]);
        assert_eq!(settings(&[(INITIAL_WINDOW_SIZE, 5)])[9..], [0, 4, 0, 0, 0, 5]);
        let mut block = request("GET", "/");
        assert_eq!(block, b"\x86\x02\x03GET\x04\x01/\x01\x01a");
        block.clear();
        put_field(&mut block, true, "x", &"y".repeat(300));
        // RFC 7541 section 5.1: 300 - 127 = 173 = 45 + 128.
        assert_eq!(block[..6], [0x40, 1, b'x', 127, 173, 1]);
    }
}
