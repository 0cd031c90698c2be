//! A backend that a test scripts: it answers each request with what a closure says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::{Client, Message, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use natsway_testkit::TestBroker;
use natsway_wire::Limits;
use natsway_wire::envelope::{
    NotRun, Request, Signal, decode_request, encode_response, encode_signal,
};
use tokio::task::JoinHandle;

pub const SUBJECT: &str = "svc.test.blue";

/// What came in, in order, with where the answer goes; shared with the closure's task.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<(Request, Subject)>>>, Arc<AtomicUsize>);

impl Seen {
    pub fn count(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Request {
        self.0.lock().unwrap().last().expect("a request came in").0.clone()
    }
}

pub struct Backend {
    pub client: Client,
    pub seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Answers each request with the messages that `answer` gives for it and its number, counted
    /// from 0.
    pub async fn start(
        broker: &TestBroker,
        answer: impl FnMut(usize, &Request) -> Vec<Bytes> + Send + 'static,
    ) -> Self {
        Self::start_in(broker, "q", answer).await
    }

    /// The same in a queue group of another name.
    pub async fn start_in(
        broker: &TestBroker,
        queue_group: &str,
        answer: impl FnMut(usize, &Request) -> Vec<Bytes> + Send + 'static,
    ) -> Self {
        Self::start_as(broker, SUBJECT, queue_group, answer).await
    }

    /// The same at another subject.
    pub async fn start_at(
        broker: &TestBroker,
        subject: &'static str,
        answer: impl FnMut(usize, &Request) -> Vec<Bytes> + Send + 'static,
    ) -> Self {
        Self::start_as(broker, subject, "q", answer).await
    }

    async fn start_as(
        broker: &TestBroker,
        subject: &'static str,
        queue_group: &str,
        mut answer: impl FnMut(usize, &Request) -> Vec<Bytes> + Send + 'static,
    ) -> Self {
        let (client, seen) = (broker.connect().await, Seen::default());
        let mut requests = client.queue_subscribe(subject, queue_group.to_owned()).await.unwrap();
        settled(&client).await;
        let (publisher, log) = (client.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while let Some(Message { payload, reply, .. }) = requests.next().await {
                let request = decode_request(&payload, Limits::DEFAULT).unwrap();
                let (number, reply) = (log.count(), reply.unwrap());
                let replies = answer(number, &request);
                log.0.lock().unwrap().push((request, reply.clone()));
                log.1.fetch_add(1, Ordering::SeqCst);
                for message in replies {
                    publisher.publish(reply.clone(), message).await.unwrap();
                }
            }
        });
        Self { client, seen, task }
    }

    /// Answers a request that was left unanswered, by its number.
    pub async fn answer(&self, number: usize, message: Bytes) {
        let reply = self.seen.0.lock().unwrap()[number].1.clone();
        self.client.publish(reply, message).await.unwrap();
    }

    /// Answers 200 with the text, always.
    pub async fn saying(broker: &TestBroker, text: &'static str) -> Self {
        Self::start(broker, move |_, _| vec![ok(text)]).await
    }
}

/// Waits until the broker has taken in what the client asked for before.
pub async fn settled(client: &Client) {
    // Nobody listens there; that the broker says so shows that it has read all that came before.
    client.request("natsway-test.nobody", Bytes::new()).await.unwrap_err();
}

pub fn response(status: u16, headers: &[(&'static str, &str)], body: &str) -> Bytes {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    encode_response(StatusCode::from_u16(status).unwrap(), &map, &HeaderMap::new(), body.as_bytes())
        .unwrap()
}

pub fn ok(body: &str) -> Bytes {
    response(200, &[], body)
}

pub fn not_run(reason: NotRun) -> Bytes {
    encode_signal(&Signal::NotRun(reason))
}

pub fn accepted(instance: &str) -> Bytes {
    encode_signal(&Signal::Accepted { instance: instance.to_owned() })
}
