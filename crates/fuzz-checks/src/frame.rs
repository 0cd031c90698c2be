//! Frames that can be read are the same however they arrive, and are written as the bytes that they
//! were read from; what no whole frame is stays held.

use bytes::{Buf, BufMut};
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, FrameReader, Hello};

/// Reads pieces of a length, up to the first fault; gives the bytes that are no whole frame, too.
fn read(data: &[u8], piece_bytes: usize) -> (Vec<Frame>, Option<usize>) {
    let (mut reader, mut frames) = (FrameReader::new(1 << 16), Vec::new());
    for piece in data.chunks(piece_bytes) {
        reader.buffer().put_slice(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, None),
            }
        }
    }
    (frames, Some(reader.held_bytes()))
}

/// See the module.
pub fn check(data: &[u8]) {
    let (frames, held_bytes) = read(data, data.len().max(1));
    assert_eq!(read(data, 7), (frames.clone(), held_bytes));
    let mut queue = FrameQueue::default();
    for Frame { kind, detail, key, payload } in &frames {
        queue.put(*kind, *detail, *key, payload);
    }
    let written = queue.copy_to_bytes(queue.remaining());
    assert!(data.starts_with(&written));
    if let Some(held_bytes) = held_bytes {
        assert_eq!(written.len() + held_bytes, data.len());
    }
    for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Hello) {
        if let Ok(hello) = Hello::decode(&frame.payload) {
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
    }
}
