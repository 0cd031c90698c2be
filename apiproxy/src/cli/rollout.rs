//! `apiproxy rollout ...`: changes the version that serves. It writes the route's document; the
//! gateways do the rest.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use clap::{Args, Subcommand, ValueEnum};
use natsway_routes::document::RouteDocument;
use natsway_routes::rollout::{Criteria, Phase, Step, Strategy};
use natsway_routes::store::{RouteStore, StoreErrorKind};
use serde_json::json;

use super::bucket::{BucketArgs, CONFLICT, is_conflict, no_such_route};
use super::columns::columns;
use super::{duration, status};
use crate::rollout::command::{self, CommandError, Plan};
use crate::rollout::unix_ms;

/// Exit code: the rollout that was followed went back, or did not begin.
const WENT_BACK: u8 = 5;

/// How often a command is decided anew when a gateway has written in between.
const TRIES: u32 = 10;

/// How often a rollout that is followed is looked at.
const FOLLOW_PACE: Duration = Duration::from_millis(500);

/// Arguments of `apiproxy rollout`.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed or not possible now, 2 wrong arguments, 3 somebody \
                  else wrote first, 4 no such route, 5 the rollout that was followed went back \
                  unasked or did not begin"
)]
pub struct RolloutArgs {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    bucket: BucketArgs,
}

#[derive(Subcommand)]
enum Action {
    /// Begin: check that the new version answers, then move traffic to it
    Start(StartArgs),
    /// Show how far it is, what both versions do, and who is behind
    Status(Which),
    /// Hold it at its step; it still goes back if the new version is worse
    Pause(Which),
    /// Let it go on
    Resume(Which),
    /// Give all traffic to the new version now, whatever is known of it
    Promote(Which),
    /// Go back to the old version; after a promotion this first checks that the old version answers
    Abort(Which),
    /// List the rollouts of all routes
    Ls,
}

#[derive(Args)]
struct Which {
    /// Name of the route
    route: String,
    /// Tell what happens until it is done
    #[arg(long, visible_alias = "watch")]
    follow: bool,
}

#[derive(Args)]
struct StartArgs {
    #[command(flatten)]
    which: Which,

    /// Version that is to serve
    #[arg(long, value_name = "VERSION")]
    to: String,

    /// All at once, or by steps that are compared with the old version
    #[arg(long, value_enum, default_value_t = StrategyName::Canary)]
    strategy: StrategyName,

    /// Shares of the traffic that a canary goes through, in percent
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', default_value = "1,5,25,50,100")]
    steps: Vec<u32>,

    /// How long each step is watched at the least
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    hold: Duration,

    /// Requests that each version must have in a step before the next
    #[arg(long, value_name = "COUNT", default_value_t = Criteria::default().min_requests)]
    min_requests: u64,

    /// How long a step may wait for them beyond its hold before it goes back
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    patience: Duration,

    /// How much larger the share of errors may be, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = Criteria::default().error_margin * 100.0)]
    error_margin: f64,

    /// How many times as long p95 and p99 may be
    #[arg(long, value_name = "TIMES", default_value_t = Criteria::default().latency_factor)]
    latency_factor: f64,

    /// Path of a GET that the new version must answer with a status below 500 before it gets
    /// traffic
    #[arg(long, value_name = "PATH", default_value = "/")]
    smoke: String,

    /// Make no such request; a worker must still announce itself
    #[arg(long)]
    no_smoke: bool,

    /// Ask the old version's workers to leave at the end
    #[arg(long)]
    stop_old: bool,

    /// Begin although the new version has traffic already: the rollout sets both weights anew, and
    /// `abort` gives all of it to the old version
    #[arg(long)]
    take_over: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum StrategyName {
    BlueGreen,
    Canary,
}

impl StartArgs {
    fn plan(&self) -> Plan {
        let (strategy, steps) = match self.strategy {
            StrategyName::BlueGreen => (Strategy::BlueGreen, Vec::new()),
            StrategyName::Canary => {
                let step = |percent: &u32| Step { percent: *percent, hold: self.hold };
                (Strategy::Canary, self.steps.iter().map(step).collect())
            }
        };
        Plan {
            to: self.to.clone(),
            strategy,
            steps,
            criteria: Criteria {
                min_requests: self.min_requests,
                patience: self.patience,
                error_margin: self.error_margin / 100.0,
                latency_factor: self.latency_factor,
            },
            smoke: (!self.no_smoke).then(|| self.smoke.clone()),
            stop_old: self.stop_old,
            take_over: self.take_over,
        }
    }
}

/// How long a broker that lags is given to catch up.
const LAG_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl RolloutArgs {
    /// Does what was asked.
    ///
    /// # Errors
    /// Anything that has no exit code of its own.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (session, store) = self.bucket.open("apiproxy rollout").await?;
        let does = Does { client: session.client().clone(), store, json: self.bucket.json };
        let done = match &self.action {
            Action::Start(start) => does.start(start).await,
            Action::Status(which) => does.status(which).await,
            Action::Pause(which) => {
                does.change(which, |document| command::pause(document, unix_ms())).await
            }
            Action::Resume(which) => {
                does.change(which, |document| command::resume(document, unix_ms())).await
            }
            Action::Promote(which) => {
                does.change(which, |document| command::promote(document, unix_ms())).await
            }
            Action::Abort(which) => {
                let id = natsway_boot::random_id();
                does.change(which, |document| command::abort(document, id.clone(), unix_ms())).await
            }
            Action::Ls => does.list().await,
        };
        match done {
            Err(error) if is_conflict(&error) => {
                eprintln!("apiproxy: {error:#}; look at it again and decide anew");
                Ok(ExitCode::from(CONFLICT))
            }
            done => done,
        }
    }
}

