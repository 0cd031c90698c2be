//! One connection to the broker that never reconnects.
//!
//! A client library's own reconnect is wrong for a request path. It keeps what was published while
//! the broker was away and sends it later, when the callers have long been answered; it cannot say
//! which requests were in flight on the connection that broke; and it stays on a server in
//! lame-duck mode until that server throws it off. So the request path holds a [`Session`]: it is
//! there or it is lost, and whoever holds it dials the next one.

use std::time::Duration;

use async_nats::{Client, Event, ServerAddr};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::backoff::backoff;
use super::denied::DeniedSubscriptions;
use super::dial_error::{DialError, DialErrorKind};
use super::dial_hints;
use super::heartbeat::{self, Heartbeat};
use super::server_errors::{ServerErrorLog, ServerEvent};
use crate::broker::BrokerConfig;

/// The oldest broker that Natsway works with.
const OLDEST_BROKER: (u64, u64) = (2, 11);

/// An address where nothing can listen. A session's client is given it as its only server once it
/// is connected, so that its one attempt to reconnect fails at once and it ends with everything
/// that it had queued.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Events that may wait to be read; they are state, not a history, so the newest of a kind is
/// enough.
const EVENTS: usize = 16;

/// How long one server is waited for before the next is asked as well: a machine that is gone
/// answers nothing, and a frozen server accepts a connection and then says nothing. The "connection
/// attempt delay" of RFC 8305.
const STAGGER: Duration = Duration::from_millis(250);

/// What a connection is called and how much it may hold.
#[derive(Clone, Debug)]
pub struct Dial {
    /// The name that the broker's monitoring shows.
    pub name: String,
    /// The role's own inbox prefix, say `_INBOX_apiproxy`.
    pub inbox_prefix: String,
    /// Messages that each subscription may hold before the client drops more.
    pub subscription_messages: usize,
    /// Messages accepted from callers and not yet written to the socket.
    pub publish_messages: usize,
}

/// Dials sessions, one server at a time, and remembers the servers that the cluster told of.
#[derive(Debug)]
pub struct Dialer {
    broker: BrokerConfig,
    dial: Dial,
    discovered: Vec<ServerAddr>,
    /// Counted since the last success.
    failures: usize,
    /// What kind of failure was logged last, since the last success.
    logged: Option<DialErrorKind>,
}

/// A live connection. Dropping it, and every clone of its client and its subscriptions, closes it.
#[derive(Debug)]
pub struct Session {
    client: Client,
    server_id: String,
    address: String,
    inbox_prefix: String,
    refused: DeniedSubscriptions,
    events: mpsc::Receiver<SessionEvent>,
    heartbeat: Heartbeat,
}

/// What can happen to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// The server will shut down soon: dial another session, move, and retire this one.
    LameDuck,
    /// Nothing has come back for a second: the server or the way to it may be frozen. What is out
    /// may still be answered, so move to another session if one can be had, and retire this one.
    Silent,
    /// Something came back after [`SessionEvent::Silent`].
    Answers,
    /// The broker refused a subscription ([`Session::denied_subscriptions`]), or took it back: that
    /// subject is not heard here.
    NotPermitted,
    /// The connection is gone; nothing more is sent or received on it.
    Lost,
}

impl Dialer {
    /// A dialler for `broker`.
    pub fn new(broker: BrokerConfig, dial: Dial) -> Self {
        Self { broker, dial, discovered: Vec::new(), failures: 0, logged: None }
    }

    /// Tries every known server once, in random order: each as soon as the one before was refused,
    /// or lets wait. The first that answers is taken.
    ///
    /// `avoid` is the id of a server that is about to leave ([`Session::server_id`]); a connection
    /// to it is given up.
    ///
    /// # Errors
    /// The [`DialError`] of a server that refused us or is too old if there was one, else of the
    /// last one: what will not mend itself says more than what is away.
    pub async fn dial_once(&mut self, avoid: Option<&str>) -> Result<Session, DialError> {
        let dialled = self.race(avoid).await;
        match &dialled {
            Ok((session, server)) => {
                (self.failures, self.logged) = (0, None);
                let advertised = session.client.server_info().connect_urls;
                self.remember(&advertised, server);
            }
            Err(_) => self.failures += 1,
        }
        dialled.map(|(session, _)| session)
    }

