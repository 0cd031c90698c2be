//! What gateways have out to one version of a route, as each of them tells it.

use std::collections::HashMap;

use async_nats::Client;
use natsway_routes::report::Report;
use natsway_wire::control::report_subject;

use super::services::gather;
use super::{Counters, Totals, Via};
use crate::sample::Fault;

/// Asks all gateways, and whoever else sends requests, for their figures of one version.
#[derive(Debug)]
pub struct Gateways {
    client: Client,
    via: Via,
    totals: Totals,
    known: usize,
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
    /// A reader of the figures of `via`.
    pub fn new(client: Client, via: Via) -> Gateways {
        Gateways { client, via, totals: Totals::default(), known: 0 }
    }

    /// What is out now.
    ///
    /// # Errors
    /// [`Fault::Missing`] when no gateway answers.
    pub async fn look(&mut self) -> Result<Out, Fault> {
        let gathered = gather(&self.client, report_subject(), self.known).await;
        let reports: Vec<Report> = gathered.map_err(Fault::Missing)?.answers;
        let Via { route, version } = &self.via;
        if reports.is_empty() {
            return Err(Fault::Missing(format!("no gateway tells of route {route}, version {version}")));
        }
        self.known = reports.len();
        let mut senders: HashMap<String, (u64, u64)> = HashMap::new();
        for report in reports {
            let sender = senders.entry(report.id).or_default();
            for of in report.versions.iter().filter(|of| of.route == *route && of.version == *version) {
                sender.0 += of.figures.requests();
                sender.1 += u64::try_from(of.figures.in_flight).unwrap_or(0);
            }
        }
        let in_flight = senders.values().map(|(_, in_flight)| in_flight).sum();
        let counters = |completed| Counters { completed, ..Counters::default() };
        let ended = self
            .totals
            .look(senders.into_iter().map(|(id, (completed, out))| (id, counters(completed + out))));
        Ok(Out { in_flight, asked: ended.completed })
    }
}
