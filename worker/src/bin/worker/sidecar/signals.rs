//! Signals other than SIGTERM and SIGINT, which every worker hears.

use std::future::pending;
use std::io::IsTerminal;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::getpid;
use tokio::signal::unix::{SignalKind, signal};

use super::children::Children;

/// Signals that go on to the app as they come.
const PASSED_ON: [(Signal, SignalKind); 3] = [
    (Signal::SIGHUP, SignalKind::hangup()),
    (Signal::SIGUSR1, SignalKind::user_defined1()),
    (Signal::SIGUSR2, SignalKind::user_defined2()),
];

/// Between two looks for what was left to us: one that ends while another waits is not told again.
const LOOK: Duration = Duration::from_secs(1);

/// What a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is for the app.
    PassOn(Signal),
    /// It has us stop.
    Stop(Signal),
}

/// What is heard.
pub(super) struct Signals {
    heard: Vec<(Heard, tokio::signal::unix::Signal)>,
    /// Heard where processes are left to us, which we have to take leave of.
    child: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// Hears signals from now on; what the app leaves behind is ours if it is started here.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(is_started_here: bool) -> std::io::Result<Self> {
        let is_first = getpid().as_raw() == 1;
        let passed_on = PASSED_ON.map(|(number, kind)| (Heard::PassOn(number), kind));
        // Images of nginx and PHP are stopped by SIGQUIT, whose default a container's first process
        // does not have.
        let quit = (Heard::Stop(Signal::SIGQUIT), SignalKind::quit());
        let window = (window_change(is_first && !has_terminal()), SignalKind::window_change());
        let heard = passed_on.into_iter().chain([quit, window]);
        let heard = heard.map(|(meaning, kind)| Ok::<_, std::io::Error>((meaning, signal(kind)?)));
        let is_reaper = is_first || is_started_here;
        let child = is_reaper.then(|| signal(SignalKind::child())).transpose()?;
        Ok(Self { heard: heard.collect::<Result<_, _>>()?, child })
    }

    /// The next one.
    pub(super) async fn next(&mut self, children: &Children) -> Heard {
        loop {
            let heard = self.heard.iter_mut().map(|(meaning, signal)| {
                Box::pin(async move {
                    signal.recv().await;
                    *meaning
                })
            });
            let heard = futures_util::future::select_all(heard);
            let child = async {
                match &mut self.child {
                    Some(child) => {
                        tokio::time::timeout(LOOK, child.recv()).await.ok();
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                (meaning, _, _) = heard => return meaning,
                () = child => children.reap_others(),
            }
        }
    }
}

/// A change of the window is news for the app. Where there is none, it is what httpd's image is
/// stopped by.
fn window_change(is_stop: bool) -> Heard {
    match is_stop {
        true => Heard::Stop(Signal::SIGWINCH),
        false => Heard::PassOn(Signal::SIGWINCH),
    }
}

fn has_terminal() -> bool {
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    input.is_terminal() || output.is_terminal() || errors.is_terminal()
}
