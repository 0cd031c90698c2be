//! What to serve, where, and within which limits.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ipnet::IpNet;
use natsway_boot::BrokerConfig;
#[cfg(feature = "trace")]
use natsway_boot::trace::HeadSampler;
use natsway_wire::{QueueGroup, Subject};

use crate::Error;
use crate::handler::outbox::Outbox;
use crate::streams::{PipeEnd, TunnelMode, TunnelOptions};
use crate::telemetry::trace::Wanted;
use crate::work_queue::{WorkQueue, WorkQueueConfig};

/// How to serve. Only the subject must be given.
///
/// ```
/// use natsway_worker::{BrokerConfig, Options};
///
/// let options = Options::new("svc.math.blue")
///     .broker(BrokerConfig::new("nats://127.0.0.1:4222")?)
///     .version("2.1.0")
///     .max_in_flight(200);
/// # let _ = options;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Values are checked when serving starts, all at once.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    broker: Option<BrokerConfig>,
    subjects: Vec<String>,
    queue_group: String,
    name: Option<String>,
    version: String,
    instance: Option<String>,
    namespace: Option<String>,
    description: String,
    metadata: BTreeMap<String, String>,
    limits: Limits,
    readers: Option<NonZeroUsize>,
    on_cancel: OnCancel,
    traced: Wanted,
    refused_directives: Arc<AtomicU64>,
    tunnels: TunnelOptions,
    stats: FurtherStats,
    work_queue: Option<WorkQueue>,
}

/// What to do with a handler whose caller went away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCancel {
    /// Drop it at its next `await`, as hyper does when a client closes its connection.
    #[default]
    Drop,
    /// Let it finish; its answer goes nowhere.
    Finish,
}

/// The limits of a worker, all of its readers together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) in_flight: usize,
    pub(crate) in_flight_bytes: usize,
    pub(crate) response_bytes: usize,
    pub(crate) drain: Duration,
    pub(crate) accepted_after: Duration,
}

/// Options that were checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) broker: BrokerConfig,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) queue_group: QueueGroup,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) instance: String,
    pub(crate) namespace: Option<String>,
    pub(crate) description: String,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    pub(crate) readers: Option<NonZeroUsize>,
    pub(crate) on_cancel: OnCancel,
    pub(crate) traced: Wanted,
    /// Directives that the worker refused; only its first set counts them.
    pub(crate) refused_directives: Arc<AtomicU64>,
    pub(crate) tunnels: TunnelOptions,
    pub(crate) stats: FurtherStats,
    pub(crate) work_queue: Option<WorkQueueConfig>,
}

