//! The sidecar: an app that listens somewhere, behind the broker, started and watched by us if
//! asked.
//!
//! `lifecycle` decides: pure. This drives it: it starts the app (`process`), checks it (`health`),
//! serves, and hears signals.

mod args;
mod health;
mod lifecycle;
mod process;

use std::future::pending;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use natsway_worker::upstream::Upstream;
use natsway_worker::{Error, Options, Summary};
use nix::sys::signal::Signal;
use nix::unistd::getpid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

pub(crate) use self::args::{MAX_IN_FLIGHT, SidecarArgs};
use self::health::HealthCheck;
use self::lifecycle::{Action, Checks, End, Event, Lifecycle, Settings};
pub(crate) use self::process::become_app;
use self::process::{AppCommand, Children, Ended, Running};
use crate::form::Form;

/// Between two checks of an app that has yet to become healthy.
const OFTEN: Duration = Duration::from_millis(100);

/// Results of checks that may wait to be taken: one, for there is one check at a time.
const CHECKS: usize = 1;

/// Signals that are passed on to the app as they come. Those that end us are another matter.
const PASSED_ON: [(Signal, SignalKind); 4] = [
    (Signal::SIGHUP, SignalKind::hangup()),
    (Signal::SIGUSR1, SignalKind::user_defined1()),
    (Signal::SIGUSR2, SignalKind::user_defined2()),
    (Signal::SIGWINCH, SignalKind::window_change()),
];

/// An app, and how it is looked after.
pub(crate) struct Sidecar {
    pub(crate) upstream: Upstream,
    /// The app's command, if it is ours to start.
    pub(crate) command: Option<AppCommand>,
    pub(crate) health: HealthCheck,
    pub(crate) health_interval: Duration,
    pub(crate) health_timeout: Duration,
    pub(crate) health_failures: u32,
    pub(crate) start_timeout: Duration,
    pub(crate) grace: Duration,
}

/// The worker, as a member of its queue group.
struct Member {
    serving: JoinHandle<Result<Summary, Error>>,
    /// Has it leave when it is dropped.
    stop: Option<DropGuard>,
}

/// What drives the life cycle.
struct Driver {
    sidecar: Sidecar,
    options: Options,
    form: Form,
    children: Children,
    app: Option<Running>,
    member: Option<Member>,
    /// Checks the app, as often as is said there.
    checks: Option<(Checks, AbortOnDropHandle<()>)>,
    checked: mpsc::Receiver<Checked>,
    check_results: mpsc::Sender<Checked>,
    last_ended: Option<Ended>,
    failure: Option<Error>,
    is_well: bool,
}

/// What a check found: why the app is not well, if so.
type Checked = Result<(), String>;

/// What happened.
enum Happened {
    Checked(Checked),
    Exited(ExitStatus),
    Served(Result<Summary, Error>),
    Stop,
    PassOn(Signal),
    Tick,
}

impl Sidecar {
    /// Serves the app until a signal says to stop, and gives the exit code, which is the app's if
    /// it was started here. To be called on the main thread.
    ///
    /// # Errors
    /// The worker cannot serve, or there are no signal handlers.
    pub(crate) async fn run(self, options: Options, form: Form) -> anyhow::Result<u8> {
        let upstream = self.upstream.clone();
        let options = options
            .stats("upstream", move || serde_json::to_value(upstream.stats()).unwrap_or_default());
        let (check_results, checked) = mpsc::channel(CHECKS);
        let driver = Driver {
            sidecar: self,
            options,
            form,
            children: Children::default(),
            app: None,
            member: None,
            checks: None,
            checked,
            check_results,
            last_ended: None,
            failure: None,
            is_well: false,
        };
        driver.run().await
    }
}

