//! A WebSocket that ends here: each message of its client is a request, and each answer a message
//! under the same id, in whatever order answers come.
//!
//! No more is read than is answered: a connection has so many requests at a time, and a client that
//! takes no answers is not read either. So what one holds is bounded, and a slow backend slows its
//! clients down.

mod link;
mod metered;
mod opening;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use http::request::Parts;
use http::{Response, StatusCode};
use natsway_args::Format;
use natsway_args::message::{self, Id};
use natsway_caller::stream::BrokenOff;
use natsway_caller::stream::activity::Watch;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, interval_at};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use self::link::{End, Link};
use self::metered::Meter;
use crate::body::ReplyBody;
use crate::client_address::Client;
use crate::inspect::RequestAuthority;
use crate::metrics::ClientClose;
use crate::posted::{Posted, Poster, Protocol};
use crate::problem::{Problem, bad_gateway, into_response};
use crate::stream::OpenStream;
use crate::stream::becomes::Home;
use crate::stream::splice::SpliceEnd;

/// How often a client is asked whether it is there; one that is silent for two of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// What an answer has beside its body, at the most for what is counted.
const ANSWER_BYTES: usize = 1_024;

/// A WebSocket that was opened.
pub struct Session {
    /// The head of the POST that each message is.
    head: Parts,
    authority: RequestAuthority,
    client: Client,
    format: Format,
    concurrency: usize,
    meter: Rc<Meter>,
    watch: Watch,
    /// Its place among the shard's streams.
    open: OpenStream,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A request that was answered.
struct Answered {
    id: Id,
    response: Response<ReplyBody>,
}

/// What happens to a session.
enum Event {
    Answered(Box<Answered>),
    Came(Option<Result<Message, Error>>),
    Ping,
    Watch(BrokenOff),
    Leaving,
    Evicted,
}

impl Session {
    /// Serves it until either end closes, nothing is said for too long, or the gateway leaves;
    /// `first` is what was read of it before.
    ///
    /// # Cancel safety
    /// Dropping the future cuts the client off, and cancels its requests.
    pub(crate) async fn run<C>(self, client: C, first: &[u8], home: Home) -> SpliceEnd
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { head, authority, client: of, format, concurrency, meter, watch, open: _open } =
            self;
        let write_timeout = home.shard.settings.client.send.span;
        let link = Link::new(client, first, meter, write_timeout).await;
        let asker = Rc::new(Asker { home, client: of, authority, head });
        let (running, is_leaving) = (FuturesUnordered::new(), false);
        let mut conversation =
            Conversation { link, asker, format, concurrency, running, is_leaving };
        let end = conversation.go_on(watch).await;
        conversation.finish(end).await
    }
}

/// What the requests of a session share.
struct Asker {
    home: Home,
    client: Client,
    authority: RequestAuthority,
    head: Parts,
}

impl Asker {
    /// Sends a request; a problem is its answer too.
    async fn ask(&self, id: Id, body: Bytes) -> Answered {
        let Self { home, client, authority, head } = self;
        let Home { shard, caller, account, .. } = home;
        let poster = Poster { shard, account, caller, client, authority };
        let request_id = natsway_boot::random_id();
        let posted = Posted { head: head.clone(), body, by: Protocol::WebSocket, patience: None };
        let served = poster.post(posted, &request_id).await;
        let response = served.unwrap_or_else(|problem| into_response(&problem, &request_id));
        Answered { id, response }
    }
}

