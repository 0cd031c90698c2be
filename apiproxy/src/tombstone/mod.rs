//! Standing in for the last worker of a subject.
//!
//! In a cluster, a server that receives a routed message after its last local member left drops it,
//! and nobody is told (`no responders` was decided elsewhere). So a worker that leaves and finds no
//! other member asks the gateways to join its queue group first. What reaches a gateway there is
//! answered `moved`: it never ran, and whoever sent it tries again. A tombstone goes when a member
//! is back, after an hour, or when there are too many: then the oldest gives way, once every server
//! has heard that there is no member and answers by itself what is sent.
//!
//! A rollout that has left a version has every gateway stand in for it without being asked, members
//! or not. Not while it drains: who still sends there then, because it is cut off from the routes,
//! has no other version to try.

mod standin;

use std::collections::{HashMap, HashSet};
use std::future::ready;
use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_routes::document::RouteDocument;
use natsway_routes::rollout::Phase;
use natsway_routes::watch::ActiveRoutes;
use natsway_wire::control::{is_inbox, presence_subject, tombstone_prefix};
use natsway_wire::envelope::{NotRun, Signal, encode_signal};
use natsway_wire::{QueueGroup, Subject as ServiceSubject};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, info, warn};

use self::standin::{Action, Event, StandIn};

/// How long a tombstone stands when no member comes back: longer than any sender takes to hear of a
/// new route.
const LIFETIME: Duration = Duration::from_secs(3_600);

/// How often a tombstone asks whether a member is back.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// How long it waits for its own echo.
const ECHO_TIMEOUT: Duration = Duration::from_secs(2);

/// The most subjects that one gateway stands in for. Whoever may ask for a tombstone may ask for as
/// many, so it must not take an hour until there is room again.
const MOST_TOMBSTONES: usize = 1_024;

/// From this age on a tombstone may give way. It is there for messages that a server lets go
/// because it has not heard yet that the last member left, and servers hear of it within seconds.
/// From then on a request finds no responders, which says as surely as `moved` that it did not run.
/// So what is lost by giving way is the name of the reason.
const MAY_GIVE_WAY_AFTER: Duration = Duration::from_secs(60);

/// How many may be about to leave while others take their places.
const MOST_LEAVING: usize = 64;

/// What happens at places that is not heard of yet.
const EVENTS: usize = 256;

/// A subject and the queue group of its workers.
type ServiceGroup = (ServiceSubject, QueueGroup);

/// Who asks: where to tell that the worker may go.
type Asker = Option<Subject>;

/// A place, and what is under way there; dropped, that ends.
struct StandInSubscription {
    standin: StandIn<Asker>,
    /// When it was asked for last.
    asked: Instant,
    /// Has the queue group left.
    leave: CancellationToken,
    _stand: Option<AbortOnDropHandle<()>>,
    _watch: Option<AbortOnDropHandle<()>>,
}

/// Takes requests for tombstones for as long as the client lives.
pub async fn keep(client: Client) {
    let mut asked = match client.subscribe(format!("{}.>", tombstone_prefix())).await {
        Ok(asked) => asked,
        Err(error) => {
            warn!(%error, "cannot stand in for leaving workers");
            return;
        }
    };
    let (happens, mut events) = mpsc::channel(EVENTS);
    let mut places = StandIns { client, happens, held: HashMap::new() };
    loop {
        tokio::select! {
            message = asked.next() => match message {
                Some(message) => places.asked(message).await,
                None => return,
            },
            Some((place, event)) = events.recv() => places.on(place, event).await,
        }
    }
}

/// All places that this gateway stands in at when it is asked to.
struct StandIns {
    client: Client,
    happens: mpsc::Sender<(ServiceGroup, Event<Asker>)>,
    held: HashMap<ServiceGroup, StandInSubscription>,
}

