//! Drives the rollouts: watches what all senders report, asks [`machine`](super::machine) what to
//! do, and does it.
//!
//! Every gateway watches, so that each knows the metrics since a step began when the one that
//! drives is gone. Only the one with the lease acts.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use natsway_boot::exposition::Page;
use natsway_routes::document::RouteDocument;
use natsway_routes::peers::{PeerLimits, ReportFault};
use natsway_routes::report::{ANSWER_GAP, Progress};
use natsway_routes::rollout::{Phase, Rollout};
use natsway_routes::store::{RouteStore, StoreErrorKind};
use natsway_routes::table::Route;
use natsway_routes::watch::{ActiveRoutes, Bucket};
use natsway_wire::control;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::analysis::AnalysisResult;
use super::fleet::{Baseline, Fleet};
use super::machine::{Action, Observation, Workers, behind, next, verdict};
use super::{check, lease, unix_ms};

/// How often it polls.
const PACE: Duration = Duration::from_millis(100);

/// Polls between two verdicts on latency: one second, as often as there are new metrics.
const POLLS_PER_VERDICT: u32 = 10;

/// After a pause of this length nothing that was seen before is trusted: others have gone on
/// meanwhile.
const STALL: Duration = Duration::from_secs(2);

/// Between two words about reports that are not believed: whoever forges them must not fill the
/// log.
const COMPLAINT_GAP: Duration = Duration::from_secs(60);

/// The reports that were not believed, by why.
#[derive(Debug, Default)]
pub struct ReportFaults([AtomicU64; ReportFault::ALL.len()]);

