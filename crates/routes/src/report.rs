//! What everybody who sends requests tells the others each second: who it is, which routes it goes by, and its
//! [`Figures`] of each version. The command line, the rollouts and whoever watches read the same reports.
//!
//! A report is a JSON object, or several when there are many versions; unknown members are skipped. Each second it has the
//! versions whose figures changed, every tenth time and when asked (see [`control::report_subject`]) all of them.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_wire::control;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::figures::Figures;

/// How often figures are told unasked.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Every so many periods all figures are told, for those who have missed some.
const WHOLE_EVERY: u32 = 10;

/// Versions in one message: some 100 KB when all of their buckets are in use, far below what a broker takes.
const VERSIONS_PER_MESSAGE: usize = 128;

/// What one sender of requests tells.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// The sender: another one after each start.
    pub id: String,
    /// What it is.
    pub role: Role,
    /// Where it runs, for people.
    pub host: String,
    /// How long it has been running, in milliseconds.
    pub age_ms: u64,
    /// The newest revision of the routes bucket by which all of its threads go.
    pub revision: u64,
    /// The bucket that this is a revision of: when it was made. One that is made anew counts from 1.
    pub bucket: u64,
    /// Routes whose newest document it refuses: it goes by the one before, or has no such route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// It sends no more requests after this report.
    pub leaving: bool,
    /// More messages of the same report follow.
    pub more: bool,
    /// Every version that it has tried is among the figures, not only those that changed.
    pub whole: bool,
    /// Its figures of each version since its start.
    pub versions: Vec<VersionFigures>,
    /// How far the rollouts are, as a gateway sees it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rollouts: Vec<Progress>,
}

/// What sends requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A gateway.
    #[default]
    Gateway,
    /// A service that calls others without a gateway.
    Caller,
    /// Something that is newer than we are.
    #[serde(other)]
    Other,
}

/// The figures of one version of one route.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct VersionFigures {
    /// The route's name.
    pub route: String,
    /// The version's.
    pub version: String,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// A rollout's phase and step as a gateway has seen it since it began.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Progress {
    /// The route.
    pub route: String,
    /// Whether this gateway drives it.
    pub driving: bool,
    /// For how long it has seen this step.
    pub in_phase_ms: u64,
    /// What the old version did meanwhile, at all senders.
    pub old: Figures,
    /// What the new one did.
    pub new: Figures,
    /// What that says, at a canary's step.
    pub verdict: Option<String>,
    /// Senders that do not go by the newest weights yet, or are not heard of, a sentence each.
    pub behind: Vec<String>,
}

impl Report {
    /// Reads a message; `None` when it is no report.
    pub fn read(message: &[u8]) -> Option<Report> {
        serde_json::from_slice(message).ok().filter(|report: &Report| !report.id.is_empty())
    }

    /// The messages that it takes, the last of which says that it is.
    pub fn messages(&self) -> Vec<Bytes> {
        let parts = self.versions.chunks(VERSIONS_PER_MESSAGE);
        let parts: Vec<&[VersionFigures]> =
            if self.versions.is_empty() { vec![&[]] } else { parts.collect() };
        let last = parts.len() - 1;
        let message = |(place, versions): (usize, &&[VersionFigures])| {
            let rollouts = if place == 0 { self.rollouts.clone() } else { Vec::new() };
            let part = Report { more: place < last, versions: versions.to_vec(), rollouts, ..self.header() };
            serde_json::to_vec(&part).expect("a report is plain values").into()
        };
        parts.iter().enumerate().map(message).collect()
    }

    fn header(&self) -> Report {
        Report {
            id: self.id.clone(),
            host: self.host.clone(),
            refused: self.refused.clone(),
            versions: Vec::new(),
            rollouts: Vec::new(),
            ..*self
        }
    }

    /// The same without the versions whose figures are those of `told`; what it has goes there.
    fn news(mut self, told: &mut HashMap<(String, String), Figures>) -> Report {
        self.versions.retain(|of| {
            let key = (of.route.clone(), of.version.clone());
            told.get(&key) != Some(&of.figures)
                && told.insert(key, of.figures.clone()) != Some(of.figures.clone())
        });
        self
    }
}

/// Tells what `report` gives, each second and whenever asked, until `leave` completes; then once more, as the last.
///
/// # Cancel safety
/// Dropping it ends the reports without a last one; others notice after some seconds.
pub async fn keep(client: Client, mut report: impl FnMut() -> Report, leave: impl Future<Output = ()>) {
    let mut asked = match client.subscribe(control::report_subject()).await {
        Ok(asked) => asked,
        Err(error) => return debug!(%error, "no figures are told: not connected"),
    };
    let mut leave = std::pin::pin!(leave);
    let mut pace = tokio::time::interval(PERIOD);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut round) = (HashMap::new(), 0_u32);
    loop {
        tokio::select! {
            _ = pace.tick() => {
                let whole = round.is_multiple_of(WHOLE_EVERY);
                if whole {
                    told.clear();
                }
                round = round.wrapping_add(1);
                let news = Report { whole, ..report().news(&mut told) };
                let subject = control::figures_subject(&news.id);
                publish(&client, subject.into(), &news).await;
            }
            question = asked.next() => match question {
                Some(question) => {
                    if let Some(reply) = question.reply {
                        publish(&client, reply, &report()).await;
                    }
                }
                None => return,
            },
            () = &mut leave => break,
        }
    }
    let last = Report { leaving: true, ..report() };
    publish(&client, control::figures_subject(&last.id).into(), &last).await;
}

async fn publish(client: &Client, subject: Subject, report: &Report) {
    for message in report.messages() {
        if let Err(error) = client.publish(subject.clone(), message).await {
            return debug!(%error, "figures not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(versions: usize) -> Report {
        let of = |number| VersionFigures {
            route: format!("r{number}"),
            version: "blue".to_owned(),
            figures: Figures { errors: 1, ..Figures::default() },
        };
        let versions = (0..versions).map(of).collect();
        Report { id: "a".to_owned(), revision: 7, versions, ..Report::default() }
    }

    #[test]
    fn a_long_report_is_several_messages_and_the_last_says_so() {
        for (versions, expected) in [(0, 1), (1, 1), (128, 1), (129, 2), (1_000, 8)] {
            let whole = report(versions);
            let parts: Vec<Report> =
                whole.messages().iter().map(|message| Report::read(message).unwrap()).collect();
            assert_eq!(parts.len(), expected);
            assert!(parts.iter().rev().skip(1).all(|part| part.more) && !parts[expected - 1].more);
            assert_eq!(
                parts.iter().flat_map(|part| part.versions.clone()).collect::<Vec<_>>(),
                whole.versions
            );
        }
    }

    #[test]
    fn only_what_changed_is_news() {
        let mut told = HashMap::new();
        assert_eq!(report(3).news(&mut told).versions.len(), 3);
        let mut later = report(3);
        later.versions[1].figures.in_flight = 1;
        let news = later.news(&mut told);
        assert_eq!(news.versions.iter().map(|of| of.route.as_str()).collect::<Vec<_>>(), ["r1"]);
    }

    #[test]
    fn readers_skip_what_they_do_not_know_and_refuse_what_is_no_report() {
        let read = Report::read(br#"{"id":"x","role":"sidecar","colour":"red"}"#).unwrap();
        assert_eq!((read.role, read.revision), (Role::Other, 0));
        for bad in [&b""[..], b"{}", b"[]", br#"{"id":7}"#, br#"{"id":"x","versions":[{"route":1}]}"#] {
            assert_eq!(Report::read(bad), None);
        }
    }
}
