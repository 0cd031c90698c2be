//! From a message to a running handler, or to the word why there is none.
//!
//! All of it is synchronous: nothing that arrives waits for anything that runs.

mod running;
mod staleness;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message, Subject};
use bytes::Bytes;
use http::{Request, Uri};
use natsway_boot::Clock;
use natsway_wire::envelope::{self, NotRun, Signal, encode_signal};
use natsway_wire::{ErrorKind, Limits, control};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use self::running::{Caller, Handler, RunningHandlers, Tick};
use self::staleness::{Age, Staleness};
use crate::handler::body::Body;
use crate::handler::context::ReaderContext;
use crate::handler::deadline::Deadline;
use crate::handler::draining::Draining;
use crate::handler::job::Job;
use crate::handler::outbox::service_error;
use crate::telemetry::metrics::{Load, WorkerMetrics};
use crate::unary::{ReplyTo, ResultReply, TunnelReply};

/// How often the running handlers are looked at, while there are any: how late a handler past its
/// deadline may be dropped, and a long one be reported.
const TICK: Duration = Duration::from_millis(10);

/// A handler at work and the subject that it serves.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) join: JoinHandle<()>,
    pub(crate) endpoint: usize,
}

impl Handler for Task {
    fn is_finished(&self) -> bool {
        self.join.is_finished()
    }

    fn abort(&self) {
        self.join.abort();
    }
}

/// Starts a job; gives a handle to it unless it has ended already.
pub(crate) trait Start: Fn(Job) -> Option<JoinHandle<()>> + 'static {}
impl<F: Fn(Job) -> Option<JoinHandle<()>> + 'static> Start for F {}

/// A request that was not started, and what to say of it.
#[derive(Debug)]
pub(crate) struct Refusal {
    reply: Subject,
    answer: Refused,
}

#[derive(Debug)]
enum Refused {
    NotRun(NotRun),
    /// Not by a gateway: told in the words of ADR-32, since it may not read an envelope.
    Unreadable(String),
}

/// What one reader does with messages.
pub(crate) struct Admission<F> {
    pub(crate) context: Arc<ReaderContext>,
    pub(crate) load: Arc<Load>,
    clock: Clock,
    start: F,
    staleness: RefCell<Staleness>,
    running: RefCell<RunningHandlers<Task>>,
    /// Wakes [`watch_running`](Self::watch_running) when it is `watch_parked`.
    watch: Notify,
    watch_parked: Cell<bool>,
    /// The signal that says which instance is at work on a request.
    accepted: Bytes,
    /// Whether handlers are dropped whose callers went away.
    cancels: bool,
}

impl<F: Start> Admission<F> {
    pub(crate) fn new(
        context: Arc<ReaderContext>,
        load: Arc<Load>,
        instance: &str,
        accepted_after: Duration,
        cancels: bool,
        start: F,
    ) -> Self {
        Self {
            context,
            load,
            clock: Clock::start(),
            start,
            staleness: RefCell::default(),
            running: RefCell::new(RunningHandlers::new(accepted_after)),
            watch: Notify::new(),
            watch_parked: Cell::new(false),
            accepted: encode_signal(&Signal::Accepted { instance: instance.to_owned() }),
            cancels,
        }
    }