impl StandIns {
    async fn asked(&mut self, message: Message) {
        let Some(place) = parse(&message) else {
            debug!(subject = %message.subject, "request for a tombstone that names no subject or \
                                                queue group");
            return;
        };
        let now = Instant::now();
        if let Some(held) = self.held.get_mut(&place) {
            held.asked = now;
            return self.on(place, Event::Asked(message.reply)).await;
        }
        match make_room(
            self.held.iter().map(|(place, held)| (place, held.standin.stands(), held.asked)),
            now,
        ) {
            Room::Free => {}
            Room::Instead(oldest) => {
                let oldest = oldest.clone();
                debug!(service = %oldest.0, "gives way: there are too many to stand in for");
                self.on(oldest, Event::Superseded).await;
            }
            // Not told, so that the worker asks another gateway.
            Room::None => {
                return warn!(service = %place.0, most = MOST_TOMBSTONES, "not standing in: there are too many already");
            }
        }
        let held = StandInSubscription {
            standin: StandIn::new(message.reply),
            asked: now,
            leave: CancellationToken::new(),
            _stand: None,
            _watch: None,
        };
        self.held.insert(place.clone(), held);
        self.act(place, Action::Join).await;
    }

    async fn on(&mut self, place: ServiceGroup, event: Event<Asker>) {
        let Some(held) = self.held.get_mut(&place) else { return };
        for action in held.standin.on(event) {
            self.act(place.clone(), action).await;
        }
    }

    async fn act(&mut self, place: ServiceGroup, action: Action<Asker>) {
        let Some(held) = self.held.get_mut(&place) else { return };
        match action {
            Action::Join => {
                held.leave = CancellationToken::new();
                let stand =
                    stand(self.client.clone(), place, held.leave.clone(), self.happens.clone());
                held._stand = Some(AbortOnDropHandle::new(tokio::spawn(stand)));
            }
            Action::Watch(number) => {
                // The broker knows of it before the worker is told that it may go.
                let arrivals = self.client.subscribe(presence_subject(&place.0)).await;
                let (client, happens) = (self.client.clone(), self.happens.clone());
                held._watch = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    member_returns(&client, &place.0, arrivals).await;
                    happens.send((place, Event::Back(number))).await.ok();
                })));
            }
            Action::Confirm(asker) => confirm(&self.client, asker).await,
            Action::Leave => held.leave.cancel(),
            Action::End => {
                self.held.remove(&place);
            }
        }
    }
}

/// Whether there is a place for one more tombstone.
#[derive(Debug, PartialEq, Eq)]
enum Room<P> {
    /// There is.
    Free,
    /// This one gives way.
    Instead(P),
    /// None is old enough to give way, or too many are about to.
    None,
}

/// Finds room among those that are held: each with whether it stands, and when it was asked for
/// last.
fn make_room<P>(held: impl ExactSizeIterator<Item = (P, bool, Instant)>, now: Instant) -> Room<P> {
    let all = held.len();
    if all < MOST_TOMBSTONES {
        return Room::Free;
    }
    if all >= MOST_TOMBSTONES + MOST_LEAVING {
        return Room::None;
    }
    held.filter(|(_, stands, asked)| *stands && now.duration_since(*asked) >= MAY_GIVE_WAY_AFTER)
        .min_by_key(|(_, _, asked)| *asked)
        .map_or(Room::None, |(oldest, _, _)| Room::Instead(oldest))
}