/// What the commands work with.
struct Does {
    client: Client,
    store: RouteStore,
    json: bool,
}

impl Does {
    async fn read(&self, route: &str) -> anyhow::Result<Option<(RouteDocument, u64)>> {
        let Some(stored) = self.store.get(route).await? else { return Ok(None) };
        let document = RouteDocument::from_json(&stored.bytes)
            .with_context(|| format!("the document of route {route:?} is refused"))?;
        Ok(Some((document, stored.revision)))
    }

    /// Not tried again after a conflict: whoever came first may have begun another rollout.
    async fn start(&self, start: &StartArgs) -> anyhow::Result<ExitCode> {
        let route = &start.which.route;
        let Some((document, revision)) = self.read(route).await? else {
            return Ok(no_such_route(route));
        };
        let next = command::start(&document, start.plan(), natsway_boot::random_id(), unix_ms())?;
        let revision = self.store.put(&next, Some(revision)).await?;
        self.told(&start.which, &next, revision).await
    }

    /// Decided anew when a gateway has gone a step in between.
    async fn change(
        &self,
        which: &Which,
        change: impl Fn(&RouteDocument) -> Result<RouteDocument, CommandError>,
    ) -> anyhow::Result<ExitCode> {
        for _ in 0..TRIES {
            let Some((document, revision)) = self.read(&which.route).await? else {
                return Ok(no_such_route(&which.route));
            };
            let next = change(&document)?;
            match self.store.put(&next, Some(revision)).await {
                Ok(revision) => return self.told(which, &next, revision).await,
                Err(error) if error.kind() == StoreErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("somebody else writes this route all the time; nothing was changed")
    }

    /// Says what was written, and follows it if that was wished.
    async fn told(
        &self,
        which: &Which,
        document: &RouteDocument,
        revision: u64,
    ) -> anyhow::Result<ExitCode> {
        let rollout = document.rollout.as_ref().context("a rollout was just written")?;
        if which.follow {
            let wanted =
                if rollout.phase == Phase::Reverting { Phase::RolledBack } else { Phase::Promoted };
            return self.follow(&which.route, &rollout.id, revision, wanted).await;
        }
        match self.json {
            true => println!(
                "{}",
                json!({ "route": which.route, "revision": revision, "rollout": rollout })
            ),
            false => {
                let what = rollout.history.last().map_or("", |note| note.what.as_str());
                println!("{} is at revision {revision}: {what}", which.route);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn status(&self, which: &Which) -> anyhow::Result<ExitCode> {
        let Some((document, revision)) = self.read(&which.route).await? else {
            return Ok(no_such_route(&which.route));
        };
        if which.follow
            && let Some(rollout) = &document.rollout
        {
            return self.follow(&which.route, &rollout.id, revision, Phase::Promoted).await;
        }
        let reports = status::ask(&self.client).await?;
        match self.json {
            true => println!("{:#}", status::json(&document, revision, &reports)),
            false => print!("{}", status::text(&document, revision, &reports)),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints what happens from revision `since` on until the rollout is done; it is a success when
    /// it ends as it was `wanted`.
    async fn follow(
        &self,
        route: &str,
        id: &str,
        since: u64,
        wanted: Phase,
    ) -> anyhow::Result<ExitCode> {
        let (mut told, mut newest) = (Vec::new(), since);
        loop {
            let Some((document, revision)) = self.read(route).await? else {
                return Ok(no_such_route(route));
            };
            if revision < newest {
                // Of a cluster any broker may answer, and one that lags does not know it yet.
                tokio::time::sleep(LAG_PAUSE).await;
                continue;
            }
            newest = revision;
            let Some(rollout) = document.rollout.as_ref().filter(|rollout| rollout.id == id) else {
                eprintln!("apiproxy: another rollout of {route:?} has taken its place");
                return Ok(ExitCode::from(CONFLICT));
            };
            for note in &rollout.history {
                if !told.contains(note) {
                    match self.json {
                        true => println!(
                            "{}",
                            json!({ "route": route, "revision": revision, "note": note })
                        ),
                        false => println!("{}  {}", status::time_of_day(note.unix_ms), note.what),
                    }
                    told.push(note.clone());
                }
            }
            match rollout.phase {
                phase if phase.is_active() => tokio::time::sleep(FOLLOW_PACE).await,
                phase => {
                    rollout.behind.iter().for_each(|behind| println!("behind: {behind}"));
                    let is_so = phase == wanted || phase == Phase::Promoted;
                    return Ok(if is_so { ExitCode::SUCCESS } else { ExitCode::from(WENT_BACK) });
                }
            }
        }
    }

    async fn list(&self) -> anyhow::Result<ExitCode> {
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for stored in self.store.list().await? {
            let Ok(document) = RouteDocument::from_json(&stored.bytes) else { continue };
            let Some(rollout) = &document.rollout else { continue };
            values.push(
                json!({ "route": stored.name, "revision": stored.revision, "rollout": rollout }),
            );
            rows.push([
                stored.name,
                rollout.from.clone(),
                rollout.to.clone(),
                status::phase(rollout),
                format!("{} %", rollout.percent()),
                rollout.reason.clone().unwrap_or_default(),
            ]);
        }
        match self.json {
            true => println!("{:#}", json!(values)),
            false => {
                print!("{}", columns(["ROUTE", "FROM", "TO", "PHASE", "SHARE", "REASON"], &rows))
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