    /// Starts the request that a message holds, or says why not. Never waits.
    pub(crate) fn accept(&self, endpoint: usize, message: Message) -> Option<Refusal> {
        let metrics = &self.context.metrics[endpoint];
        // What JetStream delivers names a subject of its own to acknowledge at. It may be anything
        // that somebody has stored.
        let Some(reply) = message.reply.filter(|reply| control::is_inbox(reply)) else {
            WorkerMetrics::count(&metrics.without_reply);
            return None;
        };
        let refuse = |reply, reason| Some(Refusal { reply, answer: Refused::NotRun(reason) });
        let Some(permit) = self.load.admit(message.payload.len()) else {
            WorkerMetrics::count(&metrics.shed);
            return refuse(reply, NotRun::Overloaded);
        };
        let mut request = match envelope::decode_request(&message.payload, Limits::DEFAULT) {
            Ok(request) => request,
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                metrics.failed(error.to_string());
                return refuse(reply, NotRun::Unsupported);
            }
            Err(error) => {
                let text = format!("not a request of natsway's http codec: {error}");
                metrics.failed(text.clone());
                return Some(Refusal { reply, answer: Refused::Unreadable(text) });
            }
        };
        let started = Instant::now();
        let received_ms = self.clock.unix_ms_at(started);
        // Where its stream would be opened, nobody says.
        if request.is_stream && request.offer.is_none() {
            return refuse(reply, NotRun::Unsupported);
        }
        let (sent_ms, deadline_ms) = (request.sent_ms, request.deadline_ms);
        let asked_at = request.reply_subject.take().filter(|_| control::is_mapped(&reply));
        let age = match &asked_at {
            None if control::is_mapped(&reply) => {
                Staleness::judge_stranger(sent_ms, deadline_ms, received_ms)
            }
            asked_at => {
                let reply = asked_at.as_deref().unwrap_or(&reply);
                self.staleness.borrow_mut().judge(reply, sent_ms, deadline_ms, received_ms)
            }
        };
        let Age::Fresh { age_ms } = age else {
            WorkerMetrics::count(&metrics.expired);
            return refuse(reply, NotRun::Expired);
        };
        let deadline =
            started + Duration::from_millis(u64::from(deadline_ms.saturating_sub(age_ms)));
        let (offer, is_stream) = (request.offer.take(), request.is_stream);
        let job = Job {
            request: self.http_request(request, deadline),
            reply: ReplyTo::Broker(reply.clone()),
            started,
            deadline,
            permit,
            context: Arc::clone(&self.context),
            endpoint,
            offer,
            is_stream,
        };
        if let Some(join) = (self.start)(job) {
            let caller = Caller::Broker { reply, asked_at: asked_at.map(Into::into) };
            self.started(started, deadline, caller, Task { join, endpoint });
        }
        None
    }

    /// Starts the request that came by a tunnel, or answers why not. Never waits.
    pub(crate) fn accept_by_tunnel(&self, endpoint: usize, payload: &Bytes, reply: TunnelReply) {
        let refuse =
            |reply: TunnelReply, reason| reply.say(&encode_signal(&Signal::NotRun(reason)));
        let Some(metrics) = self.context.metrics.get(endpoint) else {
            return refuse(reply, NotRun::Unsupported);
        };
        let Some(permit) = self.load.admit(payload.len()) else {
            WorkerMetrics::count(&metrics.shed);
            return refuse(reply, NotRun::Overloaded);
        };
        let mut request = match envelope::decode_request(payload, Limits::DEFAULT) {
            Ok(request) if !request.is_stream => request,
            Ok(_) => return refuse(reply, NotRun::Unsupported),
            Err(error) => {
                metrics.failed(format!("not a request of natsway's http codec: {error}"));
                return refuse(reply, NotRun::Unsupported);
            }
        };
        let started = Instant::now();
        let Some(age_ms) = reply.age_ms(request.sent_ms, request.deadline_ms) else {
            WorkerMetrics::count(&metrics.expired);
            return refuse(reply, NotRun::Expired);
        };
        let left_ms = request.deadline_ms.saturating_sub(age_ms);
        let deadline = started + Duration::from_millis(u64::from(left_ms));
        let (tunnel, key) = reply.name();
        let job = Job {
            offer: request.offer.take(),
            request: self.http_request(request, deadline),
            reply: ReplyTo::Tunnel(reply),
            started,
            deadline,
            permit,
            context: Arc::clone(&self.context),
            endpoint,
            is_stream: false,
        };
        if let Some(join) = (self.start)(job) {
            let caller = Caller::Tunnel { tunnel, key };
            self.started(started, deadline, caller, Task { join, endpoint });
        }
    }

    /// Starts a request that a stream has stored. Its worker bounds how many there are, so there
    /// always is a place.
    ///
    /// # Errors
    /// Why it is no request.
    pub(crate) fn accept_stored(
        &self,
        payload: &Bytes,
        answer: oneshot::Sender<Bytes>,
        most_bytes: usize,
    ) -> Result<(), String> {
        let endpoint = 0;
        let request = match envelope::decode_request(payload, Limits::DEFAULT) {
            Ok(request) if !request.is_stream => request,
            Ok(_) => return Err("its body is not in it".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let started = Instant::now();
        let deadline = started + Duration::from_millis(u64::from(request.deadline_ms));
        let job = Job {
            offer: None,
            request: self.http_request(request, deadline),
            reply: ReplyTo::Results(ResultReply { answer, most_bytes }),
            started,
            deadline,
            permit: self.load.take(payload.len()),
            context: Arc::clone(&self.context),
            endpoint,
            is_stream: false,
        };
        if let Some(join) = (self.start)(job) {
            self.started(started, deadline, Caller::Stream, Task { join, endpoint });
        }
        Ok(())
    }

    /// Watches a handler that was started.
    fn started(&self, started: Instant, deadline: Instant, caller: Caller, task: Task) {
        self.running.borrow_mut().started(started, deadline, caller, task);
        if self.watch_parked.get() {
            self.watch.notify_one();
        }
    }

    /// Says why a request was not started. Without a session nobody can be told, and nobody need
    /// be.
    pub(crate) async fn refuse(&self, refusal: Refusal) {
        let Some(client) = self.context.outbox.newest() else { return };
        let Refusal { reply, answer } = refusal;
        let told = match answer {
            Refused::NotRun(reason) => {
                client.publish(reply, encode_signal(&Signal::NotRun(reason))).await
            }
            Refused::Unreadable(text) => {
                client.publish_with_headers(reply, service_error(400, &text), Bytes::new()).await
            }
        };
        if let Err(error) = told {
            tracing::debug!(%error, "refusal not sent");
        }
    }

    /// Drops the handler that answers to `reply`, since its caller went away.
    pub(crate) fn cancel(&self, reply: &str) {
        if let Some(task) = self.running.borrow_mut().cancel(reply) {
            WorkerMetrics::count(&self.context.metrics[task.endpoint].cancelled);
        }
    }

    /// Drops the handler of a request of a tunnel, since its caller went away.
    pub(crate) fn cancel_on_tunnel(&self, tunnel: u64, key: u64) {
        if !self.cancels {
            return;
        }
        if let Some(task) = self.running.borrow_mut().cancel_on_tunnel(tunnel, key) {
            WorkerMetrics::count(&self.context.metrics[task.endpoint].cancelled);
        }
    }

    /// Drops every handler at work, and says how many there were.
    pub(crate) fn abandon(&self) -> usize {
        let tasks = self.running.borrow_mut().abort_all();
        for task in &tasks {
            WorkerMetrics::count(&self.context.metrics[task.endpoint].unfinished);
        }
        tasks.len()
    }

    /// Reports long handlers as accepted and drops those past their deadline, until dropped itself.
    pub(crate) async fn watch_running(&self) {
        loop {
            if self.running.borrow().is_empty() {
                self.watch_parked.set(true);
                self.watch.notified().await;
                self.watch_parked.set(false);
            }
            tokio::time::sleep(TICK).await;
            let is_unbound = |task: &Task| self.context.streams.is_unbound(task.join.id());
            let ticked = self.running.borrow_mut().tick(Instant::now(), is_unbound);
            let Tick { accepted, overran } = ticked;
            for task in &overran {
                WorkerMetrics::count(&self.context.metrics[task.endpoint].overran);
            }
            let Some(client) = self.context.outbox.newest() else { continue };
            for reply in accepted {
                if let Err(error) = client.publish(reply, self.accepted.clone()).await {
                    tracing::debug!(%error, "accepted signal not sent");
                }
            }
        }
    }

    /// The request as the service sees it.
    fn http_request(&self, request: envelope::Request, deadline: Instant) -> Request<Body> {
        let mut http = Request::new(Body::new(request.body));
        *http.method_mut() = request.method;
        *http.uri_mut() = Uri::from(request.path_and_query);
        *http.headers_mut() = request.headers;
        let extensions = http.extensions_mut();
        extensions.insert(Deadline::new(deadline));
        extensions.insert(Draining::new(Arc::clone(&self.context.draining)));
        http
    }
}
