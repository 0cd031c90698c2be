//! The tunnels of one thread: what it offers, which connections it takes, and the streams that it
//! opens on them.
//!
//! Each step of an opening has a bound in time, and somebody who removes what is over: a connection
//! that says nothing, a secret whose connection never comes, a connection whose secret nobody said,
//! a worker that does not open what it promised.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use natsway_tunnel::body::MergedBody;
use natsway_tunnel::dial::Carrier;
use natsway_tunnel::half_open::HalfOpen;
use natsway_tunnel::http2::{
    self, OpenError, Protocol, RecvBody, Settings, StreamPermit, StreamSender,
};
use natsway_tunnel::joins::{Arrived, JoinLimits, Joins, Said};
use natsway_tunnel::pipe::{self, PipeBroker, PipeOpenError, PipeSettings};
use natsway_tunnel::preface::{self, Kind, Preface, Welcome};
use natsway_tunnel::read_ahead::ReadAhead;
use natsway_tunnel::socket;
use natsway_tunnel::tls::Acceptor;
use natsway_tunnel::{LIFETIME, LIFETIME_GRACE};
use natsway_wire::envelope::Reference;
use natsway_wire::offer::{StreamToken, TunnelSecret};
use natsway_wire::pipe::ResetReason;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::task::spawn_local;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::counter::TunnelCounts;
use crate::stream::{Opening, Upload};

/// How long a connection may take from its first byte to the secret.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stream waits for its tunnel and for the worker to take it. Less than a worker holds
/// what it has promised.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that may do their handshakes at a time. The oldest gives way to the next.
pub(crate) const MOST_HANDSHAKES: usize = 128;

/// How long a tunnel is not ended after an answer named it: its stream is yet to be opened.
pub(crate) const NAMED_FOR: Duration = Duration::from_secs(10);

/// How long a pipe may take to end that gives way to another one. Its worker waits.
const PIPE_PATIENCE: Duration = Duration::from_secs(1);

/// Whose tunnel a late answer names, of which nobody knows any more for what it was.
const NOBODYS: &str = "";

/// How often what waits is looked through.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What a thread offers and bounds.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// An encoded [`Offer`](natsway_wire::offer::Offer).
    pub offer: Bytes,
    /// The certificate that the offer names; `None` without TLS.
    pub acceptor: Option<Acceptor>,
    /// HTTP/2's.
    pub settings: Settings,
    /// How many tunnels there may be, and of what waits.
    pub limits: JoinLimits,
    /// How workers come that cannot reach the addresses of the offer; not at all without.
    pub pipes: Option<PipeConfig>,
}

/// How a thread takes pipes on the broker.
#[derive(Clone, Debug)]
pub struct PipeConfig {
    /// Where it has a connection for them.
    pub broker: Arc<PipeBroker>,
    /// How they are.
    pub settings: PipeSettings,
    /// How many there may be at a time.
    pub most: usize,
}

/// The tunnels of one thread.
pub struct Tunnels {
    config: TunnelConfig,
    counts: Arc<TunnelCounts>,
    joins: RefCell<Joins<Connection>>,
    open: RefCell<HashMap<TunnelSecret, OpenTunnel>>,
    /// Notified when a tunnel opens, and when one ends.
    changed: Notify,
    /// Connections that do their handshakes.
    handshakes: HalfOpen,
    /// Pipes that there may be besides those that are.
    pipes: Arc<Semaphore>,
}

/// A tunnel that streams may be opened on.
struct OpenTunnel {
    sender: StreamSender,
    is_pipe: bool,
    since: Instant,
    /// When an answer last named it.
    used: Instant,
    /// Ends it.
    end: CancellationToken,
}

/// A connection that was shaken.
pub(crate) type Connection = Either<Carrier, Box<TlsStream<ReadAhead<Carrier>>>>;

/// Why a stream was not opened, or not answered.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// Nothing of the request ran. What was not touched is back.
    NotOpened(Option<Opening>),
    /// The request may have run.
    Lost,
    /// The same; its time was over.
    TimedOut,
}

