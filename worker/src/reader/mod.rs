//! A reader thread: it keeps a session, moves to another when it must, and leaves in order.

mod leave;
mod subscriptions;

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use bytes::Bytes;
use futures_util::future::{join, join_all};
use natsway_boot::{Dial, DialErrorKind, Dialer, Session, SessionEvent};
use natsway_wire::control;
use natsway_wire::frame::LEASE;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use self::leave::hand_over;
use self::subscriptions::{SUBSCRIPTION_MESSAGES, ServingEnd, Subscriptions, echo};
use crate::Error;
use crate::admission::{Admission, Start};
use crate::control_plane::ControlPlane;
use crate::control_plane::discovery::Instance;
use crate::inbox::INBOX_PREFIX;
use crate::streams::StreamDrain;
use crate::unary;
use crate::work_queue::{Work, WorkHandle};

/// Replies handed over and not yet written to the socket; more wait, which is what slows a worker
/// down when its broker is slow.
const PUBLISH_MESSAGES: usize = 2_048;

/// Between two attempts to subscribe on a connection that could be made.
const PAUSE: Duration = Duration::from_millis(500);

/// The same where the broker does not permit it, for somebody has to change its configuration.
const DENIED_PAUSE: Duration = Duration::from_secs(5);

/// How long a worker stays that could serve once and is not permitted to any more: a mistake in the
/// broker's configuration may be mended meanwhile. After that whoever started it is to see that it
/// does not work.
const DENIED_LIMIT: Duration = Duration::from_secs(30);

/// How long old and new subscriptions of a move live side by side, so that the whole cluster knows
/// of the new ones.
const OVERLAP: Duration = Duration::from_millis(250);

/// One reader of a worker.
pub(crate) struct Reader<F> {
    instance: Arc<Instance>,
    index: usize,
    admission: Rc<Admission<F>>,
    dialer: Dialer,
    leaving: Rc<Cell<bool>>,
    /// Has all readers leave.
    leave_all: CancellationToken,
    /// Sessions that are being left for newer ones; each ends by itself.
    retiring: Vec<JoinHandle<()>>,
    /// What the broker does not permit us to hear, since when; `None` again once it does.
    denied: RefCell<Option<SubscriptionDenied>>,
    /// The requests that a stream has stored, of the first reader alone.
    work: Option<WorkHandle>,
}

/// A worker that hears nothing.
struct SubscriptionDenied {
    subject: String,
    since: Instant,
}

/// A session that serves.
struct LiveSession {
    session: Session,
    client: Arc<Client>,
    /// Has the subscriptions leave by the fence.
    leave: CancellationToken,
    subscriptions: JoinHandle<(Subscriptions, ServingEnd)>,
    control_plane: AbortOnDropHandle<()>,
}

/// A session that replies go by, after the queue groups were left.
struct LeavingSession {
    session: Session,
    /// What hears cancellations, if this is the session that served.
    _house: Option<AbortOnDropHandle<()>>,
}

/// What a reader that serves waits for.
enum Next {
    Session(SessionEvent),
    Leave,
}

impl<F: Start> Reader<F> {
    pub(crate) fn new(
        instance: Arc<Instance>,
        index: usize,
        admission: Admission<F>,
        leave_all: CancellationToken,
    ) -> Self {
        let dial = Dial {
            name: format!("worker {} {}.{index}", instance.config.name, instance.id()),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            subscription_messages: SUBSCRIPTION_MESSAGES,
            publish_messages: PUBLISH_MESSAGES,
        };
        let dialer = Dialer::new(instance.config.broker.clone(), dial);
        Self {
            instance,
            index,
            admission: Rc::new(admission),
            dialer,
            leaving: Rc::default(),
            leave_all,
            retiring: Vec::new(),
            denied: RefCell::default(),
            work: None,
        }
    }

