//! The sidecar: an app that listens somewhere, behind the broker, started and watched by us if
//! asked.
//!
//! `lifecycle` decides: pure. This drives it: it starts the app (`process`), which a `guard` ends
//! where we cannot, checks it (`health`), serves, and hears `signals`.

mod args;
mod children;
mod guard;
mod health;
mod lifecycle;
mod output;
mod process;
mod signals;

use std::future::pending;
use std::net::TcpListener;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use natsway_worker::upstream::Upstream;
use natsway_worker::{Error, Options, Summary};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

pub(crate) use self::args::{MAX_IN_FLIGHT, SidecarArgs};
use self::children::Children;
pub(crate) use self::guard::become_other;
use self::health::HealthCheck;
use self::lifecycle::{Action, Checks, End, Event, Lifecycle, Settings};
use self::process::{AppCommand, Ended, PortVariable, Running};
use self::signals::{Heard, Signals};
use crate::form::Form;

/// Between two checks of an app that has yet to become healthy.
const OFTEN: Duration = Duration::from_millis(100);

/// Results of checks that may wait to be taken: one, for there is one check at a time.
const CHECKS: usize = 1;

/// Reasons why an app is not well that are told until it is: they may come in turns for ever.
const REASONS: usize = 8;

/// The exit code of a second signal to stop, as where there is no app.
const LEFT_AT_ONCE: i32 = 130;

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
    /// What tells the app its port, in this run.
    port: PortVariable,
    member: Option<Member>,
    /// Checks the app, as often as is said there.
    checks: Option<(Checks, AbortOnDropHandle<()>)>,
    checked: mpsc::Receiver<Checked>,
    check_results: mpsc::Sender<Checked>,
    last_ended: Option<Ended>,
    failure: Option<Error>,
    is_well: bool,
    /// Whether it ever was, since its start.
    was_well: bool,
    /// Why it is not, as far as that was told.
    told: Vec<String>,
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
    StopBy(Signal),
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
            port: None,
            member: None,
            checks: None,
            checked,
            check_results,
            last_ended: None,
            failure: None,
            is_well: false,
            was_well: false,
            told: Vec::new(),
        };
        driver.run().await
    }
}

impl Driver {
    async fn run(mut self) -> anyhow::Result<u8> {
        let stop = natsway_worker::shutdown_signal().context("installing signal handlers")?;
        let mut stop = Box::pin(stop);
        let is_started_here = self.sidecar.command.is_some();
        let mut signals = Signals::new(is_started_here).context("installing signal handlers")?;
        // What the app leaves behind is left to us then, so that we know when all of it has ended.
        if is_started_here && let Err(error) = set_child_subreaper(true) {
            warn!(%error, "what the app leaves behind is left to others");
        }
        let mut cycle = Lifecycle::new(
            Settings {
                is_started_here,
                failures: self.sidecar.health_failures,
                start_timeout: self.sidecar.start_timeout,
                grace: self.sidecar.grace,
            },
            Instant::now(),
        );
        let (mut is_stopped, mut is_told) = (false, false);
        let mut event = Some(Event::Tick);
        loop {
            if let Some(event) = event.take() {
                let mut events = vec![event];
                while let Some(event) = events.pop() {
                    for action in cycle.step(event, Instant::now()) {
                        match action {
                            Action::End(end) => return self.end(end),
                            Action::Terminate if !cycle.is_ending() => self.gives_up(),
                            _ => {}
                        }
                        events.extend(self.act(action).await);
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
                () = &mut stop, if !is_told => Happened::Stop,
                heard = signals.next(&self.children) => match heard {
                    Heard::PassOn(signal) => Happened::PassOn(signal),
                    Heard::Stop(signal) => Happened::StopBy(signal),
                },
                () = until(wake_at) => Happened::Tick,
            };
            event = match happened {
                Happened::Checked(checked) => Some(self.checked(checked)),
                Happened::Exited(status) => self.exited(status).await,
                Happened::Served(served) => Some(self.served(served)),
                Happened::Stop if is_stopped => leave_at_once(),
                Happened::StopBy(signal) if is_stopped => {
                    warn!(%signal, "leaving without finishing what is in hand");
                    leave_at_once()
                }
                Happened::Stop => {
                    (is_stopped, is_told) = (true, true);
                    Some(Event::Stop)
                }
                Happened::StopBy(signal) => {
                    info!(%signal, "shutting down; a second signal leaves at once");
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
    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start => return self.start().await,
            Action::Join => self.join(),
            Action::Leave => {
                if let Some(member) = &mut self.member {
                    member.stop = None;
                }
            }
            Action::Suspend => self.sidecar.upstream.suspend(),
            Action::Resume => self.sidecar.upstream.resume(),
            Action::Terminate => {
                if let Some(app) = &mut self.app {
                    app.terminate();
                }
            }
            Action::Kill => {
                warn!(grace = ?self.sidecar.grace, "the app did not end in time, killing it");
                if let Some(app) = &mut self.app {
                    app.kill();
                }
            }
            Action::End(_) => {}
        }
        None
    }

    async fn start(&mut self) -> Option<Event> {
        let command = self.sidecar.command.clone()?;
        (self.was_well, self.told) = (false, Vec::new());
        let program = command.program.display();
        match self.start_by(&command).await {
            Ok(app) => {
                let port = self.port.as_ref().map(|(_, port)| port);
                info!(pid = app.id().as_raw(), %program, port, "app started");
                self.app = Some(app);
                None
            }
            Err(error) => {
                let how = format!("{error:#}");
                error!(error = how, %program, "app not started");
                let code = u8::MAX;
                self.last_ended = Some(Ended { code, how, last_lines: Vec::new() });
                Some(Event::Exited { code })
            }
        }
    }

    /// Starts the app where nobody else listens. Another program there would be taken for it.
    async fn start_by(&mut self, command: &AppCommand) -> anyhow::Result<Running> {
        let upstream = &self.sidecar.upstream;
        self.port = None;
        if let Some(name) = &command.port_env {
            let port = free_port().context("no free port")?;
            upstream.move_to(port);
            self.port = Some((name.clone(), port));
        } else if upstream.is_taken().await {
            bail!(
                "another program listens at {} already, and would be taken for the app: end it, \
                 or give the app another address, say a free port by --port-env",
                upstream.address()
            );
        }
        Ok(command.start(&self.port, &self.children)?)
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
        let port = self.port.clone();
        let checking = tokio::spawn(async move {
            loop {
                let found = health.run(&upstream, &port, &children, timeout).await;
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
            Ok(()) if !self.is_well => {
                (self.was_well, self.told) = (true, Vec::new());
                info!("app is healthy");
            }
            Ok(()) => {}
            Err(reason) => self.tell(reason),
        }
        self.is_well = is_healthy;
        Event::Checked { is_healthy }
    }

    /// Says why the app is not well: each reason once, until it is.
    fn tell(&mut self, reason: String) {
        if self.told.contains(&reason) || self.told.len() == REASONS {
            return;
        }
        match self.was_well {
            true => warn!(reason, "app is unhealthy"),
            false => info!(reason, "app is not healthy yet"),
        }
        self.told.push(reason);
    }

    /// Says that an app which does not become healthy is ended.
    fn gives_up(&self) {
        let reason = self.told.last().map_or("it was not checked", String::as_str);
        let start_timeout = self.sidecar.start_timeout;
        warn!(?start_timeout, reason, "the app did not become healthy in time, ending it");
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

/// Ends without waiting for anybody; the guard ends the app.
fn leave_at_once() -> ! {
    std::process::exit(LEFT_AT_ONCE)
}

/// A port that nobody listens at now.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
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