impl Tunnels {
    /// Returns one without a tunnel. Needs a `LocalSet`.
    pub fn new(config: TunnelConfig, counts: Arc<TunnelCounts>) -> Rc<Self> {
        let tunnels = Rc::new(Self {
            joins: RefCell::new(Joins::new(config.limits)),
            pipes: Arc::new(Semaphore::new(config.pipes.as_ref().map_or(0, |pipes| pipes.most))),
            config,
            counts,
            open: RefCell::default(),
            changed: Notify::new(),
            handshakes: HalfOpen::new(MOST_HANDSHAKES),
        });
        let swept = Rc::downgrade(&tunnels);
        spawn_local(async move {
            let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
            loop {
                ticks.tick().await;
                let Some(tunnels) = swept.upgrade() else { return };
                tunnels.sweep();
            }
        });
        tunnels
    }

    /// Returns what requests say of it.
    pub fn offer(&self) -> &Bytes {
        &self.config.offer
    }

    /// Takes a connection whose [preface](preface::Preface) was read, and serves it to its end.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept(self: Rc<Self>, stream: TcpStream) {
        match socket::for_tunnel(&stream) {
            Ok(()) => self.take_over(Either::Left(stream)).await,
            Err(error) => debug!(%error, "connection is lost already"),
        }
    }

    /// Opens a pipe to a worker that asks for one, as it cannot reach this machine.
    pub(crate) fn invited(self: &Rc<Self>, subject: String) {
        let tunnels = Rc::clone(self);
        spawn_local(async move {
            if let Err(error) = tunnels.open_pipe(&subject).await {
                tunnels.counts.refused.inc();
                debug!(%error, "no pipe to a worker that asked for one");
            }
        });
    }

    /// Opens a pipe and serves what runs on it to its end.
    async fn open_pipe(self: &Rc<Self>, subject: &str) -> Result<(), PipeOpenError> {
        // Nothing goes by the broker that others could read there.
        let (Some(pipes), Some(_)) = (&self.config.pipes, &self.config.acceptor) else {
            return Ok(());
        };
        let mut permit = Arc::clone(&self.pipes).try_acquire_owned();
        if permit.is_err() && self.end_idle(|_, tunnel| tunnel.is_pipe) {
            // Its driver says goodbye first.
            let freed = Arc::clone(&self.pipes).acquire_owned();
            if let Ok(freed) = tokio::time::timeout(PIPE_PATIENCE, freed).await {
                permit = freed.map_err(|_| TryAcquireError::Closed);
            }
        }
        let Ok(permit) = permit else {
            self.counts.refused.inc();
            let connection = pipes.broker.connection().await?;
            return pipe::refuse(&connection, subject, ResetReason::Full).await;
        };
        let connection = pipes.broker.connection().await?;
        let (mut carrier, driver) = pipe::call(connection, subject, pipes.settings.clone()).await?;
        let open = OpenPipe { counts: Arc::clone(&self.counts), _permit: permit };
        open.counts.pipes.add(1);
        spawn_local(async move {
            if let Err(error) = driver.run().await {
                debug!(%error, "pipe broke");
            }
            drop(open);
        });
        let mut bytes = [0; Preface::BYTES];
        let read = tokio::time::timeout(HANDSHAKE_TIMEOUT, carrier.read_exact(&mut bytes)).await;
        if !matches!(read, Ok(Ok(_))) {
            return Err(PipeOpenError::NoAnswer);
        }
        match Preface::decode(bytes) {
            Ok(preface) if preface.kind == Kind::Streams => {
                Rc::clone(self).take_over(Either::Right(carrier)).await;
                Ok(())
            }
            Ok(_) | Err(_) => Err(PipeOpenError::NoHello),
        }
    }

    async fn take_over(self: Rc<Self>, carrier: Carrier) {
        // Anybody may dial. A worker that had to give way dials again.
        let shaking =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(self.config.acceptor.as_ref(), carrier));
        let (secret, connection) = match self.handshakes.run(shaking).await {
            Some(Ok(Ok(shaken))) => shaken,
            Some(Ok(Err(error))) => {
                self.counts.refused.inc();
                return debug!(%error, "connection is no tunnel");
            }
            Some(Err(_)) | None => return self.counts.refused.inc(),
        };
        let (is_full, is_expected) = {
            let joins = self.joins.borrow();
            (joins.is_full(), joins.is_expected(secret))
        };
        if is_full && is_expected {
            self.end_idle(|_, _| true);
        }
        let arrived = self.joins.borrow_mut().arrived(secret, connection, Instant::now());
        match arrived {
            Arrived::Admitted(connection) => self.admit(secret, connection).await,
            Arrived::Early { instead_of } => {
                if let Some(connection) = instead_of {
                    self.refuse(connection, Welcome::Unknown).await;
                }
            }
            Arrived::Twice(connection) => self.refuse(connection, Welcome::Unknown).await,
            Arrived::Full(connection) => {
                // Who waits for it hears at once that it does not come.
                self.changed.notify_waiters();
                self.refuse(connection, Welcome::Full).await;
            }
        }
    }

    async fn refuse(&self, mut connection: Connection, why: Welcome) {
        self.counts.refused.inc();
        // Who does not read it learns as much from the close.
        let told = preface::welcome(&mut connection, why);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, told).await.ok();
    }

    /// Makes a connection the tunnel of its secret, until it ends.
    async fn admit(&self, secret: TunnelSecret, mut connection: Connection) {
        let _ended = Ended { tunnels: self, secret };
        let is_pipe = matches!(carrier_of(&connection), Either::Right(_));
        let begun = tokio::time::timeout(HANDSHAKE_TIMEOUT, async {
            preface::welcome(&mut connection, Welcome::Accepted).await?;
            let begun = http2::connect(connection, &self.config.settings).await;
            begun.map_err(io::Error::other)
        });
        let (sender, served) = match begun.await {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => return debug!(%error, "tunnel did not begin"),
            Err(_) => return debug!("tunnel did not begin in time"),
        };
        self.counts.opened.inc();
        self.counts.open.add(1);
        let (now, end) = (Instant::now(), CancellationToken::new());
        let tunnel = OpenTunnel { sender, is_pipe, since: now, used: now, end: end.clone() };
        self.open.borrow_mut().insert(secret, tunnel);
        self.changed.notify_waiters();
        tokio::select! {
            served = served => if let Err(error) = served {
                debug!(%error, "tunnel lost");
            },
            () = end.cancelled() => debug!("tunnel closed: no stream needs it"),
        }
        self.counts.open.add(-1);
    }

    fn sweep(&self) {
        let given_up = self.joins.borrow_mut().expire(Instant::now());
        self.counts.refused.add(given_up.len() as u64);
        // Their workers have others by now, or should have.
        let most = LIFETIME + 2 * LIFETIME_GRACE;
        while self.end_idle(|_, tunnel| tunnel.since.elapsed() > most) {}
    }

    /// Ends the tunnel that was named longest ago of those that carry no stream, if one may end.
    fn end_idle(&self, may_end: impl Fn(TunnelSecret, &OpenTunnel) -> bool) -> bool {
        let now = Instant::now();
        let is_idle = |tunnel: &OpenTunnel| {
            tunnel.sender.streams().open() == 0 && tunnel.used + NAMED_FOR <= now
        };
        let chosen = {
            let open = self.open.borrow();
            let idle =
                open.iter().filter(|(secret, tunnel)| is_idle(tunnel) && may_end(**secret, tunnel));
            idle.min_by_key(|(_, tunnel)| tunnel.used).map(|(secret, _)| *secret)
        };
        let Some(secret) = chosen else { return false };
        if let Some(tunnel) = self.open.borrow_mut().remove(&secret) {
            tunnel.end.cancel();
        }
        // Its place is free at once; what is left of it is its task's to end.
        self.joins.borrow_mut().ended(secret, now);
        true
    }

    /// Takes note of a secret, and makes room for its tunnel if there is none.
    fn said(&self, secret: TunnelSecret, subject: &str) -> Said<Connection> {
        let said = self.joins.borrow_mut().said(secret, subject, Instant::now());
        if !matches!(said, Said::Full) {
            return said;
        }
        let (is_full, is_full_of_one) = {
            let joins = self.joins.borrow();
            (joins.is_full(), joins.is_full_of(subject))
        };
        if !is_full && !is_full_of_one {
            return said;
        }
        let has_room = self
            .end_idle(|secret, _| !is_full_of_one || self.joins.borrow().is_of(secret, subject));
        match has_room {
            true => self.joins.borrow_mut().said(secret, subject, Instant::now()),
            false => Said::Full,
        }
    }

    /// Waits for the tunnel of a secret that an answer for a subject named.
    async fn tunnel(self: &Rc<Self>, secret: TunnelSecret, subject: &str) -> Option<StreamSender> {
        let mut changed = std::pin::pin!(self.changed.notified());
        changed.as_mut().enable();
        match self.said(secret, subject) {
            Said::Admitted(connection) => {
                let tunnels = Rc::clone(self);
                spawn_local(async move { tunnels.admit(secret, connection).await });
            }
            Said::Full | Said::Ended => return None,
            Said::Open | Said::Expected => {}
        }
        loop {
            if let Some(tunnel) = self.open.borrow_mut().get_mut(&secret) {
                tunnel.used = Instant::now();
                return Some(tunnel.sender.clone());
            }
            if !self.joins.borrow().is_to_come(secret) {
                return None;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
            changed.as_mut().enable();
        }
    }

    /// Takes the rest of a response that waits at its worker.
    pub(crate) async fn take(
        self: &Rc<Self>,
        reference: Reference,
        subject: &str,
        deadline: Instant,
    ) -> Result<(Response<RecvBody>, StreamPermit), StreamError> {
        let Reference { token, secret } = reference;
        let request = request(Method::GET, token, nothing());
        self.open_stream(request, secret, subject, || deadline).await
    }

    /// Has the worker drop the rest of a response that nobody waits for any more, instead of
    /// keeping it until the time is over that a stream may take to come.
    pub(crate) fn give_back(self: &Rc<Self>, reference: Reference) {
        let tunnels = Rc::clone(self);
        spawn_local(async move {
            let Reference { token, secret } = reference;
            let given_back = async {
                let mut tunnel = tunnels.tunnel(secret, NOBODYS).await?;
                let permit = tunnel.streams().try_take()?;
                // What comes is dropped, and so is its handler then.
                let opened = tunnel.open(request(Method::GET, token, nothing()), permit).await;
                opened.ok().inspect(|_| tunnels.counts.streams.inc())
            };
            tokio::time::timeout(OPEN_TIMEOUT, given_back).await.ok();
        });
    }

    /// Sends a request's body up to the worker that waits for it.
    pub(crate) async fn send(
        self: &Rc<Self>,
        token: StreamToken,
        secret: TunnelSecret,
        subject: &str,
        opening: Opening,
        deadline: impl Fn() -> Instant,
    ) -> Result<(Response<RecvBody>, StreamPermit), StreamError> {
        let request = match opening {
            Opening::Upload { body, length } => {
                let merged = MergedBody::with_length(body, length, length.is_none());
                let body = merged.map_err(io::Error::other).boxed_unsync();
                let mut request = request(Method::POST, token, body);
                if let Some(length) = length {
                    request.headers_mut().insert(CONTENT_LENGTH, length.into());
                }
                request
            }
            Opening::Upgrade { protocol } => {
                let mut request = request(Method::CONNECT, token, nothing());
                request.extensions_mut().insert(Protocol::from(protocol.as_str()));
                request
            }
        };
        self.open_stream(request, secret, subject, deadline).await
    }

    async fn open_stream(
        self: &Rc<Self>,
        request: Request<Upload>,
        secret: TunnelSecret,
        subject: &str,
        deadline: impl Fn() -> Instant,
    ) -> Result<(Response<RecvBody>, StreamPermit), StreamError> {
        let open_by = (Instant::now() + OPEN_TIMEOUT).min(deadline());
        let tunnel = tokio::time::timeout_at(open_by.into(), self.tunnel(secret, subject)).await;
        let taken = tunnel.ok().flatten().and_then(|tunnel| {
            let permit = tunnel.streams().try_take()?;
            Some((tunnel, permit))
        });
        let Some((mut tunnel, permit)) = taken else {
            self.counts.not_opened.inc();
            return Err(StreamError::NotOpened(opening_of(request)));
        };
        let mut opening = std::pin::pin!(tunnel.open(request, permit));
        let opened = loop {
            // It may move while a body goes up.
            let until = deadline();
            match tokio::time::timeout_at(until.into(), &mut opening).await {
                Ok(opened) => break opened,
                Err(_) if deadline() > until => {}
                Err(_) => return Err(StreamError::TimedOut),
            }
        };
        let error = match opened {
            Ok(opened) => {
                self.counts.streams.inc();
                return Ok(opened);
            }
            Err(error) => error,
        };
        self.counts.not_opened.inc();
        Err(match error {
            OpenError::NotSent { request, .. } => StreamError::NotOpened(opening_of(*request)),
            OpenError::NotTaken(_) => StreamError::NotOpened(None),
            OpenError::NoResponse(error) => {
                debug!(%error, "stream lost before its head");
                StreamError::Lost
            }
        })
    }
}