impl ReportFaults {
    fn count(&self, fault: ReportFault) {
        self.0[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts in the text format of Prometheus.
    pub fn page(&self) -> String {
        let mut page = Page::default();
        let name = "natsway_reports_rejected_total";
        page.family(name, "counter", "Reports of senders that were not believed, by why.");
        for why in ReportFault::ALL {
            let count = self.0[why as usize].load(Ordering::Relaxed);
            page.sample(name, &format!("reason=\"{}\"", why.as_str()), count);
        }
        page.text()
    }
}

/// How far the rollouts are, for this gateway's reports.
pub type Progresses = Arc<Mutex<Vec<Progress>>>;

/// What a driver works with.
pub struct Driver {
    client: Client,
    bucket: String,
    replicas: usize,
    active_routes: ActiveRoutes,
    progresses: Progresses,
    fleet: Fleet,
    watched: BTreeMap<String, Watched>,
    jobs: JoinSet<(String, Key, Done)>,
    report_faults: Arc<ReportFaults>,
    /// When a fault was logged last.
    fault_logged: Option<Instant>,
    /// Whether all senders are to be asked.
    asks: bool,
    wanted: watch::Sender<bool>,
    last_poll: Instant,
    /// Since when it hears everybody's reports.
    listening_since: Instant,
    /// How often the client had connected by then: what was said in between was said to nobody
    /// here.
    connects: u64,
    /// When it asked all senders last.
    asked: Option<Instant>,
    /// Whether requests of some route may go by tunnels, or might since this began: who was cut off
    /// may go by routes of then.
    uses_tunnels: bool,
}

/// A phase and step of a rollout: what is seen of it counts from its beginning.
type Key = (String, Phase, usize, bool);

/// One rollout, as it was seen since its phase and step began.
struct Watched {
    key: Key,
    since: Instant,
    baseline: Baseline,
    polls: u32,
    slow_polls: u32,
    check: Option<Result<String, String>>,
    workers: Option<Workers>,
    /// Something is being done about it.
    is_busy: bool,
    /// The revision that was written over: the document is about to change.
    written_over: Option<u64>,
}

/// What came of an action.
enum Done {
    Asked,
    Checked(Result<String, String>),
    Counted(Result<Workers, String>),
    Wrote(u64, Result<(), StoreErrorKind>),
}

impl Driver {
    /// A driver of the rollouts in the routes of `bucket`.
    pub fn new(
        client: Client,
        bucket: &Bucket,
        active_routes: ActiveRoutes,
        progresses: Progresses,
        limits: PeerLimits,
        report_faults: Arc<ReportFaults>,
    ) -> Self {
        Self {
            client,
            bucket: bucket.name.clone(),
            replicas: bucket.replicas,
            active_routes,
            progresses,
            fleet: Fleet::new(limits),
            watched: BTreeMap::new(),
            jobs: JoinSet::new(),
            report_faults,
            fault_logged: None,
            asks: true,
            wanted: watch::Sender::new(false),
            last_poll: Instant::now(),
            listening_since: Instant::now(),
            connects: 0,
            asked: None,
            uses_tunnels: false,
        }
    }

    /// Watches and drives for ever, as the gateway `id`.
    pub async fn run(mut self, id: String) {
        let subscribed = async {
            let reports = self.client.subscribe(control::metrics_subject("*", "*")).await?;
            let old = self.client.subscribe(control::old_metrics_subject("*")).await?;
            Ok::<_, async_nats::SubscribeError>((reports, old))
        };
        let (mut reports, mut old_reports): (Subscriber, Subscriber) = match subscribed.await {
            Ok(subscribed) => subscribed,
            Err(error) => return warn!(%error, "rollouts are not driven from here"),
        };
        let (held, holds) = (watch::Sender::new(false), self.wanted.subscribe());
        let has_lease = held.subscribe();
        tokio::spawn(lease::keep(self.client.clone(), id, self.replicas, holds, held));
        self.listening_since = Instant::now();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(message) = reports.next() => self.hear(&message),
                Some(message) = old_reports.next() => self.hear(&message),
                Some(Ok((route, key, done))) = self.jobs.join_next() => self.done(&route, &key, done),
                _ = pace.tick() => {
                    let drives = *has_lease.borrow();
                    self.poll(drives).await;
                }
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        let heard = self.fleet.hear(&message.subject, &message.payload, Instant::now());
        self.asks |= heard.is_incomplete;
        let Some(fault) = heard.fault else { return };
        self.report_faults.count(fault);
        if self.fault_logged.is_none_or(|at| at.elapsed() > COMPLAINT_GAP) {
            self.fault_logged = Some(Instant::now());
            let (subject, why) = (&message.subject, fault.as_str());
            warn!(%subject, why, "a sender's report is not believed: see \
                                  natsway_reports_rejected_total");
        }
    }

    /// Asks all senders for all of their metrics, if that is wanted and was not just done.
    async fn ask_senders(&mut self) {
        if !self.asks || self.asked.is_some_and(|at| at.elapsed() < ANSWER_GAP) {
            return;
        }
        (self.asks, self.asked) = (false, Some(Instant::now()));
        if let Err(error) = self.client.publish(control::report_subject(), "".into()).await {
            debug!(%error, "senders not asked");
        }
    }

    fn done(&mut self, route: &str, key: &Key, done: Done) {
        let Some(watched) = self.watched.get_mut(route).filter(|watched| watched.key == *key)
        else {
            return;
        };
        watched.is_busy = false;
        match done {
            Done::Checked(outcome) => watched.check = Some(outcome),
            Done::Counted(Ok(workers)) => watched.workers = Some(workers),
            Done::Counted(Err(error)) => debug!(route, error, "workers not asked to leave"),
            Done::Wrote(revision, Ok(()) | Err(StoreErrorKind::Conflict)) => {
                watched.written_over = Some(revision)
            }
            Done::Asked | Done::Wrote(..) => {}
        }
    }

    /// Sees how far every rollout is, and does what is next if this gateway `drives`.
    async fn poll(&mut self, drives: bool) {
        let now = Instant::now();
        if now.duration_since(self.last_poll) > STALL {
            self.watched.clear();
            self.listening_since = now;
        }
        self.last_poll = now;
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        let is_connected = self.client.connection_state() == State::Connected;
        if !is_connected || std::mem::replace(&mut self.connects, connects) != connects {
            self.listening_since = now;
        }
        self.fleet.forget(now);
        let reading = self.active_routes.status.load_full();
        self.uses_tunnels |= reading.uses_tunnels;
        let active: HashMap<&str, _> = reading
            .rollouts
            .iter()
            .filter_map(|(revision, document)| {
                let rollout =
                    document.rollout.as_ref().filter(|rollout| rollout.phase.is_active())?;
                Some((document.name.as_str(), (*revision, document, rollout)))
            })
            .collect();
        self.watched.retain(|route, _| active.contains_key(route.as_str()));
        self.wanted.send_if_modified(|wanted| {
            std::mem::replace(wanted, !active.is_empty()) == active.is_empty()
        });
        let mut progresses = Vec::new();
        for (revision, document, rollout) in active.into_values() {
            let (progress, action) = self.decide(reading.bucket, revision, document, rollout, now);
            progresses.push(Progress { driving: drives, ..progress });
            match action {
                Some(Action::AskSenders) if drives => self.asks = true,
                Some(action) if drives => self.act(revision, document, action),
                _ => {}
            }
        }
        *self.progresses.lock().unwrap_or_else(PoisonError::into_inner) = progresses;
        self.ask_senders().await;
    }

    fn decide(
        &mut self,
        bucket: u64,
        revision: u64,
        document: &RouteDocument,
        rollout: &Rollout,
        now: Instant,
    ) -> (Progress, Option<Action>) {
        let route = document.name.as_str();
        let key = (rollout.id.clone(), rollout.phase, rollout.step, rollout.paused);
        let Rollout { from, to, .. } = rollout;
        let fleet = &self.fleet;
        let begin = || Watched {
            key: key.clone(),
            since: now,
            baseline: fleet.baseline(route, from, to, now),
            polls: 0,
            slow_polls: 0,
            check: None,
            workers: None,
            is_busy: false,
            written_over: None,
        };
        let watched = self.watched.entry(route.to_owned()).or_insert_with(begin);
        if watched.key != key {
            *watched = begin();
        }
        let window = fleet.window(route, from, to, &watched.baseline, now);
        let verdict = verdict(rollout, &window);
        watched.polls += 1;
        if watched.polls.is_multiple_of(POLLS_PER_VERDICT) {
            let is_slower = matches!(verdict, Some(AnalysisResult::Slower(_)));
            watched.slow_polls = if is_slower { watched.slow_polls + 1 } else { 0 };
        }
        let in_phase = now.duration_since(watched.since);
        let senders = fleet.senders(bucket, route, rollout.retired().unwrap_or_default(), now);
        let progress = Progress {
            route: route.to_owned(),
            driving: false,
            in_phase_ms: u64::try_from(in_phase.as_millis()).unwrap_or(u64::MAX),
            old: window.old.clone(),
            new: window.new.clone(),
            verdict: verdict.as_ref().map(ToString::to_string),
            behind: senders.iter().filter_map(|sender| behind(sender, revision)).collect(),
        };
        let observation = Observation {
            in_phase,
            window,
            slow_polls: watched.slow_polls,
            check: watched.check.as_ref(),
            listened: now.duration_since(self.listening_since),
            uses_tunnels: self.uses_tunnels,
            senders: &senders,
            workers: watched.workers,
        };
        // What was written is on its way back; until then the document is one of the past.
        let is_settled = !watched.is_busy && watched.written_over != Some(revision);
        let action =
            if is_settled { next(document, revision, &observation, unix_ms()) } else { None };
        (progress, action)
    }

    /// Starts what is to be done about a document; [`Done`] tells what came of it.
    fn act(&mut self, revision: u64, document: &RouteDocument, action: Action) {
        let Some(watched) = self.watched.get_mut(&document.name) else { return };
        let Some(rollout) = document.rollout.clone() else { return };
        let Ok(checked) = document.check(None) else { return };
        watched.is_busy = true;
        let (route, key) = (document.name.clone(), watched.key.clone());
        let (client, bucket) = (self.client.clone(), self.bucket.clone());
        self.jobs.spawn(async move {
            let done = match action {
                // Asked for all rollouts together.
                Action::AskSenders => return (route, key, Done::Asked),
                Action::Check => Done::Checked(ask_new(&client, &checked, &rollout).await),
                Action::AskToLeave => Done::Counted(ask_old(&client, &checked, &rollout).await),
                Action::Write(document) => {
                    Done::Wrote(revision, write(client, &bucket, &document, revision).await)
                }
            };
            (route, key, done)
        });
    }
}

fn target<'r>(
    route: &'r Route,
    version: &str,
) -> Result<&'r natsway_routes::table::Target, String> {
    let found = route.split.targets().iter().find(|target| target.version == version);
    found.ok_or_else(|| format!("{version} is no version of {}", route.name))
}

