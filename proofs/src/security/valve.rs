//! A way to the broker that holds up what a client says from a certain text on, so that a race has
//! a known winner.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

#[derive(Debug, Default, Clone, Copy)]
struct State {
    /// Something is held, or was.
    has_held: bool,
    /// Nothing is held any more.
    is_open: bool,
}

/// Passes bytes between clients and a port of this machine. What a client sends is held from the
/// chunk on that has the text in it, until [`open`](Self::open) is called; all else goes through.
///
/// Dropped, it lets go of everything; its threads end with the connections.
#[derive(Debug)]
pub(super) struct Valve {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Valve {
    /// A valve before a port that holds what has this text.
    pub(super) fn new(to: u16, text: &'static [u8]) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let valve = Self { port, state: Arc::clone(&state) };
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                // The broker is gone, and the client learns it.
                let _ended = pass_both(client, to, text, &state);
            }
        });
        Ok(valve)
    }

    /// The port that a client dials.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether something is held, or was.
    pub(super) fn has_held(&self) -> bool {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).has_held
    }

    /// Lets go of what is held, for good.
    pub(super) fn open(&self) {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).is_open = true;
        self.state.1.notify_all();
    }
}

impl Drop for Valve {
    fn drop(&mut self) {
        self.open();
    }
}

fn pass_both(
    client: TcpStream,
    to: u16,
    text: &'static [u8],
    state: &Arc<(Mutex<State>, Condvar)>,
) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let state = Arc::clone(state);
    thread::spawn(move || pass(client, server, |chunk| hold(chunk, text, &state)));
    thread::spawn(move || pass(from_server, to_client, |_| {}));
    Ok(())
}

/// Waits with a chunk that has the text until the valve is open.
fn hold(chunk: &[u8], text: &[u8], state: &(Mutex<State>, Condvar)) {
    if !chunk.windows(text.len()).any(|window| window == text) {
        return;
    }
    let mut held = state.0.lock().unwrap_or_else(PoisonError::into_inner);
    held.has_held = true;
    while !held.is_open {
        held = state.1.wait(held).unwrap_or_else(PoisonError::into_inner);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn(&[u8])) {
    let mut chunk = [0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        before(&chunk[..count]);
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _ended_already = end.shutdown(Shutdown::Both);
    }
}
