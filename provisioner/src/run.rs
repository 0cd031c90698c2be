//! A provisioner at work: it waits for the lease, and while it leads it keeps a task for each
//! target.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::StreamExt;
use natsway_boot::Clock;
use natsway_stores::lease::Lease;
use natsway_wire::control::is_inbox;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::{Config, SignalDocument, TargetConfig};
use crate::events::{Board, Status, decision_subject, publish, queues_subject, status_subject};
use crate::signal::discover;
use crate::target::ScaleTarget;

/// How often names that match patterns are looked up.
const DISCOVERY: Duration = Duration::from_secs(3);

/// A name that matched and is gone for so long is not scaled any more. Longer than anybody takes to
/// make a consumer anew.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How often the busy and the quiet queues are told: QueueWatch's poll.
const QUEUES: Duration = Duration::from_secs(5);

/// Between two attempts to open a target.
const REOPEN: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled. Without a lease it leads at once and alone.
///
/// Nothing is stopped when it ends: instances live on, and whoever leads next goes on with them.
pub async fn run(
    client: Client,
    id: &str,
    lease: Option<Lease>,
    config: watch::Receiver<Arc<Config>>,
    stop: CancellationToken,
) {
    loop {
        let held = match &lease {
            None => None,
            Some(lease) => tokio::select! {
                held = lease.acquire() => Some(held),
                () = stop.cancelled() => return,
            },
        };
        info!(id, "leading");
        let term = Term::new(client.clone(), id, lease.as_ref().map(Lease::key), config.clone());
        let end = stop.child_token();
        let mut leading = tokio::spawn(term.lead(end.clone()));
        let Some(mut held) = held else {
            end.cancelled().await;
            finish(leading).await;
            return;
        };
        tokio::select! {
            () = held.keep() => warn!(id, "lease lost, standing by"),
            () = stop.cancelled() => {}
            _ = &mut leading => warn!(id, "leading ended"),
        }
        end.cancel();
        if !leading.is_finished() {
            finish(leading).await;
        }
        if stop.is_cancelled() {
            held.release().await;
            return;
        }
    }
}

async fn finish(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        warn!(%error, "a task failed");
    }
}

/// The time for which a provisioner leads.
struct Term {
    client: Client,
    id: String,
    lease: Option<String>,
    config: watch::Receiver<Arc<Config>>,
    board: Board,
    clock: Clock,
    workers: HashMap<String, Worker>,
    /// Names that matched each pattern, by target, and when they were last seen.
    matches: HashMap<String, BTreeMap<String, Instant>>,
}

/// The task of one target.
struct Worker {
    config: watch::Sender<TargetConfig>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Term {
    fn new(
        client: Client,
        id: &str,
        lease: Option<&str>,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        Self {
            client,
            id: id.to_owned(),
            lease: lease.map(str::to_owned),
            config,
            board: Board::default(),
            clock: Clock::start(),
            workers: HashMap::new(),
            matches: HashMap::new(),
        }
    }

    async fn lead(mut self, end: CancellationToken) {
        let since_ms = crate::signal::now_ms(&self.clock);
        let (leader, lease) = (self.id.clone(), self.lease.clone());
        let about =
            Status { leader, lease, since_ms, targets: Vec::new(), decisions: BTreeMap::new() };
        let answering = tokio::spawn(answer(self.client.clone(), about, self.board.clone()));
        let answering = tokio_util::task::AbortOnDropHandle::new(answering);
        let mut discovery = tokio::time::interval(DISCOVERY);
        let mut queues = tokio::time::interval(QUEUES);
        for pace in [&mut discovery, &mut queues] {
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                _ = discovery.tick() => self.arrange().await,
                changed = self.config.changed() => match changed {
                    Ok(()) => self.arrange().await,
                    // Nobody can change it any more.
                    Err(_) => end.cancelled().await,
                },
                _ = queues.tick() => self.publish_queues().await,
                () = end.cancelled() => break,
            }
        }
        drop(answering);
        for worker in self.workers.values() {
            worker.stop.cancel();
        }
        for (_, worker) in self.workers {
            finish(worker.task).await;
        }
    }

