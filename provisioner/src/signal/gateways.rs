//! What gateways have out to one version of a route, as each of them tells it.

use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use futures_util::{FutureExt, Stream, StreamExt};
use natsway_routes::peers::{PeerLimits, PeerRegistry};
use natsway_wire::control::{metrics_subject, report_subject};

use super::{Counters, Totals, Via};
use crate::sample::Fault;

/// How long gateways may take to answer; they report each second anyway. A poll ends sooner when
/// all that were known have.
const GATHER: Duration = Duration::from_millis(400);

/// Whoever was silent for longer has nothing out that is known: more than two reports.
const SILENT: Duration = Duration::from_millis(2_500);

/// Whoever was silent for longer is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Reports that are taken in before a poll asks, and such as wait behind them are taken in by the
/// next polls. So a flood of them holds up no look; the subscription drops what is beyond its own
/// bound.
const MOST_WAITING: usize = 8_192;

/// Asks all gateways, and whoever else sends requests, for their metrics of one version, and
/// believes of them what [`PeerRegistry`] does.
#[derive(Debug)]
pub struct Gateways {
    client: Client,
    via: Via,
    totals: Totals,
    peers: PeerRegistry,
    reports: Option<Subscriber>,
}

/// What is out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Out {
    /// Tries that are out now.
    pub in_flight: u64,
    /// Tries that were ever made.
    pub asked: u64,
}

impl Gateways {
    /// A reader of the metrics of `via`.
    pub fn new(client: Client, via: Via) -> Self {
        let peers = PeerRegistry::new(PeerLimits::default());
        Self { client, via, totals: Totals::default(), peers, reports: None }
    }

    /// What is out now.
    ///
    /// # Errors
    /// [`Fault::Missing`] when no gateway answers.
    pub async fn poll(&mut self) -> Result<Out, Fault> {
        let told = |error: String| Fault::Missing(format!("gateways not asked: {error}"));
        tokio::time::timeout(GATHER, self.gather()).await.unwrap_or(Ok(())).map_err(told)?;
        let now = Instant::now();
        self.peers.forget(FORGOTTEN, now);
        let Via { route, version } = &self.via;
        let key = (route.clone(), version.clone());
        let mut senders = Vec::new();
        for (of, peer) in self.peers.peers() {
            let speaks = now.duration_since(peer.heard()) < SILENT && peer.first().is_some();
            if !speaks || peer.is_gone(now) || peer.is_doubted(now) {
                continue;
            }
            let metrics = peer.latest().get(&key);
            let out = metrics.map_or(0, |metrics| u64::try_from(metrics.in_flight).unwrap_or(0));
            let ended = metrics.map_or(0, |metrics| metrics.requests());
            senders.push((of.to_string(), ended, out));
        }
        if senders.is_empty() {
            return Err(Fault::Missing(format!(
                "no gateway tells of route {route}, version {version}"
            )));
        }
        let in_flight = senders.iter().map(|(_, _, out)| out).sum();
        let counters = |completed| Counters { completed, ..Counters::default() };
        let ended = self.totals.poll(
            senders.into_iter().map(|(id, ended, out)| (id, counters(ended.saturating_add(out)))),
        );
        Ok(Out { in_flight, asked: ended.completed })
    }

    /// Takes in what was reported since the last poll, asks, and takes in the answers of all that
    /// are known.
    async fn gather(&mut self) -> Result<(), String> {
        if self.reports.is_none() {
            let reports = self.client.subscribe(metrics_subject("*", "*")).await;
            self.reports = Some(reports.map_err(|error| error.to_string())?);
        }
        let reports = self.reports.as_mut().expect("it was just put there");
        for report in waiting(reports, MOST_WAITING) {
            self.peers.hear(&report.subject, &report.payload, Instant::now());
        }
        let asked = Instant::now();
        self.client
            .publish(report_subject(), "".into())
            .await
            .map_err(|error| error.to_string())?;
        loop {
            let Some(report) = reports.next().await else {
                self.reports = None;
                return Err("the connection was closed".to_owned());
            };
            let now = Instant::now();
            self.peers.hear(&report.subject, &report.payload, now);
            let mut awaited = self.peers.peers().filter(|(_, peer)| {
                let is_known = now.duration_since(peer.heard()) < SILENT;
                is_known && (peer.heard() < asked || peer.first().is_none())
            });
            if awaited.next().is_none() {
                return Ok(());
            }
        }
    }
}

/// What a stream has at hand, and so much of it at the most.
fn waiting<S: Stream + Unpin>(stream: &mut S, most: usize) -> impl Iterator<Item = S::Item> {
    std::iter::from_fn(|| tokio::task::unconstrained(stream.next()).now_or_never().flatten())
        .take(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_reports_does_not_hold_up_a_poll() {
        let mut flood = futures_util::stream::repeat(7);
        assert_eq!(waiting(&mut flood, 5).count(), 5);
        let mut few = futures_util::stream::iter([1, 2]).chain(futures_util::stream::pending());
        assert_eq!(waiting(&mut few, 5).collect::<Vec<_>>(), [1, 2]);
    }
}