impl Driver {
    async fn run(mut self) -> anyhow::Result<u8> {
        let stop = natsway_worker::shutdown_signal().context("installing signal handlers")?;
        let mut stop = Box::pin(stop);
        let mut signals = Signals::new().context("installing signal handlers")?;
        let mut cycle = Lifecycle::new(
            Settings {
                is_started_here: self.sidecar.command.is_some(),
                failures: self.sidecar.health_failures,
                start_timeout: self.sidecar.start_timeout,
                grace: self.sidecar.grace,
            },
            Instant::now(),
        );
        let mut is_stopped = false;
        let mut event = Some(Event::Tick);
        loop {
            if let Some(event) = event.take() {
                let mut events = vec![event];
                while let Some(event) = events.pop() {
                    for action in cycle.step(event, Instant::now()) {
                        if let Action::End(end) = action {
                            return self.end(end);
                        }
                        events.extend(self.act(action));
                    }
                }
                self.check_as(cycle.checks());
            }
            let wake_at = cycle.wake_at();
            let happened = tokio::select! {
                checked = self.checked.recv() => match checked {
                    Some(checked) => Happened::Checked(checked),
                    None => continue,
                },
                status = exited(&mut self.app) => Happened::Exited(status),
                served = served(&mut self.member) => Happened::Served(served),
                () = &mut stop, if !is_stopped => Happened::Stop,
                signal = signals.next(&self.children) => Happened::PassOn(signal),
                () = until(wake_at) => Happened::Tick,
            };
            event = match happened {
                Happened::Checked(checked) => Some(self.checked(checked)),
                Happened::Exited(status) => self.exited(status).await,
                Happened::Served(served) => Some(self.served(served)),
                Happened::Stop => {
                    is_stopped = true;
                    Some(Event::Stop)
                }
                Happened::PassOn(signal) => {
                    if let Some(app) = &self.app {
                        app.signal(signal);
                    }
                    None
                }
                Happened::Tick => Some(Event::Tick),
            };
        }
    }