/// Does the gateway's part of the handshake, up to the secret that the worker shows. The deadline
/// is the caller's.
pub(crate) async fn shake(
    acceptor: Option<&Acceptor>,
    carrier: Carrier,
) -> io::Result<(TunnelSecret, Connection)> {
    let mut connection = match acceptor {
        Some(acceptor) => Either::Right(Box::new(acceptor.accept(carrier).await?)),
        None => Either::Left(carrier),
    };
    let secret = preface::shown(&mut connection).await?;
    Ok((secret, connection))
}

fn carrier_of(connection: &Connection) -> &Carrier {
    match connection {
        Either::Left(carrier) => carrier,
        Either::Right(tls) => tls.get_ref().0.get_ref(),
    }
}

fn nothing() -> Upload {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What a request that was not sent would have opened.
fn opening_of(request: Request<Upload>) -> Option<Opening> {
    let (head, body) = request.into_parts();
    match head.method {
        Method::POST => Some(Opening::Upload { length: body.size_hint().exact(), body }),
        Method::CONNECT => {
            let protocol = head.extensions.get::<Protocol>()?.as_str().to_owned();
            Some(Opening::Upgrade { protocol })
        }
        _ => None,
    }
}

/// The request that takes what waits under a token.
fn request(method: Method, token: StreamToken, body: Upload) -> Request<Upload> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // HTTP/2 wants an authority beside the path; nobody reads this one.
    let uri = format!("http://natsway{}", token.path());
    *request.uri_mut() = uri.try_into().expect("hexadecimal digits are a path");
    request
}

