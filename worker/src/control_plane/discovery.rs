//! What a worker tells of itself, as NATS micro services do (ADR-32).
//!
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-32.md>

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::handler::context::ReaderContext;
use crate::options::{Config, last_token};
use crate::telemetry::metrics::{Load, Summary};

/// One worker process: who it is, what it serves, and where its readers keep their metrics.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) config: Config,
    started: String,
    readers: Vec<(Arc<ReaderContext>, Arc<Load>)>,
}

/// What ADR-32 lets a service be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Ping,
    Info,
    Stats,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    id: &'a str,
    version: &'a str,
    metadata: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<Endpoint<'a>>,
}

#[derive(Serialize)]
struct Endpoint<'a> {
    name: &'a str,
    subject: &'a str,
    queue_group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'static str, String>>,
    #[serde(flatten)]
    metrics: Option<EndpointMetrics>,
}

#[derive(Serialize)]
struct EndpointMetrics {
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    processing_time: u64,
    average_processing_time: u64,
    data: Data,
}

/// What we know beyond ADR-32.
#[derive(Serialize)]
struct Data {
    /// Requests held now, of all subjects of the worker together.
    in_flight: u64,
    in_flight_bytes: u64,
    max_in_flight: usize,
    /// Streams that are open, or wait to be opened.
    streams: usize,
    readers: usize,
    shed: u64,
    expired: u64,
    cancelled: u64,
    overran: u64,
    without_reply: u64,
    /// Directives that the worker refused.
    refused_directives: u64,
    /// What the service itself tells.
    #[serde(flatten)]
    further: BTreeMap<&'static str, serde_json::Value>,
}

impl Question {
    /// All of them, with the verb that stands in their subjects.
    pub(crate) const ALL: [(Self, &str); 3] =
        [(Self::Ping, "PING"), (Self::Info, "INFO"), (Self::Stats, "STATS")];

    /// The question that a subject asks, if it is one.
    pub(crate) fn of_subject(subject: &str) -> Option<Self> {
        let verb = subject.strip_prefix("$SRV.")?.split('.').next()?;
        Self::ALL.into_iter().find(|(_, name)| *name == verb).map(|(question, _)| question)
    }
}

impl Instance {
    pub(crate) fn new(
        config: Config,
        started_unix_ms: u64,
        readers: Vec<(Arc<ReaderContext>, Arc<Load>)>,
    ) -> Self {
        Self { config, started: rfc3339(started_unix_ms), readers }
    }

    /// The instance's id.
    pub(crate) fn id(&self) -> &str {
        &self.config.instance
    }

    /// The subjects on which this instance is asked: about anyone, about its service, about itself.
    pub(crate) fn question_subjects(&self) -> Vec<String> {
        let Config { name, instance: id, .. } = &self.config;
        let forms = |verb: &str| {
            [
                format!("$SRV.{verb}"),
                format!("$SRV.{verb}.{name}"),
                format!("$SRV.{verb}.{name}.{id}"),
            ]
        };
        Question::ALL.into_iter().flat_map(|(_, verb)| forms(verb)).collect()
    }

    /// The metrics of one subject, all readers together.
    fn endpoint_summary(&self, endpoint: usize) -> Summary {
        let mut sum = Summary::default();
        for (context, _) in &self.readers {
            sum += context.metrics[endpoint].read();
        }
        sum
    }

    /// The metrics of everything.
    pub(crate) fn summary(&self) -> Summary {
        let mut sum = Summary::default();
        for endpoint in 0..self.config.subjects.len() {
            sum += self.endpoint_summary(endpoint);
        }
        sum.refused_directives = self.refused_directives();
        sum
    }

    fn refused_directives(&self) -> u64 {
        self.config.refused_directives.load(Ordering::Relaxed)
    }

    /// The JSON document that answers `question`.
    pub(crate) fn answer(&self, question: Question) -> Vec<u8> {
        let config = &self.config;
        let document = Document {
            kind: match question {
                Question::Ping => "io.nats.micro.v1.ping_response",
                Question::Info => "io.nats.micro.v1.info_response",
                Question::Stats => "io.nats.micro.v1.stats_response",
            },
            name: &config.name,
            id: self.id(),
            version: &config.version,
            metadata: &config.metadata,
            description: (question == Question::Info).then_some(config.description.as_str()),
            started: (question == Question::Stats).then_some(self.started.as_str()),
            endpoints: match question {
                Question::Ping => Vec::new(),
                _ => {
                    (0..config.subjects.len()).map(|index| self.endpoint(index, question)).collect()
                }
            },
        };
        serde_json::to_vec(&document).expect("strings and numbers are always JSON")
    }

    fn endpoint(&self, index: usize, question: Question) -> Endpoint<'_> {
        let subject = self.config.subjects[index].as_str();
        let version = last_token(subject);
        Endpoint {
            name: version,
            subject,
            queue_group: self.config.queue_group.as_str(),
            metadata: (question == Question::Info)
                .then(|| BTreeMap::from([("natsway.version", version.to_owned())])),
            metrics: (question == Question::Stats).then(|| self.endpoint_metrics(index)),
        }
    }

    fn endpoint_metrics(&self, index: usize) -> EndpointMetrics {
        let sum = self.endpoint_summary(index);
        let nanoseconds =
            |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let processing_time = nanoseconds(sum.processing);
        EndpointMetrics {
            num_requests: sum.requests,
            num_errors: sum.errors,
            last_error: sum.last_error,
            processing_time,
            average_processing_time: processing_time.checked_div(sum.requests).unwrap_or(0),
            data: Data {
                in_flight: self.readers.iter().map(|(_, load)| load.requests()).sum(),
                in_flight_bytes: self.readers.iter().map(|(_, load)| load.bytes()).sum(),
                max_in_flight: self.config.limits.in_flight,
                // All readers count the same.
                streams: self.readers.first().map_or(0, |(context, _)| context.streams.open()),
                readers: self.readers.len(),
                shed: sum.shed,
                expired: sum.expired,
                cancelled: sum.cancelled,
                overran: sum.overran,
                without_reply: sum.without_reply,
                // The worker's, not the subject's: said once, since readers add up.
                refused_directives: if index == 0 { self.refused_directives() } else { 0 },
                further: self.config.stats.read(),
            },
        }
    }
}