/// Stands in for the versions that rollouts have left, from the moment that their route says so:
/// what a gateway still sends there that was frozen meanwhile is answered `moved`, whether or not
/// workers are left. Each is left in order, by a task among `tasks`.
pub async fn of_rollouts(client: Client, active_routes: ActiveRoutes, tasks: TaskTracker) {
    let mut revisions = active_routes.revisions.subscribe();
    let mut standing = HashMap::<ServiceGroup, DropGuard>::new();
    loop {
        revisions.borrow_and_update();
        let retired: HashSet<ServiceGroup> = active_routes
            .status
            .load()
            .rollouts
            .iter()
            .filter_map(|(_, document)| retired(document))
            .collect();
        standing.retain(|place, _| retired.contains(place));
        for place in retired {
            if standing.len() < MOST_TOMBSTONES && !standing.contains_key(&place) {
                let until = CancellationToken::new();
                tasks.spawn(stand_for_retired(client.clone(), place.clone(), until.clone()));
                standing.insert(place, until.drop_guard());
            }
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// What a route's rollout has left for good, unless a rule still sends requests there.
fn retired(document: &RouteDocument) -> Option<ServiceGroup> {
    let rollout = document.rollout.as_ref()?;
    if matches!(rollout.phase, Phase::Draining | Phase::Reverting) {
        return None;
    }
    let version = rollout.retired().filter(|version| !document.has_rule_for(version))?;
    let ended_unix_ms = rollout.history.last().map_or(0, |note| note.unix_ms);
    let age = Duration::from_millis(crate::rollout::unix_ms().saturating_sub(ended_unix_ms));
    // A gateway that starts long after has nothing to stand in for.
    if !rollout.phase.is_active() && age > LIFETIME {
        return None;
    }
    let route = document.check(None).ok()?;
    let target = route.split.targets().iter().find(|target| target.version == version)?;
    // Rollouts are not the only ones who set weights.
    (target.weight == 0).then(|| (target.subject.clone(), target.queue_group.clone()))
}

async fn stand_for_retired(
    client: Client,
    (service, queue_group): ServiceGroup,
    until: CancellationToken,
) {
    let joined = client.queue_subscribe(service.to_string(), queue_group.to_string()).await;
    let mut requests = match joined {
        Ok(requests) => requests,
        Err(error) => return warn!(%service, %error, "cannot stand in for a version that was left"),
    };
    debug!(%service, "standing in for a version that was left");
    let expired = tokio::time::sleep(LIFETIME);
    tokio::pin!(expired);
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(request) => moved(&client, request).await,
                None => return,
            },
            () = until.cancelled() => break,
            () = &mut expired => break,
        }
    }
    if let Some(mut echo) = Echo::new(&client).await {
        leave(&client, requests, &mut echo).await;
    }
    debug!(%service, "not standing in any more");
}

/// The subject and queue group that a worker names: the subject behind the prefix, the group in the
/// payload.
fn parse(message: &Message) -> Option<ServiceGroup> {
    let service = message.subject.strip_prefix(&tombstone_prefix())?.strip_prefix('.')?;
    let queue_group = std::str::from_utf8(&message.payload).ok()?;
    Some((service.parse().ok()?, queue_group.parse().ok()?))
}

/// Joins a queue group and answers `moved` until it is to `leave`; says when the broker has taken
/// it in, and when it is over.
async fn stand(
    client: Client,
    place: ServiceGroup,
    leave: CancellationToken,
    happens: mpsc::Sender<(ServiceGroup, Event<Asker>)>,
) {
    let (service, queue_group) = &place;
    let joined = client.queue_subscribe(service.to_string(), queue_group.to_string()).await;
    let mut requests = match joined {
        Ok(requests) => requests,
        Err(error) => {
            warn!(%service, %error, "cannot stand in for a leaving worker");
            happens.send((place, Event::NotJoined)).await.ok();
            return;
        }
    };
    // The echo shows that the broker has taken the subscription in; only then may the worker go.
    let Some(mut echo) = Echo::heard_first(&client).await else {
        warn!(%service, "cannot stand in for a leaving worker: the broker does not answer");
        happens.send((place, Event::NotJoined)).await.ok();
        return;
    };
    info!(%service, "standing in for the last worker");
    happens.send((place.clone(), Event::Joined)).await.ok();
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(request) => moved(&client, request).await,
                None => break,
            },
            () = leave.cancelled() => break,
        }
    }
    self::leave(&client, requests, &mut echo).await;
    info!(%service, "not standing in any more");
    happens.send((place, Event::Left)).await.ok();
}

/// Waits until a member says that it has come, or answers when asked: the first may have been
/// missed. After an hour it is over as well.
async fn member_returns(
    client: &Client,
    service: &ServiceSubject,
    arrivals: Result<Subscriber, SubscribeError>,
) {
    let presence = presence_subject(service);
    let mut arrivals = match arrivals {
        Ok(arrivals) => arrivals.filter(|message| ready(!message.payload.is_empty())),
        Err(error) => return warn!(%service, %error, "cannot hear of arriving workers"),
    };
    let expired = tokio::time::sleep(LIFETIME);
    tokio::pin!(expired);
    let mut pace = tokio::time::interval(PROBE_INTERVAL);
    loop {
        tokio::select! {
            Some(_) = arrivals.next() => return,
            () = &mut expired => return,
            _ = pace.tick() => {}
        }
        // Its own subscription hears the question as well, so this waits for an answer rather than
        // for a refusal.
        let question = async_nats::Request::new().timeout(Some(PROBE_INTERVAL / 2));
        tokio::select! {
            Some(_) = arrivals.next() => return,
            answer = client.send_request(presence.clone(), question) => if answer.is_ok() { return },
        }
    }
}