/// The pause makes one check a second of one that fails at once.
async fn ask_new(client: &Client, route: &Route, rollout: &Rollout) -> Result<String, String> {
    let answered =
        check::answers(client, target(route, &rollout.to)?, route, rollout.smoke.as_deref()).await;
    if answered.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    answered
}

async fn ask_old(client: &Client, route: &Route, rollout: &Rollout) -> Result<Workers, String> {
    check::ask_to_leave(client, target(route, &rollout.from)?, route.codec).await
}

async fn write(
    client: Client,
    bucket: &str,
    document: &RouteDocument,
    revision: u64,
) -> Result<(), StoreErrorKind> {
    let written =
        async { RouteStore::open(client, bucket).await?.put(document, Some(revision)).await };
    match written.await {
        Ok(revision) => {
            let what = document.rollout.as_ref().and_then(|rollout| rollout.history.last());
            let what = what.map_or("", |note| note.what.as_str());
            info!(route = document.name, revision, "rollout: {what}");
            Ok(())
        }
        Err(error) if error.kind() == StoreErrorKind::Conflict => {
            debug!(route = document.name, revision, "another wrote first");
            Err(error.kind())
        }
        Err(error) => {
            warn!(route = document.name, %error, "rollout's step not written, trying again");
            Err(error.kind())
        }
    }
}