    /// Starts a task for each target that has none, tells the others what changed, and
    /// ends those that are not wanted.
    async fn arrange(&mut self) {
        let config = Arc::clone(&self.config.borrow_and_update());
        let mut wanted = BTreeMap::new();
        for target in &config.targets {
            for concrete in self.concrete(target).await {
                wanted.insert(concrete.name().to_owned(), concrete);
            }
        }
        let unwanted: Vec<String> =
            self.workers.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in unwanted {
            if let Some(worker) = self.workers.remove(&name) {
                info!(target_name = %name, "no longer scaled; its instances stay as they are");
                worker.stop.cancel();
                finish(worker.task).await;
                self.board.remove(&name);
            }
        }
        for (name, target) in wanted {
            match self.workers.get(&name) {
                Some(worker) if !worker.task.is_finished() => {
                    worker.config.send_if_modified(|config| {
                        let differs = *config != target;
                        *config = target;
                        differs
                    });
                }
                _ => {
                    let worker = self.start(target);
                    self.workers.insert(name, worker);
                }
            }
        }
    }

    /// The target itself, or one for each name that matches its pattern. While they cannot be
    /// looked up, those that were there stay.
    async fn concrete(&mut self, target: &TargetConfig) -> Vec<TargetConfig> {
        let Some(pattern) = target.pattern() else { return vec![target.clone()] };
        let found = match target.signal() {
            SignalDocument::Consumer { stream, .. } => {
                discover::consumers(&self.client, stream, &pattern).await
            }
            _ => discover::services(&self.client, &pattern).await,
        };
        let known = self.matches.entry(target.name().to_owned()).or_default();
        match found {
            // One that is gone may be back in a moment: it stays, and its target is frozen
            // meanwhile.
            Ok(found) => {
                let now = Instant::now();
                known.extend(found.into_iter().map(|name| (name, now)));
                known.retain(|_, seen| now.duration_since(*seen) < FORGET_AFTER);
            }
            Err(error) => debug!(target_name = %target.name(), %error, "names not looked up"),
        }
        known.keys().map(|name| target.of(name)).collect()
    }

    fn start(&self, target: TargetConfig) -> Worker {
        info!(target_name = %target.name(), "scaled from now on");
        let (sender, config) = watch::channel(target);
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(work(self.client.clone(), config, self.board.clone(), stop.clone()));
        Worker { config: sender, stop, task }
    }

    async fn publish_queues(&self) {
        if self.config.borrow().targets.iter().any(TargetConfig::has_analysers) {
            for are_busy in [true, false] {
                let queues = self.board.queues(crate::signal::now_ms(&self.clock), are_busy);
                publish(&self.client, queues_subject(are_busy), &queues).await;
            }
        }
    }
}

/// Scales one target until it is told to stop. What it has begun to set, it finishes.
async fn work(
    client: Client,
    mut config: watch::Receiver<TargetConfig>,
    board: Board,
    stop: CancellationToken,
) {
    loop {
        let opened_with = config.borrow_and_update().clone();
        let opening = open(&client, &opened_with, &board);
        let mut target = tokio::select! {
            target = opening => target,
            _ = config.changed() => continue,
            () = stop.cancelled() => return,
        };
        let mut pace = tokio::time::interval(opened_with.poll());
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = pace.tick() => {
                    let decision = target.step().await;
                    publish(&client, decision_subject(&decision.target), &decision).await;
                    board.put(decision);
                }
                Ok(()) = config.changed() => {
                    let new = config.borrow_and_update().clone();
                    if new.signal() != opened_with.signal() || new.backend() != opened_with.backend() {
                        info!(target_name = %new.name(), "signal or backend changed, beginning \
                                                          anew");
                        config.mark_changed();
                        break;
                    }
                    target.reload(&new);
                    pace = tokio::time::interval(new.poll());
                    info!(target_name = %new.name(), "rules reloaded");
                }
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Tries until the target can be opened: its directory may be another's for a moment still.
async fn open(client: &Client, config: &TargetConfig, board: &Board) -> ScaleTarget {
    let mut complained = false;
    loop {
        match ScaleTarget::open(client, config) {
            Ok(target) => return target,
            Err(error) => {
                if !complained {
                    warn!(target_name = %config.name(), %error, "not opened, trying again");
                }
                board.put(ScaleTarget::not_opened(config, &error));
            }
        }
        complained = true;
        tokio::time::sleep(REOPEN).await;
    }
}

/// Answers questions about the status for as long as it is polled.
async fn answer(client: Client, about: Status, board: Board) {
    let mut questions = loop {
        match client.subscribe(status_subject()).await {
            Ok(questions) => break questions,
            Err(error) => warn!(%error, "questions are not heard, trying again"),
        }
        tokio::time::sleep(REOPEN).await;
    };
    while let Some(question) = questions.next().await {
        let Some(reply) = question.reply.filter(|reply| is_inbox(reply)) else { continue };
        let status =
            Status { targets: board.decisions(), decisions: board.counts(), ..about.clone() };
        for message in status.messages() {
            publish(&client, reply.to_string(), &message).await;
        }
    }
}