/// What services tell of themselves, by name.
#[derive(Clone, Default)]
pub(crate) struct FurtherStats(Vec<(&'static str, Arc<StatsValue>)>);

type StatsValue = dyn Fn() -> serde_json::Value + Send + Sync;

impl FurtherStats {
    /// All of it, now.
    pub(crate) fn read(&self) -> BTreeMap<&'static str, serde_json::Value> {
        self.0.iter().map(|(name, value)| (*name, value())).collect()
    }
}

impl std::fmt::Debug for FurtherStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Options {
    /// Serves `subject`, say `svc.math.blue`: by convention the service is its last token but one,
    /// the version its last.
    pub fn new(subject: impl Into<String>) -> Self {
        Self {
            broker: None,
            subjects: vec![subject.into()],
            queue_group: QueueGroup::DEFAULT.to_owned(),
            name: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: None,
            namespace: None,
            description: String::new(),
            metadata: BTreeMap::new(),
            limits: Limits {
                in_flight: 1_024,
                in_flight_bytes: 64 << 20,
                response_bytes: usize::MAX,
                drain: Duration::from_secs(8),
                accepted_after: Duration::from_millis(50),
            },
            readers: None,
            on_cancel: OnCancel::default(),
            traced: Wanted::None,
            refused_directives: Arc::default(),
            tunnels: TunnelOptions::default(),
            stats: FurtherStats::default(),
            work_queue: None,
        }
    }

    /// The broker; `nats://127.0.0.1:4222` without. [`BrokerConfig::from_env`] reads it from the
    /// environment (`NATS_URL`, `NATS_CREDS`, ...).
    pub fn broker(mut self, broker: BrokerConfig) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Serves one more subject by the same service.
    pub fn and_subject(mut self, subject: impl Into<String>) -> Self {
        self.subjects.push(subject.into());
        self
    }

    /// The queue group that shares the requests; `q` without, as ADR-32 has it. Each group gets
    /// every request once.
    pub fn queue_group(mut self, queue_group: impl Into<String>) -> Self {
        self.queue_group = queue_group.into();
        self
    }

    /// The name that `nats micro` shows; letters, digits, `-` and `_`. Without, the last token but
    /// one of the subject.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The version that `nats micro` shows, a SemVer. A colour such as `blue` is the subject's last
    /// token instead.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// The id of this instance, which must be no other's: letters, digits, `-` and `_`, 64 at the
    /// most. Random without.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// Takes commands on `natsway.worker.<namespace>.<instance>`: one token that permissions, and
    /// imports of other accounts, can name. Letters, digits, `-` and `_`, 32 at the most. Without,
    /// on `natsway.worker.<instance>`. Gateways before 0.2 do not understand it.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// The same for another instance.
    pub(crate) fn without_instance(mut self) -> Self {
        self.instance = None;
        self.refused_directives = Arc::default();
        self
    }

    /// A sentence about the service, shown by `nats micro info`.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// One more entry of the metadata that `nats micro info` shows.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Requests held at once, all readers together; more are shed, which the gateway tries
    /// elsewhere. 1,024 without.
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.limits.in_flight = requests;
        self
    }

    /// Bytes of the requests held at once, all readers together. 64 MiB without.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.limits.in_flight_bytes = bytes;
        self
    }

    /// Longest response body in bytes; what is longer becomes a 502. The broker's `max_payload`
    /// bounds it anyway.
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.limits.response_bytes = bytes;
        self
    }

    /// How long leaving may take: the fence, the handlers in flight and their replies. 8 s without,
    /// below the 10 s that Docker Compose gives.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.limits.drain = limit;
        self
    }

    /// Reader threads, each with its own broker connection. Without, 1 for [`serve`](crate::serve)
    /// and one per core for [`serve_local`](crate::serve_local).
    pub fn readers(mut self, readers: NonZeroUsize) -> Self {
        self.readers = Some(readers);
        self
    }

    /// What to do with a handler whose caller went away: it is dropped, without.
    pub fn on_cancel(mut self, on_cancel: OnCancel) -> Self {
        self.on_cancel = on_cancel;
        self
    }

    /// Whether requests have spans, children of their gateway's: `false` without.
    ///
    /// The spans go to OpenTelemetry's global tracer provider, which the program sets up before it
    /// serves. While a handler runs, its request's span is the current context, so that spans of
    /// its own, made by OpenTelemetry's API or by `tracing` with the layer of
    /// `tracing-opentelemetry`, are its children.
    #[cfg(feature = "trace")]
    pub fn traced(mut self, traced: bool) -> Self {
        self.traced = if traced { Wanted::Asked } else { Wanted::None };
        self
    }

    /// Spans as with [`traced`](Self::traced), for a tracer provider that samples as `sampler`
    /// does: of a request that is not sampled no span is made at all, and the provider is not
    /// asked.
    #[cfg(feature = "trace")]
    pub fn sampled(mut self, sampler: HeadSampler) -> Self {
        self.traced = Wanted::Sampled(sampler);
        self
    }

    /// After how long a caller is told that its request is at work here, so that it can cancel it.
    /// 50 ms without. A caller that is neither told nor answered within a second tries an
    /// idempotent request elsewhere.
    pub fn accepted_after(mut self, after: Duration) -> Self {
        self.limits.accepted_after = after;
        self
    }

    /// Whether tunnels to gateways are dialled when a body does not fit in a message: they are,
    /// without.
    pub fn tunnels(mut self, mode: TunnelMode) -> Self {
        self.tunnels.mode = mode;
        self
    }

    /// The networks in which gateways may be that tunnels are dialled to: this machine and private
    /// networks, without. Whoever may send requests names addresses, so this bounds where that can
    /// lead.
    pub fn tunnels_to(mut self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.tunnels.reach = Some(networks.into_iter().collect());
        self
    }

    /// Whether tunnels without TLS are taken to gateways on other machines: not, without. On this
    /// machine they are.
    pub fn tunnels_in_cleartext(mut self, allowed: bool) -> Self {
        self.tunnels.allows_cleartext = allowed;
        self
    }

    /// Streams at a time, all readers together: bodies that go on, WebSockets and other upgrades,
    /// calls by gRPC. 1,000 without. More are left to other workers.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.tunnels.max_streams = streams;
        self
    }

    /// Bytes that a gateway may send of one body before the handler has taken them: 256 KiB
    /// without. The rate of an upload is at most this by round trip. Taken as 64 KiB to 4 MiB.
    pub fn tunnel_window(mut self, bytes: u32) -> Self {
        self.tunnels.settings.stream_window_bytes = bytes;
        self
    }

    /// Works on requests that a stream has stored, besides those of the subject: none without.
    pub fn work_queue(mut self, queue: WorkQueue) -> Self {
        self.work_queue = Some(queue);
        self
    }

    /// One more member of `data` in what `nats micro stats` shows: `value` is called for each
    /// answer, on a thread that reads requests, so it must not wait.
    pub fn stats(
        mut self,
        name: &'static str,
        value: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.stats.0.push((name, Arc::new(value)));
        self
    }

    /// Checks every option.
    pub(crate) fn check(self) -> Result<Config, Error> {
        let mut errors = Vec::new();
        let mut subjects = Vec::with_capacity(self.subjects.len());
        for subject in &self.subjects {
            match subject.parse::<Subject>() {
                Ok(parsed) => subjects.push(parsed),
                Err(error) => errors.push(format!("subject {subject:?} {error}")),
            }
        }
        let queue_group = self.queue_group.parse::<QueueGroup>().unwrap_or_else(|error| {
            errors.push(format!("queue group {:?} {error}", self.queue_group));
            QueueGroup::default()
        });
        let broker = self.broker.or_else(|| BrokerConfig::new("nats://127.0.0.1:4222").ok());
        let name = self.name.unwrap_or_else(|| default_name(&self.subjects[0]));
        if !is_service_name(&name) {
            errors.push(format!("name {name:?}: expected letters, digits, `-` and `_`"));
        }
        let instance = self.instance.unwrap_or_else(natsway_boot::random_id);
        let most = if self.namespace.is_some() { 31 } else { 64 };
        if !is_service_name(&instance) || instance.len() > most {
            errors.push(format!(
                "instance {instance:?}: expected up to {most} letters, digits, `-` and `_`"
            ));
        }
        if let Some(namespace) = &self.namespace
            && (!is_service_name(namespace) || namespace.len() > 32)
        {
            errors.push(format!(
                "namespace {namespace:?}: expected up to 32 letters, digits, `-` and `_`"
            ));
        }
        if !is_semver(&self.version) {
            errors.push(format!("version {:?}: expected a SemVer such as 1.2.3", self.version));
        }
        let Limits { in_flight, in_flight_bytes, response_bytes, .. } = self.limits;
        for (limit, value) in [
            ("max_in_flight", in_flight),
            ("max_in_flight_bytes", in_flight_bytes),
            ("max_response_bytes", response_bytes),
        ] {
            if value == 0 {
                errors.push(format!("{limit} 0: expected 1 or more"));
            }
        }
        let work_queue = self.work_queue.and_then(|queue| queue.check(&queue_group, &mut errors));
        let mut stats = self.stats;
        if let Some(queue) = &work_queue {
            let counts = Arc::clone(&queue.counts);
            stats.0.push(("work", Arc::new(move || counts.read())));
        }
        let mut metadata = self.metadata;
        let mut default = |key: &str, value: &str| {
            metadata.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        };
        default("natsway.version", last_token(&self.subjects[0]));
        let speaks = if self.tunnels.mode == TunnelMode::Off { "1" } else { "2" };
        default("natsway.wire", speaks);
        if let Some(id) = provisioned(|name| std::env::var(name).ok()) {
            default(PROVISIONED, &id);
        }
        match broker {
            Some(broker) if errors.is_empty() => Ok(Config {
                broker,
                subjects,
                queue_group,
                name,
                version: self.version,
                instance,
                namespace: self.namespace,
                description: self.description,
                metadata,
                limits: self.limits,
                readers: self.readers,
                on_cancel: self.on_cancel,
                traced: self.traced,
                refused_directives: self.refused_directives,
                tunnels: self.tunnels,
                stats,
                work_queue,
            }),
            _ => Err(Error::Options(errors)),
        }
    }
}

