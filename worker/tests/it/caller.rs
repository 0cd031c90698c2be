//! A stand-in for the gateway: sends enveloped requests and reads what comes back.

use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use natsway_boot::Clock;
use natsway_wire::Limits;
use natsway_wire::envelope::{NotRun, Reply, RequestEncoder, Response, Signal, decode_reply};

/// Long enough for anything that is to come at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to listen for something that must not come.
const QUIET: Duration = Duration::from_millis(300);

/// A request to send.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    deadline_ms: u32,
    sent_ms: Option<u64>,
}

/// A caller with an inbox of its own.
pub(crate) struct Caller {
    pub(crate) client: Client,
    clock: Clock,
    prefix: String,
    replies: Subscriber,
    count: u64,
}

impl Draft {
    pub(crate) fn get(path: &str) -> Self {
        let (headers, body) = (Vec::new(), Vec::new());
        Self {
            method: "GET",
            path: path.to_owned(),
            headers,
            body,
            deadline_ms: 20_000,
            sent_ms: None,
        }
    }

    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST", body: body.into(), ..Self::get(path) }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn deadline_ms(mut self, deadline_ms: u32) -> Self {
        self.deadline_ms = deadline_ms;
        self
    }

    /// Says that it was sent at another time than now.
    pub(crate) fn sent_ms(mut self, sent_ms: u64) -> Self {
        self.sent_ms = Some(sent_ms);
        self
    }

    pub(crate) fn encode(&self, now_ms: u64) -> bytes::Bytes {
        let sent_ms = self.sent_ms.unwrap_or(now_ms);
        let mut encoder =
            RequestEncoder::new(self.deadline_ms, sent_ms, self.method, &self.path, 256).unwrap();
        for (name, value) in &self.headers {
            encoder.header(name, value.as_bytes()).unwrap();
        }
        encoder.finish(&self.body)
    }
}

impl Caller {
    pub(crate) async fn new(client: Client) -> Self {
        let prefix = format!("_INBOX_apiproxy.{}", natsway_boot::random_id());
        let replies = client.subscribe(format!("{prefix}.*")).await.unwrap();
        client.flush().await.unwrap();
        Self { client, clock: Clock::start(), prefix, replies, count: 0 }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.unix_ms_at(Instant::now())
    }

    /// Sends a request and gives the subject that its replies come to.
    pub(crate) async fn send(&mut self, subject: &str, draft: Draft) -> String {
        let message = draft.encode(self.now_ms());
        self.send_raw(subject, message).await
    }

    pub(crate) async fn send_raw(&mut self, subject: &str, message: bytes::Bytes) -> String {
        self.count += 1;
        let reply = format!("{}.{}", self.prefix, self.count);
        self.client.publish_with_reply(subject.to_owned(), reply.clone(), message).await.unwrap();
        self.client.flush().await.unwrap();
        reply
    }

    /// The next message on the inbox, whatever it is.
    pub(crate) async fn next_message(&mut self) -> Message {
        let next = tokio::time::timeout(PATIENCE, self.replies.next()).await;
        next.expect("a reply within 30 s").expect("the inbox stays open")
    }

    /// The next reply and the subject that it came to.
    pub(crate) async fn next_reply(&mut self) -> (String, Reply) {
        let message = self.next_message().await;
        let reply = decode_reply(&message.payload, Limits::DEFAULT);
        let reply = reply.unwrap_or_else(|error| panic!("{error}: {message:?}"));
        (message.subject.to_string(), reply)
    }

    /// The response that comes next; signals that a handler is at work are passed over.
    pub(crate) async fn response(&mut self) -> Response {
        loop {
            match self.next_reply().await.1 {
                Reply::Response(response) => return response,
                Reply::Signal(Signal::Accepted { .. }) => {}
                other => panic!("expected a response, got {other:?}"),
            }
        }
    }

    /// The reason why the request was not run, which must come next.
    pub(crate) async fn refusal(&mut self) -> NotRun {
        match self.next_reply().await.1 {
            Reply::Signal(Signal::NotRun(reason)) => reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// The instance that says that it is at work, which must come next.
    pub(crate) async fn accepted(&mut self) -> (String, String) {
        match self.next_reply().await {
            (subject, Reply::Signal(Signal::Accepted { instance })) => (subject, instance),
            other => panic!("expected a sign of work, got {other:?}"),
        }
    }

    pub(crate) async fn call(&mut self, subject: &str, draft: Draft) -> Response {
        self.send(subject, draft).await;
        self.response().await
    }

    /// Listens for a moment and fails when anything comes.
    pub(crate) async fn hears_nothing(&mut self) {
        if let Ok(message) = tokio::time::timeout(QUIET, self.replies.next()).await {
            panic!("expected silence, got {message:?}");
        }
    }
}
