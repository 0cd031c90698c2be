//! Core request/reply services: `$SRV.STATS` of their instances, and what gateways have out to them.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use natsway_boot::Clock;
use serde::Deserialize;

use super::{Counters, Gateways, Signal, Totals, now_ms};
use crate::sample::{Fault, Sample};

/// How long instances may take to answer. A look ends sooner when all that were known have.
const GATHER: Duration = Duration::from_millis(400);

/// The version of a route by which gateways send to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// The route.
    pub route: String,
    /// The version.
    pub version: String,
}

/// Looks at all instances of a service (ADR-32).
///
/// The broker keeps no backlog for a queue group, so nothing is known of messages that wait; instances count the time
/// that they spend. With gateways, what they have out is in hand too: that is the demand also when instances are full or gone.
/// When nobody answers that is missing data: nobody would be needed for nobody's requests.
pub struct ServicesSignal {
    client: Client,
    name: String,
    clock: Clock,
    totals: Totals,
    known: HashSet<String>,
    gateways: Option<Gateways>,
}

/// An instance's answer; the rest is skipped.
#[derive(Debug, Deserialize)]
struct Stats {
    id: String,
    #[serde(default)]
    started: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    num_requests: u64,
    #[serde(default)]
    processing_time: u64,
    #[serde(default)]
    data: Option<Data>,
}

/// What our workers tell beyond ADR-32.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    in_flight: u64,
    shed: u64,
}

impl ServicesSignal {
    /// A signal of the service `name`; with `via`, what gateways have out to it counts as well.
    pub fn new(client: Client, name: impl Into<String>, via: Option<Via>) -> ServicesSignal {
        ServicesSignal {
            gateways: via.map(|via| Gateways::new(client.clone(), via)),
            client,
            name: name.into(),
            clock: Clock::start(),
            totals: Totals::default(),
            known: HashSet::new(),
        }
    }

    async fn ask(&mut self) -> Result<Sample, Fault> {
        let gateways = async {
            match &mut self.gateways {
                Some(gateways) => Some(gateways.look().await),
                None => None,
            }
        };
        let answers = gather(&self.client, format!("$SRV.STATS.{}", self.name), self.known.len());
        let (answers, gateways) = tokio::join!(answers, gateways);
        let missing = |why: String| Fault::Missing(format!("service {}: {why}", self.name));
        let answers: Vec<Stats> = answers.map_err(missing)?;
        if answers.is_empty() {
            return Err(missing("no instance answers".to_owned()));
        }
        self.known = answers.iter().map(|stats| stats.id.clone()).collect();
        // Ours say the same of each endpoint: what they hold is the worker's as a whole.
        let in_flight = answers.iter().filter_map(|stats| stats.data().map(|data| data.in_flight).max());
        let in_flight: u64 = in_flight.sum();
        let counted = self.totals.look(answers.iter().map(|stats| (stats.identity(), stats.counters())));
        let out = gateways.transpose()?;
        let in_hand = in_flight.max(out.map_or(0, |out| out.in_flight));
        let asked = counted.completed + counted.refused;
        Ok(Sample {
            at_ms: now_ms(&self.clock),
            source: self.name.clone(),
            // What is in hand may fall without being finished here, when it is cancelled; what ever came does not.
            arrived: out.map_or(asked, |out| out.asked),
            completed: counted.completed,
            in_hand: Some(in_hand),
            busy_ms: Some(counted.busy_ns / 1_000_000),
            refused: Some(counted.refused),
            ..Sample::default()
        })
    }
}

impl Signal for ServicesSignal {
    fn look(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
        self.ask().boxed()
    }
}

impl Stats {
    fn identity(&self) -> String {
        format!("{} {}", self.id, self.started)
    }

    fn data(&self) -> impl Iterator<Item = &Data> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.data.as_ref())
    }

    fn counters(&self) -> Counters {
        Counters {
            completed: self.endpoints.iter().map(|endpoint| endpoint.num_requests).sum(),
            refused: self.data().map(|data| data.shed).sum(),
            busy_ns: self.endpoints.iter().map(|endpoint| endpoint.processing_time).sum(),
        }
    }
}

/// Asks everybody and reads the answers, until as many have come as are known, or the time is over and at least
/// somebody was heard.
pub(super) async fn gather<T: serde::de::DeserializeOwned>(
    client: &Client,
    subject: String,
    known: usize,
) -> Result<Vec<T>, String> {
    let inbox = client.new_inbox();
    let mut answers = Vec::new();
    let collect = async {
        let mut replies = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let asked = client.publish_with_reply(subject, inbox, Bytes::new()).await;
        asked.map_err(|error| error.to_string())?;
        while let Some(reply) = replies.next().await {
            if reply.status == Some(StatusCode::NO_RESPONDERS) {
                break;
            }
            // Another service's answer that cannot be read is no reason to be blind to the rest.
            answers.extend(serde_json::from_slice(&reply.payload));
            if known > 0 && answers.len() >= known {
                // Those that are new answer as fast as those that are known.
                tokio::time::sleep(GATHER / 20).await;
                while let Some(Some(reply)) = replies.next().now_or_never() {
                    answers.extend(serde_json::from_slice(&reply.payload));
                }
                break;
            }
        }
        Ok::<(), String>(())
    };
    match tokio::time::timeout(GATHER, collect).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => Ok(answers),
    }
}