/// Unix milliseconds as `2026-11-21T04:43:54.000Z`.
fn rfc3339(unix_ms: u64) -> String {
    const DAY_S: u64 = 86_400;
    let (seconds, ms) = (unix_ms / 1_000, unix_ms % 1_000);
    let (mut days, second_of_day) = (seconds / DAY_S, seconds % DAY_S);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) =
        (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::Options;
    use crate::handler::outbox::Outbox;
    use crate::streams::{Streams, TunnelOptions};
    use crate::telemetry::metrics::WorkerMetrics;
    use crate::telemetry::trace::{Spans, Wanted};
    use crate::unary::UnaryTunnels;

    fn instance() -> Instance {
        let options = Options::new("svc.math.blue").and_subject("svc.math.green").version("1.2.3");
        let config = options.check().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let context = || {
            let metrics = vec![WorkerMetrics::default(), WorkerMetrics::default()];
            let outbox = Arc::new(Outbox::new());
            let pipes = config.pipe_end(&outbox);
            let tunnels = TunnelOptions::default();
            let permits = Arc::new(Semaphore::new(1));
            let spans = Spans::new(Wanted::None, &config.subjects, &config.queue_group);
            Arc::new(ReaderContext {
                draining: Arc::default(),
                outbox,
                metrics,
                max_response_bytes: usize::MAX,
                spans,
                unary: UnaryTunnels::new(&tunnels),
                streams: Streams::new(tunnels, permits, runtime.handle().clone(), pipes),
                instance: config.full_instance(),
            })
        };
        let readers = vec![(context(), Load::new(10, 100)), (context(), Load::new(10, 100))];
        Instance::new(config, 0, readers)
    }

    fn ask(instance: &Instance, question: Question) -> Value {
        serde_json::from_slice(&instance.answer(question)).unwrap()
    }

    #[test]
    fn a_ping_says_who_it_is() {
        let mut instance = instance();
        // What whoever runs the tests is started as.
        instance.config.metadata.remove(crate::options::PROVISIONED);
        let expected = json!({
            "type": "io.nats.micro.v1.ping_response",
            "name": "math", "id": instance.id(), "version": "1.2.3",
            "metadata": { "natsway.version": "blue", "natsway.wire": "2" },
        });
        assert_eq!(ask(&instance, Question::Ping), expected);
    }

    #[test]
    fn info_names_every_subject_and_its_version() {
        let info = ask(&instance(), Question::Info);
        let expected = json!([
            { "name": "blue", "subject": "svc.math.blue", "queue_group": "q",
              "metadata": { "natsway.version": "blue" } },
            { "name": "green", "subject": "svc.math.green", "queue_group": "q",
              "metadata": { "natsway.version": "green" } },
        ]);
        assert_eq!((&info["endpoints"], &info["description"]), (&expected, &json!("")));
    }

    #[test]
    fn stats_add_up_the_readers_and_keep_subjects_apart() {
        let instance = instance();
        for (context, load) in &instance.readers {
            context.metrics[1].ran(Duration::from_micros(3));
            context.metrics[1].ran(Duration::from_micros(5));
            context.metrics[1].failed("500: GET /: no".to_owned());
            std::mem::forget(load.admit(7));
        }
        let stats = ask(&instance, Question::Stats);
        assert_eq!(stats["started"], "1970-01-01T00:00:00.000Z");
        let (blue, green) = (&stats["endpoints"][0], &stats["endpoints"][1]);
        assert_eq!(
            (&blue["num_requests"], &blue["average_processing_time"]),
            (&json!(0), &json!(0))
        );
        assert_eq!((&green["num_requests"], &green["num_errors"]), (&json!(4), &json!(2)));
        assert_eq!(
            (&green["processing_time"], &green["average_processing_time"]),
            (&json!(16_000), &json!(4_000))
        );
        assert_eq!(green["last_error"], "500: GET /: no");
        assert_eq!(
            (&green["data"]["in_flight"], &green["data"]["in_flight_bytes"]),
            (&json!(2), &json!(14))
        );
    }

    #[test]
    fn it_answers_on_nine_subjects() {
        let instance = instance();
        let subjects = instance.question_subjects();
        assert_eq!(subjects.len(), 9);
        for subject in ["$SRV.PING".to_owned(), format!("$SRV.STATS.math.{}", instance.id())] {
            assert!(subjects.contains(&subject), "{subject}");
        }
        assert_eq!(Question::of_subject("$SRV.INFO.math"), Some(Question::Info));
        assert_eq!(Question::of_subject("$SRV.OTHER"), None);
        assert_eq!(Question::of_subject("svc.math.blue"), None);
    }

    #[test]
    fn moments_are_written_as_rfc_3339_has_it() {
        for (unix_ms, text) in [
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_795_236_234_000, "2026-11-21T04:43:54.000Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(unix_ms), text);
        }
    }
}