/// A pipe that is open, for as long as its driver runs.
struct OpenPipe {
    counts: Arc<TunnelCounts>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OpenPipe {
    fn drop(&mut self) {
        self.counts.pipes.add(-1);
    }
}

/// Forgets a tunnel that ended, or never began.
struct Ended<'t> {
    tunnels: &'t Tunnels,
    secret: TunnelSecret,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.tunnels.open.borrow_mut().remove(&self.secret);
        self.tunnels.joins.borrow_mut().ended(self.secret, Instant::now());
        self.tunnels.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    /// A tunnel whose worker still names it costs its requests no time: they go elsewhere at once.
    #[tokio::test]
    async fn the_secret_of_a_tunnel_that_ended_is_not_waited_for() {
        let attempt = async {
            let config = TunnelConfig {
                offer: Bytes::new(),
                acceptor: None,
                settings: Settings::default(),
                limits: JoinLimits { open: 1, of_one: 1, expected: 1, early: 1 },
                pipes: None,
            };
            let tunnels = Tunnels::new(config, Arc::default());
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("its address");
            let mut worker = TcpStream::connect(address).await.expect("it listens");
            let (accepted, _) = listener.accept().await.expect("it was dialled");
            let secret = TunnelSecret([7; 16]);
            preface::show(&mut worker, secret).await.expect("it is taken");
            let serving = spawn_local(Rc::clone(&tunnels).accept(accepted));
            assert!(tunnels.tunnel(secret, "svc.a").await.is_some(), "its worker named it");

            drop(worker);
            serving.await.expect("it ends");
            let named =
                tokio::time::timeout(OPEN_TIMEOUT / 5, tunnels.tunnel(secret, "svc.a")).await;
            assert!(named.expect("it is not waited for").is_none());
            assert_eq!((tunnels.counts.opened.get(), tunnels.counts.open.get()), (1, 0));
        };
        LocalSet::new().run_until(attempt).await;
    }
}
