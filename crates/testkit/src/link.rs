//! A network between a client and a server that can be paused, slowed, cut and mended.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::eventually::eventually;
use crate::ports::free_port;

/// The bytes that may be on the way in each direction of a connection.
const BUFFER_BYTES: usize = 16 * 1024;
/// A slowed link passes its bytes on this often.
const SLOW_TICK: Duration = Duration::from_millis(20);
/// A port that was listened on a moment ago can be listened on again.
const REBIND: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    Slow { bytes_per_second: NonZeroU32 },
    Paused,
    Cut,
}

/// A TCP proxy on 127.0.0.1: clients dial [`url`](Self::url) and reach the server behind it, as
/// long as the link lets them.
///
/// Dropped, it resets all its connections.
#[derive(Debug)]
pub struct TcpLink {
    port: u16,
    server: SocketAddr,
    state: watch::Sender<State>,
    accepting: Option<AbortHandle>,
}

impl TcpLink {
    /// A link to the server at this port of 127.0.0.1, say
    /// [`TestBroker::port`](crate::TestBroker::port).
    ///
    /// # Panics
    /// When no port is free.
    pub async fn to_port(port: u16) -> Self {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let state = watch::Sender::new(State::Flowing);
        let mut link = Self { port: free_port(), server, state, accepting: None };
        link.listen().await;
        link
    }

    /// The port that clients dial on 127.0.0.1; it stays the same for the life of the link.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address that NATS clients dial, `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Holds all bytes in both directions: connections stay open, new ones are accepted, and
    /// nothing comes through. What the kernel's buffers take and 16 KiB more are held in each
    /// direction, then the sender waits.
    pub fn pause(&self) {
        self.set(State::Paused);
    }

    /// Lets only this many bytes through each second, in each direction of each connection.
    pub fn slow(&self, bytes_per_second: NonZeroU32) {
        self.set(State::Slow { bytes_per_second });
    }

    /// Resets all connections, so that bytes on the way are lost, and refuses new ones. Both are
    /// done when this returns.
    pub async fn cut(&mut self) {
        self.break_off();
        // The listening task and each connection hold a receiver until their sockets are closed.
        self.state.closed().await;
    }

    /// Lets everything through again at full speed; after a cut, accepts connections on the same
    /// port.
    ///
    /// # Panics
    /// When another program has taken the port since the cut.
    pub async fn resume(&mut self) {
        self.set(State::Flowing);
        if self.accepting.is_none() {
            self.listen().await;
        }
    }

    fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    fn break_off(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
        self.set(State::Cut);
    }

    async fn listen(&mut self) {
        let address = (Ipv4Addr::LOCALHOST, self.port);
        let listener = eventually(REBIND, async || TcpListener::bind(address).await).await;
        let accepting = tokio::spawn(accept(listener, self.server, self.state.subscribe()));
        self.accepting = Some(accepting.abort_handle());
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.break_off();
    }
}

/// Accepts until aborted. The connections are tasks of their own that end when the link is cut: an
/// abort would close them in good order in place of resetting them.
async fn accept(listener: TcpListener, server: SocketAddr, state: watch::Receiver<State>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, server, state.clone()))),
            // Out of file descriptors, or the client is gone already: the next one may do better.
            Err(_) => tokio::time::sleep(SLOW_TICK).await,
        }
    }
}

async fn carry(mut client: TcpStream, address: SocketAddr, mut state: watch::Receiver<State>) {
    // A server that is down looks to the client like a connection that ends at once.
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pump(from_client, to_server, state.clone());
    let down = pump(from_server, to_client, state.clone());
    tokio::select! {
        // Both directions have ended, or one of them has failed and the other is of no use.
        _ended = async { tokio::try_join!(up, down) } => return,
        _cut = state.wait_for(|state| *state == State::Cut) => {}
    }
    for stream in [client, server] {
        // A socket that does not linger sends a reset when it is closed.
        let _gone_already = stream.set_zero_linger();
    }
}

/// Passes bytes, and in the end the end, from one side to the other, as the link allows.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let limit = chunk_bytes(*state.borrow());
        let count = from.read(&mut buffer[..limit]).await?;
        let state =
            *state.wait_for(|state| *state != State::Paused).await.map_err(io::Error::other)?;
        if count == 0 {
            return to.shutdown().await;
        }
        if let State::Slow { bytes_per_second } = state {
            tokio::time::sleep(Duration::from_secs_f64(
                count as f64 / f64::from(bytes_per_second.get()),
            ))
            .await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

/// The bytes that are taken from the sender at a time: on a slow link those of one tick.
fn chunk_bytes(state: State) -> usize {
    let State::Slow { bytes_per_second } = state else { return BUFFER_BYTES };
    let ticks_per_second = 1_000 / SLOW_TICK.as_millis() as usize;
    (bytes_per_second.get() as usize / ticks_per_second).clamp(1, BUFFER_BYTES)
}