/// A session as it goes on.
struct Conversation<C> {
    link: Link<C>,
    asker: Rc<Asker>,
    format: Format,
    concurrency: usize,
    running: FuturesUnordered<LocalBoxFuture<'static, Box<Answered>>>,
    /// The gateway leaves: no request is taken any more.
    is_leaving: bool,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Conversation<C> {
    async fn go_on(&mut self, mut watch: Watch) -> End {
        let mut pings: Interval = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let asker = Rc::clone(&self.asker);
        let Home { shard, account, is_connection, .. } = &asker.home;
        let mut leaving = Box::pin(async {
            shard.closing.cancelled().await;
            tokio::time::sleep(shard.settings.drain.spread().mul_f64(fastrand::f64())).await;
        });
        loop {
            if self.is_leaving && self.running.is_empty() {
                return End::Close(CloseCode::Restart, "the gateway leaves");
            }
            let listens = !self.is_leaving && self.running.len() < self.concurrency;
            let event = tokio::select! {
                Some(answered) = self.running.next() => Event::Answered(answered),
                came = self.link.socket.next(), if listens => Event::Came(came),
                _ = pings.tick() => Event::Ping,
                why = watch.ended() => Event::Watch(why),
                () = &mut leaving, if !self.is_leaving => Event::Leaving,
                () = account.evicted(), if *is_connection => Event::Evicted,
            };
            let went = match event {
                Event::Answered(answered) => {
                    watch.note();
                    let Answered { id, response } = *answered;
                    self.say(Some(&id), response).await
                }
                Event::Came(came) => self.came(came, &watch).await,
                Event::Ping => self.ping(listens).await,
                // What is asked of a backend has a time-out of its own.
                Event::Watch(BrokenOff::Idle) if !self.running.is_empty() => {
                    watch.note();
                    Ok(())
                }
                Event::Watch(BrokenOff::Idle) => {
                    Err(End::Close(CloseCode::Away, "nothing was said for too long"))
                }
                Event::Watch(_) => Err(End::Close(CloseCode::Away, "it is as old as it may be")),
                Event::Leaving => {
                    self.is_leaving = true;
                    Ok(())
                }
                Event::Evicted => Err(End::NoRoom),
            };
            if let Err(end) = went {
                return end;
            }
        }
    }

    /// Takes what came.
    async fn came(
        &mut self,
        came: Option<Result<Message, Error>>,
        watch: &Watch,
    ) -> Result<(), End> {
        let message = match came {
            None => return Err(End::Gone),
            Some(Err(error)) => return Err(End::of(&error)),
            Some(Ok(message)) => message,
        };
        match (message, self.format) {
            (Message::Text(text), Format::Json) => {
                watch.note();
                self.ask(text.as_ref()).await
            }
            (Message::Binary(bytes), Format::Msgpack) => {
                watch.note();
                self.ask(&bytes).await
            }
            (Message::Text(_) | Message::Binary(_), _) => {
                let reason = "JSON comes as text, and MessagePack as bytes";
                Err(End::Close(CloseCode::Unsupported, reason))
            }
            (Message::Close(_), _) => Err(End::Closed),
            (Message::Ping(_) | Message::Pong(_) | Message::Frame(_), _) => Ok(()),
        }
    }

    /// Begins the request of a message.
    async fn ask(&mut self, bytes: &[u8]) -> Result<(), End> {
        let read = message::read(self.format, bytes);
        self.link.meter.message_ended();
        let message::Message { id, args } = match read {
            Ok(message) => message,
            Err(error) => {
                let detail = format!("the message cannot be read: {error}");
                let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_message", detail);
                self.asker.home.shard.metrics.problem(problem.code);
                return self.say(None, into_response(&problem, "")).await;
            }
        };
        let asker = Rc::clone(&self.asker);
        self.running.push(Box::pin(async move { Box::new(asker.ask(id, args).await) }));
        Ok(())
    }

    /// Sends an answer, and gives back what it held once the client has taken it.
    async fn say(&mut self, id: Option<&Id>, response: Response<ReplyBody>) -> Result<(), End> {
        let (head, body) = response.into_parts();
        let (mut body, mut held) = body.into_whole();
        let (mut status, mut headers) = (head.status, head.headers);
        if !self.link.meter.may_go(body.len() + ANSWER_BYTES) {
            let detail = "the gateway has no room to say the answer; the request ran";
            let problem = bad_gateway("no_room_for_answer", detail.to_owned());
            self.asker.home.shard.metrics.problem(problem.code);
            (status, headers) = (problem.status, problem.fields());
            (body, held) = (problem.document(None), None);
        }
        let written = message::write(self.format, id, status, &headers, &body);
        drop(body);
        let sent = self.link.say(self.format, written).await;
        drop(held);
        sent
    }

    /// Asks whether the client is there. While nothing is read of it, nobody would hear it say so.
    async fn ping(&mut self, listens: bool) -> Result<(), End> {
        if !listens {
            self.link.meter.listen_from_now();
        }
        if self.link.meter.heard_at().elapsed() >= 2 * PING_INTERVAL {
            return Err(End::Gone);
        }
        self.link.send(Message::Ping(Bytes::new())).await
    }

    /// Ends it; requests that are not answered are cancelled.
    async fn finish(self, end: End) -> SpliceEnd {
        let Self { link, asker, running, .. } = self;
        drop(running);
        let metrics = &asker.home.shard.metrics;
        match end {
            End::NoRoom => metrics.closed(ClientClose::NoRoom),
            End::Slow => metrics.closed(ClientClose::Slow),
            End::Gone | End::Closed | End::Close(..) => {}
        }
        link.end(end).await
    }
}