    /// Serves until `leave` is cancelled, then leaves within the drain timeout.
    ///
    /// # Errors
    /// [`Error::Broker`] when the broker that was reached first will not have us; later refusals
    /// are waited out. [`Error::NotPermitted`] when it does not let us hear requests; later that is
    /// waited out for [`DENIED_LIMIT`].
    pub(crate) async fn run(mut self, leave: CancellationToken) -> Result<(), Error> {
        let admission = Rc::clone(&self.admission);
        let _watch = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            admission.watch_running().await
        }));
        let requests = self.admission.load.max_requests();
        let tunnels = unary::keep(Rc::clone(&self.admission), requests);
        let _tunnels = AbortOnDropHandle::new(tokio::task::spawn_local(tunnels));
        let Some(mut live) = self.first(&leave).await? else { return self.given_up() };
        let queue = self.instance.config.work_queue.clone().filter(|_| self.index == 0);
        self.work = queue.map(|queue| Work::start(queue, Rc::clone(&self.admission)));
        loop {
            let next = tokio::select! {
                event = live.session.next_event() => Next::Session(event),
                () = leave.cancelled() => Next::Leave,
            };
            let moved = match next {
                Next::Leave => {
                    self.leave(Some(live)).await;
                    return Ok(());
                }
                Next::Session(SessionEvent::LameDuck) => {
                    info!(reader = self.index, "broker is shutting down, moving to another server");
                    let server_id = live.session.server_id().to_owned();
                    self.step_aside(live, Some(&server_id), &leave).await
                }
                Next::Session(SessionEvent::Silent) => {
                    warn!(reader = self.index, "broker does not answer, trying another connection");
                    // The same server will do, if it takes one.
                    self.step_aside(live, None, &leave).await
                }
                Next::Session(SessionEvent::NotPermitted) if self.is_deaf(&live.session) => {
                    self.replace(live, &leave).await
                }
                Next::Session(SessionEvent::Answers | SessionEvent::NotPermitted) => Some(live),
                Next::Session(SessionEvent::Lost) => self.replace(live, &leave).await,
            };
            live = match moved {
                Some(moved) => moved,
                None => {
                    self.leave(None).await;
                    return self.given_up();
                }
            };
        }
    }

    /// The first session; `None` when told to leave before there is one. A broker that refuses us
    /// or is too old ends the worker with a clear word now, because that is a mistake in its
    /// configuration; later it may be one of the broker's, and is waited out.
    async fn first(&mut self, leave: &CancellationToken) -> Result<Option<LiveSession>, Error> {
        let dialled = tokio::select! {
            dialled = self.dialer.dial_once(None) => dialled,
            () = leave.cancelled() => return Ok(None),
        };
        match dialled {
            Err(error)
                if matches!(
                    error.kind(),
                    DialErrorKind::Refused | DialErrorKind::Untrusted | DialErrorKind::TooOld
                ) =>
            {
                return Err(Error::Broker(error));
            }
            // The next try comes at once, and says it if it fails too.
            Err(_) => {}
            Ok(session) => {
                if let Some(live) = self.serve_on(session).await {
                    return Ok(Some(live));
                }
                if let Some(SubscriptionDenied { subject, .. }) = self.denied.take() {
                    return Err(Error::NotPermitted { subject });
                }
            }
        }
        Ok(self.serve_somewhere(None, leave.cancelled()).await)
    }

    /// Whether requests, or what comes back to us, will not be heard on a session. It is told when
    /// it begins.
    fn is_deaf(&self, session: &Session) -> bool {
        let config = &self.instance.config;
        let needed = |subject: &str| {
            subject.starts_with(session.inbox_prefix())
                || config.subjects.iter().any(|own| own.as_str() == subject)
        };
        let Some(subject) = session.denied_subscriptions().find(needed) else { return false };
        let mut denied = self.denied.borrow_mut();
        if denied.is_none() {
            error!(
                subject,
                reader = self.index,
                "not serving: the broker does not permit to subscribe"
            );
            *denied = Some(SubscriptionDenied { subject, since: Instant::now() });
            // Whoever may not hear requests any more may not go on with those that it has.
            self.admission.context.streams.cut();
            self.admission.context.unary.cut();
        }
        true
    }

    /// How a reader ends that does not serve: it was told to leave, unless it has been denied for
    /// too long.
    fn given_up(&self) -> Result<(), Error> {
        match self.denied.take() {
            Some(SubscriptionDenied { subject, since }) if since.elapsed() > DENIED_LIMIT => {
                Err(Error::NotPermitted { subject })
            }
            _ => Ok(()),
        }
    }

    /// Dials until it serves, until `stop` completes, or until it has been denied for too long. The
    /// server `avoid` is about to shut down.
    ///
    /// What has begun to subscribe is not interrupted: the broker may have sent it requests
    /// already.
    async fn serve_somewhere(
        &mut self,
        avoid: Option<&str>,
        stop: impl Future<Output = ()>,
    ) -> Option<LiveSession> {
        let mut stop = std::pin::pin!(stop);
        loop {
            let session = tokio::select! {
                session = self.dialer.dial(avoid) => session,
                () = &mut stop => return None,
            };
            if let Some(live) = self.serve_on(session).await {
                return Some(live);
            }
            let denied_for = self.denied.borrow().as_ref().map(|denied| denied.since.elapsed());
            if denied_for.is_some_and(|time| time > DENIED_LIMIT) {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(if denied_for.is_some() { DENIED_PAUSE } else { PAUSE }) => {}
                () = &mut stop => return None,
            }
        }
    }

    /// Says that a member is there, so that gateways that stand in for the last one go at once.
    async fn announce(&self, client: &Client) {
        let id = Bytes::copy_from_slice(self.instance.id().as_bytes());
        for subject in &self.instance.config.subjects {
            let announced = client.publish(control::presence_subject(subject), id.clone()).await;
            if let Err(error) = announced {
                debug!(%error, %subject, "arrival not announced");
            }
        }
    }

    /// Subscribes and starts to serve on a session; `None` (said in the log) if that fails.
    async fn serve_on(&self, session: Session) -> Option<LiveSession> {
        let control_plane = ControlPlane {
            instance: Arc::clone(&self.instance),
            admission: Rc::clone(&self.admission),
            leaving: Rc::clone(&self.leaving),
            speaks: self.index == 0,
            leave: self.leave_all.clone(),
        };
        let opened = async {
            // The control plane first: serving ends when the broker has seen all of it.
            let messages = control_plane.open(session.client()).await?;
            Ok::<_, async_nats::Error>((
                messages,
                Subscriptions::open(&session, &self.instance.config).await?,
            ))
        };
        // By the echo that opening ends with, the broker's objections are here too.
        let (messages, subscriptions) = match opened.await {
            _ if self.is_deaf(&session) => return None,
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "could not subscribe, trying again");
                return None;
            }
        };
        let client = Arc::clone(subscriptions.client());
        self.denied.take();
        self.admission.context.outbox.set(Some(Arc::clone(&client)));
        self.admission.context.spans.connected(session.address());
        self.announce(&client).await;
        let leave = CancellationToken::new();
        // Unconstrained, for a task's budget would make every handler that it starts here and now
        // wait for a second poll; it gives way to others by itself after each batch.
        let serving = tokio::task::unconstrained(
            subscriptions.serve(Rc::clone(&self.admission), leave.clone()),
        );
        let subscriptions = tokio::task::spawn_local(serving);
        let control_plane =
            tokio::task::spawn_local(control_plane.keep(Arc::clone(&client), messages));
        info!(
            subject = %self.instance.config.subjects[0],
            queue_group = %self.instance.config.queue_group,
            instance = %self.instance.id(),
            reader = self.index,
            broker = %session.address(),
            "serving"
        );
        Some(LiveSession {
            session,
            client,
            leave,
            subscriptions,
            control_plane: AbortOnDropHandle::new(control_plane),
        })
    }

    /// The session was lost, or is of no use: dials another. Handlers in flight answer by that one.
    /// `None` when told to leave, or when denied for too long.
    async fn replace(
        &mut self,
        lost: LiveSession,
        leave: &CancellationToken,
    ) -> Option<LiveSession> {
        self.admission.context.outbox.set(None);
        if self.denied.borrow().is_none() {
            warn!(reader = self.index, "broker connection lost, dialling again");
        }
        drop(lost);
        // Who is outside its queue groups for long may have been left behind by a rollout.
        let admission = Rc::clone(&self.admission);
        let _retired = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            tokio::time::sleep(LEASE).await;
            admission.context.unary.retire();
        }));
        self.serve_somewhere(None, leave.cancelled()).await
    }

    /// The server will shut down (then it is `avoid`) or does not answer: serves elsewhere as well,
    /// then leaves the old session by the fence. `None` when told to leave after the old session
    /// was lost.
    async fn step_aside(
        &mut self,
        mut old: LiveSession,
        avoid: Option<&str>,
        leave: &CancellationToken,
    ) -> Option<LiveSession> {
        let mut is_lost = false;
        let stop = async {
            loop {
                tokio::select! {
                    event = old.session.next_event() => match event {
                        SessionEvent::Lost => is_lost = true,
                        // It was a pause.
                        SessionEvent::Answers if avoid.is_none() => {}
                        _ => continue,
                    },
                    () = leave.cancelled() => {}
                }
                return;
            }
        };
        match self.serve_somewhere(avoid, stop).await {
            Some(live) => {
                self.retiring.retain(|retiring| !retiring.is_finished());
                self.retiring.push(tokio::task::spawn_local(retire(old)));
                Some(live)
            }
            None if is_lost => self.replace(old, leave).await,
            // Nothing is wrong with the old session yet, so leaving goes by it.
            None => Some(old),
        }
    }

    /// Leaves: hands over, fences, finishes what runs, sees its replies off. All of it within the
    /// drain timeout.
    async fn leave(&mut self, live: Option<LiveSession>) {
        self.leaving.set(true);
        if let Some(work) = &self.work {
            work.leave();
        }
        self.admission.context.unary.drain();
        let limit = self.instance.config.limits.drain;
        let deadline = Instant::now() + limit;
        let in_order = async {
            let parting = match live {
                Some(live) => self.leave_groups(live).await,
                None => None,
            };
            // Each of them fences on its own; what they take is in hand before the last of it is
            // waited for.
            join_all(self.retiring.drain(..)).await;
            self.admission.context.draining.cancel();
            self.finish(parting, deadline).await;
        };
        if tokio::time::timeout_at(deadline.into(), in_order).await.is_err() {
            let unfinished = self.admission.abandon();
            warn!(unfinished, ?limit, "leaving took longer than the drain timeout");
        }
    }

    /// Hands over and leaves by the fence; gives the session if it still lives.
    async fn leave_groups(&self, mut live: LiveSession) -> Option<LeavingSession> {
        let config = &self.instance.config;
        let handing_over = join_all(config.subjects.iter().map(|subject| {
            hand_over(&live.client, subject, &config.queue_group, &config.instance)
        }));
        tokio::select! {
            _ = handing_over => {}
            () = lost(&mut live.session) => {}
        }
        live.leave.cancel();
        match live.subscriptions.await {
            Ok((_, ServingEnd::Left)) => {
                debug!(
                    reader = self.index,
                    in_flight = self.admission.load.requests(),
                    "left the queue groups"
                );
                Some(LeavingSession { session: live.session, _house: Some(live.control_plane) })
            }
            Ok((_, ServingEnd::Lost)) | Err(_) => {
                self.admission.context.outbox.set(None);
                None
            }
        }
    }

    /// Waits for what is in hand: requests, which may yet begin streams, and then streams. A
    /// request that hangs keeps no stream from ending in the way of its kind.
    async fn finish(&mut self, parting: Option<LeavingSession>, deadline: Instant) {
        let context = Arc::clone(&self.admission.context);
        let drain = StreamDrain::until(deadline);
        let requests = async {
            self.finish_requests(parting).await;
            context.unary.leave(deadline).await;
        };
        let mut requests = pin!(requests);
        let have_ended = tokio::time::timeout_at(drain.end_at.into(), &mut requests).await;
        let streams = context.streams.leave(drain);
        match have_ended {
            Ok(()) => streams.await,
            Err(_) => drop(join(requests, streams).await),
        }
    }

    /// Waits for the handlers that run, with a session to answer by, and until the broker has all
    /// of their replies.
    async fn finish_requests(&mut self, mut parting: Option<LeavingSession>) {
        let (load, work) = (Arc::clone(&self.admission.load), self.work.clone());
        let finished = async {
            if let Some(work) = work {
                work.finished().await;
            }
            load.empty().await;
        };
        let mut finished = pin!(finished);
        let outbox = &self.admission.context.outbox;
        loop {
            match &mut parting {
                Some(by) => tokio::select! {
                    () = &mut finished => break,
                    () = lost(&mut by.session) => {
                        outbox.set(None);
                        parting = None;
                    }
                },
                None => tokio::select! {
                    () = &mut finished => break,
                    session = self.dialer.dial(None) => {
                        outbox.set(Some(Arc::new(session.client().clone())));
                        parting = Some(LeavingSession { session, _house: None });
                    }
                },
            }
        }
        if let Some(by) = parting
            && let Err(error) = echo(by.session.client()).await
        {
            warn!(%error, "the broker did not confirm the last replies");
        }
    }
}

/// Waits until a session is lost, whatever else happens to it.
async fn lost(session: &mut Session) {
    while session.next_event().await != SessionEvent::Lost {}
}

/// Leaves a session whose server shuts down or does not answer, once another one serves.
async fn retire(old: LiveSession) {
    tokio::time::sleep(OVERLAP).await;
    old.leave.cancel();
    let Ok((subscriptions, ServingEnd::Left)) = old.subscriptions.await else { return };
    // Handlers that looked the client up before the move may still be handing over their replies.
    drop(subscriptions);
    // This one and the control plane's are all that is left then.
    while Arc::strong_count(&old.client) > 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    match echo(&old.client).await {
        Ok(()) => debug!("left the old connection"),
        Err(error) => debug!(%error, "the server went before it had confirmed the last replies"),
    }
}