    /// Asks the servers side by side, one more whenever nobody has answered for a while.
    async fn race(&self, avoid: Option<&str>) -> Result<(Session, ServerAddr), DialError> {
        let mut servers = [self.broker.servers.as_slice(), self.discovered.as_slice()].concat();
        fastrand::shuffle(&mut servers);
        let mut telling: Option<DialError> = None;
        let mut asked = FuturesUnordered::new();
        loop {
            match servers.pop() {
                Some(server) => asked.push(self.dial_server(server, avoid)),
                None if asked.is_empty() => {
                    return Err(telling.expect("a broker has one server at least"));
                }
                None => {}
            }
            let patience = if servers.is_empty() { Duration::MAX } else { STAGGER };
            match tokio::time::timeout(patience, asked.next()).await {
                Ok(Some(Ok(dialled))) => return Ok(dialled),
                Ok(Some(Err(error))) if error.kind != DialErrorKind::Unavailable => {
                    telling = Some(error)
                }
                Ok(Some(Err(error))) => {
                    telling = telling.filter(|other| other.kind != error.kind).or(Some(error))
                }
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Tries until there is a session, with growing, jittered delays of up to 2 s; says that it has
    /// to wait when it begins to and whenever the kind of failure changes, and once that it need
    /// not any more.
    ///
    /// # Cancel safety
    /// Cancelling stops the trying; nothing is lost.
    pub async fn dial(&mut self, avoid: Option<&str>) -> Session {
        loop {
            let had_failed = self.failures > 0;
            match self.dial_once(avoid).await {
                Ok(session) => {
                    if had_failed {
                        info!(name = %self.dial.name, "broker reached");
                    }
                    return session;
                }
                Err(error) if self.is_news(error.kind) => {
                    warn!(%error, "broker not reached, trying again")
                }
                Err(error) => debug!(%error, "broker still not reached"),
            }
            tokio::time::sleep(backoff(self.failures + 1)).await;
        }
    }

    /// Whether a failure is of another kind than the one that was logged last; it counts as
    /// logged then.
    fn is_news(&mut self, kind: DialErrorKind) -> bool {
        self.logged.replace(kind) != Some(kind)
    }

    async fn dial_server(
        &self,
        server: ServerAddr,
        avoid: Option<&str>,
    ) -> Result<(Session, ServerAddr), DialError> {
        let failed = |kind, reason| DialError { kind, server: host_and_port(&server), reason };
        let (sender, events) = mpsc::channel(EVENTS);
        let server_errors = ServerErrorLog::new(&self.dial.name, self.broker.who.as_deref());
        let refused = DeniedSubscriptions::default();
        let refusals = refused.clone();
        let connected = self
            .broker
            .options(&self.dial.name, &self.dial.inbox_prefix)
            .subscription_capacity(self.dial.subscription_messages)
            .client_capacity(self.dial.publish_messages)
            .ignore_discovered_servers()
            // Checked where they are made: of configuration when that is read, of ids by their own
            // types. What a peer gives for a reply came as one token of the broker's protocol.
            .skip_subject_validation(true)
            // One attempt, which NOWHERE makes a failure.
            .max_reconnects(1)
            .reconnect_delay_callback(|_| Duration::ZERO)
            .event_callback(move |event| {
                match server_errors.record(&event) {
                    ServerEvent::Other => report(&sender, &event),
                    ServerEvent::Logged => {}
                    ServerEvent::SubscriptionDenied(subject) => {
                        refusals.add(subject);
                        sender.try_send(SessionEvent::NotPermitted).ok();
                    }
                }
                std::future::ready(())
            })
            .connect(server.clone())
            .await;
        let client = connected.map_err(|error| {
            let (kind, reason) = dial_hints::explain(&error, self.broker.who.as_deref());
            failed(kind, reason)
        })?;
        let ended = client.set_server_pool(NOWHERE).await;
        ended.map_err(|error| {
            failed(DialErrorKind::Unavailable, format!("is not reachable: {error}"))
        })?;
        let info = client.server_info();
        if !is_new_enough(&info.version) {
            let (major, minor) = OLDEST_BROKER;
            let reason = format!(
                "is version {}: Natsway needs nats-server {major}.{minor} or later",
                info.version
            );
            return Err(failed(DialErrorKind::TooOld, reason));
        }
        if avoid == Some(info.server_id.as_str()) {
            return Err(failed(DialErrorKind::Unavailable, "is shutting down".to_owned()));
        }
        let heartbeat = Heartbeat::start(&client).await;
        let heartbeat =
            heartbeat.map_err(|error| failed(DialErrorKind::Unavailable, error.to_string()))?;
        let inbox_prefix = self.broker.inbox_prefix(&self.dial.inbox_prefix).to_owned();
        let address = host_and_port(&server);
        Ok((
            Session {
                client,
                server_id: info.server_id,
                address,
                inbox_prefix,
                refused,
                events,
                heartbeat,
            },
            server,
        ))
    }

    /// Keeps the addresses that the cluster advertises, with the scheme (TLS or not) of the server
    /// that said so.
    fn remember(&mut self, advertised: &[String], by: &ServerAddr) {
        let known = |addr: &ServerAddr| self.broker.servers.contains(addr);
        self.discovered = advertised
            .iter()
            .filter_map(|address| format!("{}://{address}", by.scheme()).parse().ok())
            .filter(|addr| !known(addr))
            .collect();
    }
}

impl Session {
    /// The client, for publishing and subscribing. It ends with the session.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The id of the server at the other end.
    pub fn server_id(&self) -> &str {
        &self.server_id
    }

    /// The address that was dialled, `host:port`. What a server says of itself may be `0.0.0.0`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The subscriptions that the broker refused. It says so before it answers what was sent after
    /// them, so once an echo of ours is back they are here.
    pub fn denied_subscriptions(&self) -> &DeniedSubscriptions {
        &self.refused
    }

    /// Where its inboxes have to be.
    pub fn inbox_prefix(&self) -> &str {
        &self.inbox_prefix
    }

    /// The next thing that happens to the session; [`SessionEvent::Lost`] is the last, and is given
    /// again if asked.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn next_event(&mut self) -> SessionEvent {
        loop {
            tokio::select! {
                biased;
                event = self.events.recv() => return event.unwrap_or(SessionEvent::Lost),
                status = self.heartbeat.next(&self.client) => {
                    // The client's events can be dropped when it has too many, so its state is
                    // looked at as well.
                    if self.client.connection_state() == async_nats::connection::State::Disconnected {
                        return SessionEvent::Lost;
                    }
                    match status {
                        heartbeat::HeartbeatStatus::Steady => {}
                        heartbeat::HeartbeatStatus::Missed => return SessionEvent::Silent,
                        heartbeat::HeartbeatStatus::Back => return SessionEvent::Answers,
                    }
                }
            }
        }
    }
}

/// Passes on the events that change what a session's holder does.
fn report(sender: &mpsc::Sender<SessionEvent>, event: &Event) {
    let event = match event {
        Event::LameDuckMode => SessionEvent::LameDuck,
        Event::Disconnected | Event::Closed => SessionEvent::Lost,
        _ => return,
    };
    // A full channel already holds what this event would say.
    sender.try_send(event).ok();
}

fn host_and_port(server: &ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

/// Whether a version such as `2.11.4` or `2.12.0-RC.1` is not older than [`OLDEST_BROKER`].
fn is_new_enough(version: &str) -> bool {
    let mut numbers =
        version.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_BROKER,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_when_its_kind_changes() {
        use DialErrorKind::{Refused, TooOld, Unavailable};
        let dial = Dial {
            name: String::new(),
            inbox_prefix: String::new(),
            subscription_messages: 1,
            publish_messages: 1,
        };
        let mut dialer = Dialer::new(BrokerConfig::new("a").unwrap(), dial);
        let kinds = [Unavailable, Unavailable, Refused, Refused, TooOld, Unavailable];
        assert_eq!(kinds.map(|kind| dialer.is_news(kind)), [true, false, true, false, true, true]);
    }

    #[test]
    fn broker_versions_are_compared_by_number() {
        for version in ["2.11.0", "2.12.0-RC.1", "v3.0.0", "2.100.1"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["2.10.29", "1.99.0", "", "nonsense", "2"] {
            assert!(!is_new_enough(version), "{version}");
        }
    }
}
