//! The one listener: accepts connections and hands each to the shard that has the fewest.
//!
//! One ordinary listener rather than one for each shard (SO_REUSEPORT), because the kernel's choice
//! balances few connections badly, a second process on the same port goes unnoticed, and closing
//! one of several listeners resets what waits in its backlog.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::shard_handle::{Accepted, ShardHandle};
use crate::start_error::StartError;

/// Connections that may wait in the kernel until they are accepted.
const BACKLOG: i32 = 4_096;

/// How long to wait when the process or the system has no file descriptor left.
pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// The least time between two log lines about connections that cannot be accepted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Listens on an address, on the runtime that this is called on.
///
/// # Errors
/// [`StartError::Listen`].
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { address, source };
    TcpListener::from_std(bind(address).map_err(failed)?).map_err(failed)
}

/// Binds a listening socket.
///
/// # Errors
/// The system's: the port is taken, or may not be had.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart finds its port again at once; another live listener on it is still an error.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Accepts until `stop`, then until nothing waits in the backlog, then closes the listener.
pub async fn accept(
    listener: TcpListener,
    handles: Vec<ShardHandle>,
    most_connections: usize,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(most_connections));
    let mut next_handle = 0;
    let mut failures = Failures::default();
    loop {
        let accepting = accept_one(&listener, &permits);
        let accepted = tokio::select! {
            biased;
            accepted = accepting => accepted,
            () = stop.cancelled() => break,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_clients_fault(&error) => continue,
            Err(error) => {
                if let Some(unsaid) = failures.say(Instant::now()) {
                    warn!(%error, unsaid, "connection not accepted");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        if handle(&handles, &mut next_handle, accepted).await.is_err() {
            // The shard is gone, which happens only when the process is about to end.
            return;
        }
    }
    // Asked of the system itself: the runtime may not have heard yet of one that waits, which the
    // close would reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        match listener.accept() {
            Ok((stream, peer)) if stream.set_nonblocking(true).is_ok() => {
                let accepted = Accepted { stream, peer, permit };
                if handle(&handles, &mut next_handle, accepted).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) if is_clients_fault(&error) => {}
            // Nothing waits, or nothing more can be had.
            Err(_) => return,
        }
    }
}

/// Hands a connection to the shard that has the fewest, the next one among equals.
async fn handle(
    handles: &[ShardHandle],
    next: &mut usize,
    accepted: Accepted,
) -> Result<(), mpsc::error::SendError<Accepted>> {
    let handle = least_loaded(handles, *next);
    *next = (handle + 1) % handles.len();
    handles[handle].metrics.connections.add(1);
    handles[handle].connections.send(accepted).await
}

async fn accept_one(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    Ok(Accepted { stream: stream.into_std()?, peer, permit })
}

/// Failures of one kind, of which only some are logged: without descriptors they come twenty times
/// a second.
#[derive(Debug, Default)]
pub struct Failures {
    said: Option<Instant>,
    unsaid: u64,
}

impl Failures {
    /// Takes note of one; when it is to be said, how many were not since the last that was.
    pub fn say(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now < said + COMPLAINT_INTERVAL) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// A client that left before it was accepted is no reason to pause.
fn is_clients_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The shard with the fewest connections; of several, the first from `from` on.
fn least_loaded(handles: &[ShardHandle], from: usize) -> usize {
    let turns = (0..handles.len()).map(|step| (from + step) % handles.len());
    turns
        .min_by_key(|handle| handles[*handle].metrics.connections.get())
        .expect("there is one shard at least")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emptiest_shard_is_chosen_and_equals_take_turns() {
        let handle = |count| {
            let (connections, tunnels) = (mpsc::channel(1).0, mpsc::channel(1).0);
            let handle = ShardHandle { connections, tunnels, metrics: Arc::default() };
            handle.metrics.connections.set(count);
            handle
        };
        let handles = [handle(2), handle(1), handle(1)];
        assert_eq!(least_loaded(&handles, 0), 1);
        assert_eq!(least_loaded(&handles, 2), 2);
        handles[1].metrics.connections.add(1);
        assert_eq!(least_loaded(&handles, 0), 2);
    }

    #[tokio::test]
    async fn what_waits_when_it_stops_is_still_accepted() {
        let bound = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.local_addr().unwrap();
        let listener = TcpListener::from_std(bound).unwrap();
        // The runtime gets no turn in between, in which it would hear of it.
        let client = std::net::TcpStream::connect(address).unwrap();
        let (connections, mut seated) = mpsc::channel(1);
        let stop = CancellationToken::new();
        stop.cancel();
        let tunnels = mpsc::channel(1).0;
        let handle = ShardHandle { connections, tunnels, metrics: Arc::default() };
        accept(listener, vec![handle], 1, stop).await;
        let accepted = seated.recv().await.expect("accepted");
        assert_eq!(accepted.peer, client.local_addr().unwrap());
    }

    #[test]
    fn failures_to_accept_are_said_now_and_then_with_their_number() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        let mut at = |ms| failures.say(start + Duration::from_millis(ms));
        assert_eq!([0, 50, 100, 9_999].map(&mut at), [Some(0), None, None, None]);
        assert_eq!([10_000, 10_050, 30_000].map(&mut at), [Some(3), None, Some(1)]);
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(bind(first.local_addr().unwrap()).is_err());
    }
}