/// Says what this instance was started as, so that whoever started it knows whose answer it reads.
pub(crate) const PROVISIONED: &str = "natsway.provisioned";

/// What whoever started this process calls it: the provisioner's id, or that of the container, by
/// which engines name the host.
fn provisioned(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    const SHORT_ID: usize = 12;
    let is_container =
        |name: &String| name.len() == SHORT_ID && name.bytes().all(|b| b.is_ascii_hexdigit());
    let by_provisioner = variable("NATSWAY_PROVISIONED").filter(|id| is_service_name(id));
    by_provisioner.or_else(|| variable("HOSTNAME").filter(is_container))
}

impl Config {
    /// The end of pipes of one reader, which sends by this outbox.
    pub(crate) fn pipe_end(&self, outbox: &Arc<Outbox>) -> PipeEnd {
        PipeEnd::new(
            self.broker.clone(),
            format!("worker pipes {} {}", self.name, self.instance),
            self.subjects.clone(),
            self.queue_group.clone(),
            Arc::clone(outbox),
        )
    }

    /// The instance as gateways know it: with its namespace, if it has one.
    pub(crate) fn full_instance(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}.{}", self.instance),
            None => self.instance.clone(),
        }
    }
}

/// `svc.math.blue` gives `blue`.
pub(crate) fn last_token(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}

