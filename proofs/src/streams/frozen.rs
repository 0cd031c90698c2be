//! What stands still under streams of every kind: a process, or the way between two. And the same
//! way, reset.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use natsway_testkit::{TcpLink, TestBroker, eventually, free_port};

use super::Size;
use super::client::download;
use super::crowd::{Crowd, Ended};
use crate::Finding;
use crate::stand::{DEADLINE, Extras, PATIENT, Stand};

/// A tunnel that says nothing is lost by then: 10 s until it is asked, and 10 s more.
const LOST_AFTER: u64 = 20;

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Worker,
    Gateway,
    Broker,
    /// The tunnels: they are silent, and open.
    Way,
    /// The tunnels: they are reset.
    Reset,
}

impl Victim {
    const ALL: [Self; 5] = [Self::Worker, Self::Gateway, Self::Broker, Self::Way, Self::Reset];

    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Gateway => "gateway",
            Self::Broker => "broker",
            Self::Way => "way",
            Self::Reset => "reset",
        }
    }

    /// Whether streams go on to their end behind it.
    fn is_survived(self, seconds: u64) -> bool {
        match self {
            Self::Broker => true,
            Self::Reset => false,
            Self::Worker | Self::Gateway | Self::Way => seconds < LOST_AFTER,
        }
    }
}

/// Each of them side by side, on a stand of its own.
pub(super) async fn frozen(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    finding.figure("frozen_seconds", size.frozen_seconds);
    let directories = Victim::ALL.map(|victim| (victim, directory.join(victim.name())));
    let struck = directories.iter().map(|(victim, directory)| strike(*victim, size, directory));
    for (victim, ended) in Victim::ALL.into_iter().zip(join_all(struck).await) {
        let ended = ended?;
        ended.note(victim.name(), finding)?;
        let is_so = match victim.is_survived(size.frozen_seconds) {
            true => ended.complete == 10 && ended.sockets_lived == 4,
            // The gateway lives in each case, so it says goodbye to WebSockets. All of a few events
            // may have been on their way to it.
            false => ended.broken_off >= 8 && ended.sockets_told == 4,
        };
        finding.promise(is_so, || format!("{victim:?}: {ended:?}"));
    }
    Ok(())
}

async fn strike(victim: Victim, size: &Size, directory: &Path) -> anyhow::Result<Ended> {
    let mut broker = TestBroker::start().await;
    let port = free_port();
    let mut way = TcpLink::to_port(port).await;
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", way.port()));
    let gateway = ["--tunnel-listen", &listen, "--tunnel-address", &address];
    let extras = Extras { gateway: &gateway, ..Extras::default() };
    let urls = (&*broker.url(), &*broker.url());
    let mut stand = Stand::start_with(directory, urls, PATIENT, 1, extras).await?;
    let crowd = Crowd::start(&stand).await;
    match victim {
        Victim::Worker => stand.workers[0].freeze(),
        Victim::Gateway => stand.gateway.freeze(),
        Victim::Broker => broker.freeze(),
        Victim::Way => way.pause(),
        Victim::Reset => way.cut().await,
    }
    if victim != Victim::Reset {
        tokio::time::sleep(Duration::from_secs(size.frozen_seconds)).await;
    }
    match victim {
        Victim::Worker => stand.workers[0].thaw(),
        Victim::Gateway => stand.gateway.thaw(),
        Victim::Broker => broker.thaw(),
        Victim::Way | Victim::Reset => way.resume().await,
    }
    let ended = crowd.end().await?;
    stand.all_let_go().await;
    // It serves as before, by tunnels that are dialled anew where they were lost.
    eventually(DEADLINE, async || match download(&[stand.port], 1 << 20, false, None).await {
        Ok(seen) if seen.is_complete(1 << 20) => Ok(()),
        other => Err(format!("afterwards: {other:?}")),
    })
    .await;
    Ok(ended)
}
