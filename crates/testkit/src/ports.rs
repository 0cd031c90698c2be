//! Ports that stay ours while a server is restarted on them.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Below the ephemeral ranges of Linux (from 32768) and macOS (from 49152): no outgoing connection
/// takes one of these while its server is down. A client that redials an ephemeral port can even
/// connect to itself and block the restart.
const PORTS: Range<u32> = 12_000..32_000;

/// A port on 127.0.0.1 that nobody listens on, reserved for this process among all tests on this
/// machine until it ends.
///
/// # Panics
/// When no port in 12000..32000 is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes start at places far apart, so that they seldom meet; the reservation decides when
    // they do.
    let start = process::id().wrapping_mul(101);
    for _ in 0..count {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + start.wrapping_add(step) % count;
        let port = u16::try_from(port).expect("the range ends below 65536");
        if reserve(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?} on 127.0.0.1");
}

/// Locks the port's file until this process ends; false when another process holds it. Where the
/// files cannot be used (another user's directory) the port counts as reserved, and only the look
/// whether it is free protects it.
fn reserve(port: u16) -> bool {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = std::env::temp_dir().join("natsway-ports");
    let opened = std::fs::create_dir_all(&directory).and_then(|()| {
        OpenOptions::new().create(true).append(true).open(directory.join(port.to_string()))
    });
    let Ok(file) = opened else { return true };
    let free = file.try_lock().is_ok();
    if free {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_can_be_listened_on() {
        let (one, other) = (free_port(), free_port());
        assert_ne!(one, other);
        TcpListener::bind((Ipv4Addr::LOCALHOST, one)).unwrap();
        assert!(!reserve(other), "the reservation lasts");
    }
}