/// `svc.math.blue` gives `math`, and `math` gives `math`.
fn default_name(subject: &str) -> String {
    let mut tokens = subject.rsplit('.');
    let last = tokens.next().unwrap_or_default();
    let token = tokens.next().unwrap_or(last);
    let plain = |letter: char| if is_name_letter(letter) { letter } else { '_' };
    token.chars().map(plain).collect()
}

fn is_name_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_')
}

/// ADR-32: what may be a service's name, since it becomes a token of `$SRV` subjects.
fn is_service_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name.chars().all(is_name_letter)
}

/// Whether `version` is a version by <https://semver.org> 2.0.0.
fn is_semver(version: &str) -> bool {
    let (rest, build) =
        version.split_once('+').map_or((version, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let identifier = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let pre_release = |part: &str| identifier(part) && (!digits(part) || number(part));
    let core: Vec<&str> = core.split('.').collect();
    core.len() == 3
        && core.into_iter().all(number)
        && pre.is_none_or(|pre| pre.split('.').all(pre_release))
        && build.is_none_or(|build| build.split('.').all(identifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_enough() {
        let config = Options::new("svc.math.blue").check().unwrap();
        assert_eq!((config.name.as_str(), config.queue_group.as_str()), ("math", "q"));
        assert_eq!(config.metadata["natsway.version"], "blue");
        assert_eq!(config.metadata["natsway.wire"], "2");
    }

    #[test]
    fn every_error_is_told_at_once_with_its_value() {
        let options = Options::new("svc.*")
            .queue_group("a b")
            .name("x.y")
            .version("blue")
            .instance("")
            .max_in_flight(0);
        let error = options.check().unwrap_err().to_string();
        for part in
            ["\"svc.*\"", "\"a b\"", "\"x.y\"", "\"blue\"", "instance \"\"", "max_in_flight 0"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn an_instance_says_what_it_was_started_as() {
        let told = |pairs: &[(&str, &str)]| {
            let pairs: BTreeMap<String, String> = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            provisioned(|name| pairs.get(name).cloned())
        };
        let container = ("HOSTNAME", "0123456789ab");
        assert_eq!(told(&[("NATSWAY_PROVISIONED", "a1b2"), container]).as_deref(), Some("a1b2"));
        assert_eq!(told(&[container]).as_deref(), Some("0123456789ab"));
        assert_eq!(
            told(&[("HOSTNAME", "a-machine")]),
            None,
            "a machine's name is nobody's business"
        );
        assert_eq!(told(&[("NATSWAY_PROVISIONED", "a b")]), None);
    }

    #[test]
    fn names_come_from_the_subject() {
        for (subject, name) in [("svc.math.blue", "math"), ("math", "math"), ("svc.a+b.c", "a_b")] {
            assert_eq!(default_name(subject), name);
        }
    }

    #[test]
    fn versions_are_semver() {
        for version in ["0.1.0", "1.2.3-rc.1", "1.0.0+build.5", "10.20.30-x-y.7+z"] {
            assert!(is_semver(version), "{version}");
        }
        for version in ["", "1", "1.2", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "1.2.x"]
        {
            assert!(!is_semver(version), "{version}");
        }
    }
}