    /// Does what was decided; what that leads to at once is another event.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start => return self.start(),
            Action::Join => self.join(),
            Action::Leave => {
                if let Some(member) = &mut self.member {
                    member.stop = None;
                }
            }
            Action::Suspend => self.sidecar.upstream.suspend(),
            Action::Resume => self.sidecar.upstream.resume(),
            Action::Terminate => self.signal(Signal::SIGTERM),
            Action::Kill => {
                warn!(grace = ?self.sidecar.grace, "the app did not end in time, killing it");
                self.signal(Signal::SIGKILL);
            }
            Action::End(_) => {}
        }
        None
    }

    fn start(&mut self) -> Option<Event> {
        let command = self.sidecar.command.as_ref()?;
        match command.start(&self.children) {
            Ok(app) => {
                info!(pid = app.id().as_raw(), program = %command.program.display(), "app started");
                self.app = Some(app);
                None
            }
            Err(error) => {
                error!(%error, program = %command.program.display(), "app not started");
                Some(Event::Exited { code: u8::MAX })
            }
        }
    }

    fn join(&mut self) {
        let stop = CancellationToken::new();
        // An instance that left is not believed to be there again by those who counted it out.
        let options = self.options.clone().instance(natsway_boot::random_id());
        let upstream = self.sidecar.upstream.clone();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(self.form.serve(options, upstream, stopped));
        self.member = Some(Member { serving, stop: Some(stop.drop_guard()) });
    }

    fn signal(&self, signal: Signal) {
        if let Some(app) = &self.app {
            app.signal(signal);
        }
    }

    /// Has the app checked as often as is wanted, or not at all.
    fn check_as(&mut self, wanted: Option<Checks>) {
        if self.checks.as_ref().map(|(checks, _)| *checks) == wanted {
            return;
        }
        // What was found of an app that has ended is of no use.
        self.checks = None;
        while self.checked.try_recv().is_ok() {}
        let Some(wanted) = wanted else { return };
        let Sidecar { upstream, health, health_interval, health_timeout, .. } = &self.sidecar;
        let (upstream, health, timeout) = (upstream.clone(), health.clone(), *health_timeout);
        let interval = match wanted {
            Checks::Often => OFTEN.min(*health_interval),
            Checks::Usual => *health_interval,
        };
        let (children, checked) = (self.children.clone(), self.check_results.clone());
        let checking = tokio::spawn(async move {
            loop {
                let found = health.run(&upstream, &children, timeout).await;
                if checked.send(found).await.is_err() {
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        });
        self.checks = Some((wanted, AbortOnDropHandle::new(checking)));
    }

    fn checked(&mut self, checked: Checked) -> Event {
        let is_healthy = checked.is_ok();
        match checked {
            Ok(()) if !self.is_well => info!("app is healthy"),
            Err(reason) if self.is_well => warn!(reason, "app is unhealthy"),
            _ => {}
        }
        self.is_well = is_healthy;
        Event::Checked { is_healthy }
    }

    async fn exited(&mut self, status: ExitStatus) -> Option<Event> {
        let ended = self.app.take()?.end(status).await;
        info!(how = ended.how, "app ended");
        self.is_well = false;
        let code = ended.code;
        self.last_ended = Some(ended);
        Some(Event::Exited { code })
    }

    fn served(&mut self, served: Result<Summary, Error>) -> Event {
        self.member = None;
        match served {
            Ok(_) => Event::Left,
            Err(error) => {
                self.failure = Some(error);
                Event::ServingFailed
            }
        }
    }

    fn end(self, end: End) -> anyhow::Result<u8> {
        match end {
            End::Stopped { code } => Ok(code.unwrap_or_default()),
            End::Failed => match self.failure {
                Some(error) => Err(error.into()),
                None => anyhow::bail!("the worker could not serve"),
            },
            End::CrashLoop { code } => {
                let ended = self.last_ended;
                let how = ended.as_ref().map_or("it did not start", |ended| ended.how.as_str());
                error!(how, "the app ends again and again, giving up; its last lines:");
                for line in ended.iter().flat_map(|ended| &ended.last_lines) {
                    eprintln!("  {line}");
                }
                Ok(code)
            }
        }
    }
}

/// Waits until the app ends; for ever if there is none.
async fn exited(app: &mut Option<Running>) -> ExitStatus {
    match app {
        Some(app) => app.exited().await,
        None => pending().await,
    }
}

/// Waits until the worker has left; for ever if it is no member.
async fn served(member: &mut Option<Member>) -> Result<Summary, Error> {
    match member {
        Some(member) => (&mut member.serving).await.unwrap_or(Err(Error::ReaderPanicked)),
        None => pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => pending().await,
    }
}

/// Signals other than those that end us.
struct Signals {
    passed_on: Vec<(Signal, tokio::signal::unix::Signal)>,
    /// Heard by the first process of a container, which has to take leave of all others.
    child: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let hear = |(number, kind)| Ok::<_, std::io::Error>((number, signal(kind)?));
        let passed_on = PASSED_ON.into_iter().map(hear).collect::<Result<_, _>>()?;
        let is_first = getpid().as_raw() == 1;
        let child = is_first.then(|| signal(SignalKind::child())).transpose()?;
        Ok(Self { passed_on, child })
    }

    /// The next one that is to be passed on.
    async fn next(&mut self, children: &Children) -> Signal {
        loop {
            let passed_on = self.passed_on.iter_mut().map(|(number, signal)| {
                Box::pin(async move {
                    signal.recv().await;
                    *number
                })
            });
            let passed_on = futures_util::future::select_all(passed_on);
            let child = async {
                match &mut self.child {
                    // One that hides behind another is not told again.
                    Some(child) => {
                        tokio::time::timeout(Duration::from_secs(1), child.recv()).await.ok();
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                (number, _, _) = passed_on => return number,
                () = child => children.reap_others(),
            }
        }
    }
}
