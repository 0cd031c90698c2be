//! A message of a pipe that can be read is written again and reads the same. A pipe that is told
//! anything at all breaks or goes on, and what it holds stays within its window.

use bytes::Bytes;
use natsway_tunnel::pipe::PipeState;
use natsway_wire::pipe::PipeMessage;

const WINDOW: u32 = 64 << 10;

/// See the module.
pub fn check(data: &[u8]) {
    if let Ok(message) = PipeMessage::decode(&Bytes::copy_from_slice(data)) {
        assert_eq!(PipeMessage::decode(&message.encode()), Ok(message));
    }
    // The same bytes as a conversation: each message behind its length.
    let (mut pipe, mut rest, mut held) = (PipeState::new(WINDOW, WINDOW), data, 0);
    while let Some((length, tail)) = rest.split_first() {
        let (message, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let Ok(message) = PipeMessage::decode(&Bytes::copy_from_slice(message)) else { return };
        match pipe.receive(message) {
            Ok(Some(bytes)) => held += bytes.len(),
            Ok(None) => {}
            Err(_) => return,
        }
        assert!(held <= WINDOW as usize);
    }
}
