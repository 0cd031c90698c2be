//! Core request/reply services: `$SRV.STATS` of their instances, and what gateways have out to
//! them.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use natsway_boot::Clock;
use serde::Deserialize;

use super::{Counters, Gateways, Signal, Totals, now_ms};
use crate::roll_call::Answers;
use crate::sample::{Fault, Sample};

/// How long instances may take to answer. A poll ends sooner when all that were known have.
const GATHER: Duration = Duration::from_millis(400);

/// One that has not answered for so many polls is not waited for any more.
const WAITED_FOR: u32 = 10;

/// Says what an instance was started as: the id that its provisioner gave it.
const PROVISIONED: &str = "natsway.provisioned";

/// The version of a route by which gateways send to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// The route.
    pub route: String,
    /// The version.
    pub version: String,
}

/// Polls all instances of a service (ADR-32).
///
/// The broker keeps no backlog for a queue group, so nothing is known of messages that wait;
/// instances count the time that they spend. With gateways, what they have out is in hand too: that
/// is the demand also when instances are full or gone. When nobody answers that is missing data:
/// nobody would be needed for nobody's requests.
pub struct ServicesSignal {
    client: Client,
    name: String,
    clock: Clock,
    totals: Totals,
    /// Those that answer, and how many polls ago each did last.
    known: HashMap<String, u32>,
    answers: Option<Answers>,
    /// Requests that ever came, as far as instances tell.
    come: u64,
    gateways: Option<Gateways>,
}

/// An instance's answer; the rest is skipped.
#[derive(Debug, Deserialize)]
struct Stats {
    id: String,
    #[serde(default)]
    started: String,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
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
    max_in_flight: u64,
    shed: u64,
    expired: u64,
    cancelled: u64,
    overran: u64,
}

impl ServicesSignal {
    /// A signal of the service `name`; with `via`, what gateways have out to it counts as well.
    pub fn new(client: Client, name: impl Into<String>, via: Option<Via>) -> Self {
        Self {
            gateways: via.map(|via| Gateways::new(client.clone(), via)),
            client,
            name: name.into(),
            clock: Clock::start(),
            totals: Totals::default(),
            known: HashMap::new(),
            answers: None,
            come: 0,
        }
    }

    async fn ask(&mut self) -> Result<Sample, Fault> {
        let gateways = async {
            match &mut self.gateways {
                Some(gateways) => Some(gateways.poll().await),
                None => None,
            }
        };
        let answers = gather(&self.client, format!("$SRV.STATS.{}", self.name), self.known.len());
        let (answers, gateways) = tokio::join!(answers, gateways);
        let name = self.name.clone();
        let missing = |why: String| Fault::Missing(format!("service {name}: {why}"));
        self.answers = None;
        let Gathered { answers, is_heard } = answers.map_err(missing)?;
        self.note_who(&answers, is_heard);
        if answers.is_empty() {
            return Err(missing("no instance answers".to_owned()));
        }
        // Ours say the same of each endpoint: what they hold is the worker's as a whole.
        let in_flight =
            answers.iter().filter_map(|stats| stats.data().map(|data| data.in_flight).max());
        let in_flight: u64 = in_flight.sum();
        let capacity =
            answers.iter().map(|stats| stats.data().map(|data| data.max_in_flight).max());
        let capacity: Option<u64> = capacity.sum::<Option<u64>>().filter(|capacity| *capacity > 0);
        let counted =
            self.totals.poll(answers.iter().map(|stats| (stats.identity(), stats.counters())));
        let out = gateways.transpose()?;
        let in_hand = in_flight.max(out.map_or(0, |out| out.in_flight));
        // Those that instances hold have come too, or a stall would look like a load that has
        // ended. Who leaves takes along what it held, and what ever came does not fall. What a
        // worker says may be anything.
        let come = [counted.refused, counted.dropped, in_flight]
            .into_iter()
            .fold(counted.completed, u64::saturating_add);
        self.come = self.come.max(come);
        Ok(Sample {
            at_ms: now_ms(&self.clock),
            source: self.name.clone(),
            arrived: out.map_or(self.come, |out| out.asked),
            completed: counted.completed,
            in_hand: Some(in_hand),
            busy_ms: Some(counted.busy_ns / 1_000_000),
            refused: Some(counted.refused),
            capacity,
            ..Sample::default()
        })
    }
}

impl ServicesSignal {
    /// Remembers who answers: whoever did is waited for at the next polls too, so that one that is
    /// slow once is not missed at each of them.
    fn note_who(&mut self, answers: &[Stats], is_heard: bool) {
        for polls in self.known.values_mut() {
            *polls += 1;
        }
        self.known.extend(answers.iter().map(|stats| (stats.id.clone(), 0)));
        self.known.retain(|_, polls| *polls < WAITED_FOR);
        let names = answers.iter().map(Stats::names).collect();
        self.answers = is_heard.then_some(Answers(names));
    }
}

impl Signal for ServicesSignal {
    fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
        self.ask().boxed()
    }

    fn answers(&self) -> Option<&Answers> {
        self.answers.as_ref()
    }
}

impl Stats {
    fn identity(&self) -> String {
        format!("{} {}", self.id, self.started)
    }

    /// What it goes by: its own id, and what it says that it was started as.
    fn names(&self) -> Vec<String> {
        let started_as = self.metadata.as_ref().and_then(|metadata| metadata.get(PROVISIONED));
        std::iter::once(&self.id).chain(started_as).cloned().collect()
    }

    fn data(&self) -> impl Iterator<Item = &Data> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.data.as_ref())
    }

    fn counters(&self) -> Counters {
        Counters {
            completed: self.endpoints.iter().map(|endpoint| endpoint.num_requests).sum(),
            // What came after its deadline had waited for too long.
            refused: self
                .data()
                .map(|data| data.shed.saturating_add(data.expired))
                .fold(0, u64::saturating_add),
            dropped: self
                .data()
                .map(|data| data.cancelled.saturating_add(data.overran))
                .fold(0, u64::saturating_add),
            busy_ns: self.endpoints.iter().map(|endpoint| endpoint.processing_time).sum(),
        }
    }
}

/// What a question to all came to.
pub(super) struct Gathered<T> {
    pub(super) answers: Vec<T>,
    /// Whether the broker was heard, so that who did not answer was silent.
    pub(super) is_heard: bool,
}

/// Asks everybody and reads the answers, until as many have come as are known, or the time is over.
/// A message to oneself tells whether the broker passes on what it is given.
pub(super) async fn gather<T: serde::de::DeserializeOwned>(
    client: &Client,
    subject: String,
    known: usize,
) -> Result<Gathered<T>, String> {
    let inbox = client.new_inbox();
    let mut answers = Vec::new();
    let mut is_heard = false;
    let collect = async {
        let mut replies =
            client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let asked = client.publish_with_reply(subject, inbox.clone(), Bytes::new()).await;
        asked.map_err(|error| error.to_string())?;
        client.publish(inbox, Bytes::new()).await.map_err(|error| error.to_string())?;
        while let Some(reply) = replies.next().await {
            is_heard = true;
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
        Ok(Ok(())) | Err(_) => Ok(Gathered { answers, is_heard }),
    }
}
