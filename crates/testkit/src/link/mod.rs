//! A network between a client and a server that can be long, narrow, paused, cut and mended.

mod path;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::path::LinkShape;
use self::path::{Bottleneck, CHUNK_BYTES, Flight, Parcel};
use crate::eventually::eventually;
use crate::ports::free_port;

/// What the kernel holds for the link in each direction of a connection; it doubles this. More
/// would be a queue of its own before the link's.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// How long after an error the link accepts again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// A port that was listened on a moment ago can be listened on again.
const REBIND: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    mode: Mode,
    up: LinkShape,
    down: LinkShape,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Flowing,
    Paused,
    Cut,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl State {
    fn shape(&self, direction: Direction) -> LinkShape {
        match direction {
            Direction::Up => self.up,
            Direction::Down => self.down,
        }
    }
}

/// What all connections of a link share.
#[derive(Debug, Default)]
struct Bottlenecks {
    up: Mutex<Bottleneck>,
    down: Mutex<Bottleneck>,
}

impl Bottlenecks {
    fn with<T>(&self, direction: Direction, act: impl FnOnce(&mut Bottleneck) -> T) -> T {
        let bottleneck = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        act(&mut bottleneck.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A TCP proxy on 127.0.0.1: clients dial [`url`](Self::url) and reach the server behind it, as
/// long as the link lets them.
///
/// It may be [shaped](Self::shape) as a path to far away is: with a delay, which bounds no
/// throughput of itself since bytes are on the way side by side, and with a rate, which all of its
/// connections share. A tenth of a second's bytes wait at the rate's bottleneck, and up to 16 MiB
/// are on the way in each direction of a connection; then the link reads no more, and the sender
/// waits as it would on a real path. Only the handshake is shorter than there, since the link's own
/// kernel accepts. A side that ends or resets its connection does so behind the
/// bytes that it sent before.
///
/// Dropped, it resets all its connections.
///
/// ```
/// # use std::time::Duration;
/// # use natsway_testkit::{LinkShape, TcpLink, TestBroker};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let broker = TestBroker::start().await;
/// let link = TcpLink::to_port(broker.port()).await;
/// // 50 ms each way, and 10 Mbit/s on the way back.
/// let far = LinkShape::delayed(Duration::from_millis(50));
/// link.shape_up(far);
/// link.shape_down(far.with_rate(10_000_000 / 8));
/// let start = std::time::Instant::now();
/// async_nats::connect(link.url()).await.expect("the broker is reached");
/// assert!(start.elapsed() >= Duration::from_millis(100));
/// # }
/// ```
#[derive(Debug)]
pub struct TcpLink {
    port: u16,
    server: SocketAddr,
    state: watch::Sender<State>,
    bottlenecks: Arc<Bottlenecks>,
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
        let state = watch::Sender::new(State::default());
        let bottlenecks = Arc::default();
        let mut link = Self { port: free_port(), server, state, bottlenecks, accepting: None };
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

    /// Gives both directions this shape. What is on the way keeps its time, and its order.
    pub fn shape(&self, shape: LinkShape) {
        self.change(|state| (state.up, state.down) = (shape, shape));
    }

    /// Gives the direction from clients to the server this shape.
    pub fn shape_up(&self, shape: LinkShape) {
        self.change(|state| state.up = shape);
    }

    /// Gives the direction from the server to clients this shape.
    pub fn shape_down(&self, shape: LinkShape) {
        self.change(|state| state.down = shape);
    }

    /// Holds all bytes in both directions: connections stay open, new ones are accepted, and
    /// nothing comes through. What is on the way and what the kernel's buffers take is held in each
    /// direction, some hundred KiB, then the sender waits.
    pub fn pause(&self) {
        self.set(Mode::Paused);
    }

    /// Resets all connections, so that bytes on the way are lost, and refuses new ones. Both are
    /// done when this returns.
    pub async fn cut(&mut self) {
        self.break_off();
        // The listening task and each connection hold a receiver until their sockets are closed.
        self.state.closed().await;
    }

    /// Lets everything through again, in the shape that the link has; after a cut, accepts
    /// connections on the same port.
    ///
    /// # Panics
    /// When another program has taken the port since the cut.
    pub async fn resume(&mut self) {
        self.set(Mode::Flowing);
        if self.accepting.is_none() {
            self.listen().await;
        }
    }

    fn set(&self, mode: Mode) {
        self.change(|state| state.mode = mode);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    fn break_off(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
        self.set(Mode::Cut);
    }

    async fn listen(&mut self) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let listener = eventually(REBIND, async || listener(address)).await;
        let bottlenecks = Arc::clone(&self.bottlenecks);
        let accepting = accept(listener, self.server, self.state.subscribe(), bottlenecks);
        self.accepting = Some(tokio::spawn(accepting).abort_handle());
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.break_off();
    }
}

/// A socket that keeps to the buffer of a link.
fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    // What it accepts has its buffer.
    let socket = socket()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until aborted. The connections are tasks of their own that end when the link is cut: an
/// abort would close them in good order in place of resetting them.
async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    state: watch::Receiver<State>,
    bottlenecks: Arc<Bottlenecks>,
) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let carried = carry(client, server, state.clone(), Arc::clone(&bottlenecks));
                drop(tokio::spawn(carried));
            }
            // Out of file descriptors, or the client is gone already: the next one may do better.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn carry(
    mut client: TcpStream,
    address: SocketAddr,
    mut state: watch::Receiver<State>,
    bottlenecks: Arc<Bottlenecks>,
) {
    let connected = async { socket()?.connect(address).await };
    // A server that is down looks to the client like a connection that ends at once.
    let Ok(mut server) = connected.await else { return };
    for stream in [&client, &server] {
        // The link adds the delay that it is told to, not the kernel's of small packets.
        let _gone_already = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pump(from_client, to_server, Direction::Up, state.clone(), &bottlenecks);
    let down = pump(from_server, to_client, Direction::Down, state.clone(), &bottlenecks);
    tokio::select! {
        ended = async { tokio::try_join!(up, down) } => if ended.is_ok() {
            return;
        },
        _cut = state.wait_for(|state| state.mode == Mode::Cut) => {}
    }
    // Cut, or one direction has failed and the other is of no use.
    for stream in [client, server] {
        // A socket that does not linger sends a reset when it is closed.
        let _gone_already = stream.set_zero_linger();
    }
}

/// Passes bytes, and in the end the end, from one side to the other, as the link allows.
///
/// # Errors
/// A side has reset its connection.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut state: watch::Receiver<State>,
    bottlenecks: &Bottlenecks,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut flight = Flight::default();
    loop {
        let (shape, is_flowing) = {
            let state = state.borrow_and_update();
            (state.shape(direction), state.mode == Mode::Flowing)
        };
        let now = Instant::now();
        match flight.due(now).filter(|_| is_flowing) {
            Some(Parcel::End) => return to.shutdown().await,
            Some(Parcel::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Parcel::Bytes(_)) | None => {}
        }
        let full_until = bottlenecks.with(direction, |bottleneck| bottleneck.full_until(now));
        let may_read = is_flowing && flight.has_room() && full_until.is_none();
        let due_bytes = flight.due_bytes(now);
        let wakes_at = [full_until.filter(|_| flight.has_room()), flight.next_due()]
            .into_iter()
            .flatten()
            .filter(|wakes_at| *wakes_at > now)
            .min();
        tokio::select! {
            read = from.read(&mut buffer[..shape.chunk_bytes()]), if may_read => {
                let parcel = match read {
                    Ok(0) => Parcel::End,
                    Ok(count) => Parcel::Bytes(buffer[..count].to_vec()),
                    Err(_) => Parcel::Reset,
                };
                let bytes = read.unwrap_or(0);
                let now = Instant::now();
                let pass = |bottleneck: &mut Bottleneck| bottleneck.pass(now, bytes, shape);
                flight.send(bottlenecks.with(direction, pass) + shape.delay, parcel);
            }
            written = to.write(due_bytes), if is_flowing && !due_bytes.is_empty() => {
                flight.arrive(written?);
            }
            () = tokio::time::sleep_until(wakes_at.unwrap_or(now)),
                if is_flowing && wakes_at.is_some() => {}
            changed = state.changed() => changed.map_err(io::Error::other)?,
        }
    }
}