/// Leaves the queue group without losing what is on its way: unsubscribe in the one form that keeps
/// the client's side open, hear one's own echo, answer what came before it.
async fn leave(client: &Client, mut requests: Subscriber, echo: &mut Echo) {
    // More than nine digits: the broker refuses the count and unsubscribes at once, the client goes
    // on delivering.
    if requests.unsubscribe_after(u64::MAX).await.is_err() {
        return;
    }
    let heard = echo.heard();
    tokio::pin!(heard);
    loop {
        tokio::select! {
            biased;
            Some(request) = requests.next() => moved(client, request).await,
            _ = &mut heard => break,
        }
    }
    // What was delivered before the echo is in the subscription's buffer now.
    while let Some(Some(request)) =
        futures_util::FutureExt::now_or_never(tokio::task::unconstrained(requests.next()))
    {
        moved(client, request).await;
    }
}

async fn moved(client: &Client, request: Message) {
    // A sender that asks for the answer elsewhere would have us publish there for it.
    let Some(reply) = request.reply.filter(|reply| is_inbox(reply)) else { return };
    if let Err(error) = client.publish(reply, encode_signal(&Signal::NotRun(NotRun::Moved))).await {
        debug!(%error, "sender not told that its request did not run");
    }
}

async fn confirm(client: &Client, asker: Option<Subject>) {
    let Some(asker) = asker.filter(|asker| is_inbox(asker)) else { return };
    if let Err(error) = client.publish(asker, Bytes::new()).await {
        debug!(%error, "worker not told that it may go");
    }
}

/// A message to oneself: when it is back, the broker has done all that was asked of it before.
struct Echo {
    client: Client,
    inbox: String,
    echoes: async_nats::Subscriber,
}

impl Echo {
    async fn new(client: &Client) -> Option<Self> {
        let inbox = client.new_inbox();
        let echoes = client.subscribe(inbox.clone()).await.ok()?;
        Some(Self { client: client.clone(), inbox, echoes })
    }

    /// One that was heard once; `None` when the broker does not answer.
    async fn heard_first(client: &Client) -> Option<Self> {
        let mut echo = Self::new(client).await?;
        echo.heard().await.then_some(echo)
    }

    /// Waits for an echo, not for ever; says whether it came.
    async fn heard(&mut self) -> bool {
        let echoed = async {
            self.client.publish(self.inbox.clone(), Bytes::new()).await.is_ok()
                && self.echoes.next().await.is_some()
        };
        let heard = tokio::time::timeout(ECHO_TIMEOUT, echoed).await.unwrap_or(false);
        if !heard {
            debug!("no echo from the broker in time");
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_once_it_may_and_no_more_leave_than_is_said() {
        let now = Instant::now() + LIFETIME;
        let held = |count: usize, age: Duration| {
            // The last one is the oldest.
            (0..count)
                .map(move |place| (place, true, now - age - Duration::from_millis(place as u64)))
        };
        assert_eq!(make_room(held(MOST_TOMBSTONES - 1, LIFETIME / 2), now), Room::Free);
        let full = held(MOST_TOMBSTONES, MAY_GIVE_WAY_AFTER);
        assert_eq!(make_room(full, now), Room::Instead(MOST_TOMBSTONES - 1));
        // Those of a flood that has just begun are no older than what they would push out.
        assert_eq!(make_room(held(MOST_TOMBSTONES, Duration::ZERO), now), Room::None);
        let leaving =
            held(MOST_TOMBSTONES, LIFETIME / 2).map(|(place, _, asked)| (place, place < 3, asked));
        assert_eq!(make_room(leaving, now), Room::Instead(2));
        assert_eq!(make_room(held(MOST_TOMBSTONES + MOST_LEAVING, LIFETIME / 2), now), Room::None);
    }
}
