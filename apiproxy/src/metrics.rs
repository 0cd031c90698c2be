//! What the gateway counts. Each shard writes its own metrics, so the hot path shares nothing;
//! `/metrics` sums them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use natsway_boot::exposition::Page;
use natsway_caller::attempt::AttemptError;
use natsway_caller::codec_pools::CodecCounts;
use natsway_caller::counter::{ConnectionCounts, Counter, DispatchCounts, Gauge, TunnelCounts};
use natsway_caller::publish::PublishError;
use natsway_routes::metrics::{AttemptMetrics, Recorder};
use natsway_routes::report::VersionMetrics;
use natsway_routes::watch::BucketStatus;
use natsway_tunnel::pipe::PipeMeter;

use crate::linger::LingerCounts;
use crate::memory::MemoryMetrics;

/// Upper bounds of the latency buckets, in microseconds: half a millisecond to half a minute.
const BOUNDS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Latencies, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is above them all.
    buckets: [Counter; BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts one latency.
    pub fn observe(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].inc();
        self.sum_us.add(us);
    }
}

/// One shard's metrics for one version of one route.
#[derive(Debug)]
pub struct TargetStats {
    route: String,
    version: String,
    /// Responses by status class: 2xx to 5xx.
    responses: [Counter; 4],
    /// From the request's head to the response's.
    duration: Histogram,
    /// The attempts that were made with it.
    pub attempts: Arc<Recorder>,
}

impl TargetStats {
    /// The route's name.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// The version's name.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Counts a response to a client.
    pub fn responded(&self, status: http::StatusCode, latency: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(2, 5) - 2;
        self.responses[class].inc();
        self.duration.observe(latency);
    }
}

/// Why a client's connection was closed that would have stayed open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientClose {
    /// It took its answers too slowly, or not at all.
    Slow,
    /// It had no request for a while.
    Idle,
    /// There was no room for what it began.
    NoRoom,
}

impl ClientClose {
    /// Every reason, for metrics.
    pub const ALL: [Self; 3] = [Self::Slow, Self::Idle, Self::NoRoom];

    /// The name that metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Idle => "idle",
            Self::NoRoom => "no_room",
        }
    }
}

/// What a client hears that asks for a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultState {
    /// It is not there yet.
    Pending,
    /// It was given.
    Done,
    /// There is none of that id, or no longer.
    Unknown,
}

impl ResultState {
    /// Every state, for metrics.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Done, Self::Unknown];

    /// The name that metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }
}

/// One shard's metrics.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    /// Connections of clients that are open.
    pub connections: Gauge,
    /// The memory that it holds for clients.
    pub memory: Arc<MemoryMetrics>,
    /// Connections that were closed because their clients took too little, by [`ClientClose`].
    closes: [Counter; ClientClose::ALL.len()],
    /// What clients heard that asked for results, by [`ResultState`].
    results: [Counter; ResultState::ALL.len()],
    /// Requests that came in.
    pub requests: Counter,
    /// What its dispatcher counts.
    pub dispatch: Arc<DispatchCounts>,
    /// Replies that could not be read.
    pub bad_replies: Counter,
    /// Bodies of replies whose status has none.
    pub bodies_dropped: Counter,
    /// Trailer fields that could not be passed on.
    pub trailers_dropped: Counter,
    /// Trailer fields of requests, which workers never get.
    pub request_trailers_dropped: Counter,
    /// Connections whose clients still sent what was refused.
    pub lingered: Arc<LingerCounts>,
    /// What its tunnels count.
    pub tunnels: Arc<TunnelCounts>,
    /// What its broker connections count.
    pub broker_connections: CodecCounts,
    problems: Mutex<BTreeMap<&'static str, u64>>,
    /// By route and version.
    targets: Mutex<BTreeMap<String, BTreeMap<String, Arc<TargetStats>>>>,
    /// The revision of the routes by which every request goes that is sent from now on.
    routes_revision: AtomicU64,
}

impl ShardMetrics {
    /// Counts a client's connection that was closed.
    pub fn closed(&self, reason: ClientClose) {
        self.closes[reason as usize].inc();
    }

    /// Counts what a client heard that asked for a result.
    pub fn told_result(&self, state: ResultState) {
        self.results[state as usize].inc();
    }

    /// Counts an error that the gateway answered by itself; `code` is of a small closed set.
    pub fn problem(&self, code: &'static str) {
        *lock(&self.problems).entry(code).or_default() += 1;
    }

    /// The metrics of a version, made at the first call, kept over every change of the table.
    pub fn target(&self, route: &str, version: &str) -> Arc<TargetStats> {
        let mut targets = lock(&self.targets);
        if let Some(known) = targets.get(route).and_then(|versions| versions.get(version)) {
            return Arc::clone(known);
        }
        let stats = Arc::new(TargetStats {
            route: route.to_owned(),
            version: version.to_owned(),
            responses: Default::default(),
            duration: Histogram::default(),
            attempts: Arc::default(),
        });
        targets.entry(route.to_owned()).or_default().insert(version.to_owned(), Arc::clone(&stats));
        stats
    }

    /// Says that all requests that this shard sends from now on go by the routes of `revision`.
    pub fn goes_by(&self, revision: u64) {
        self.routes_revision.store(revision, Release);
    }

    /// The revision by which it goes. Attempts that went by older routes are among those read after
    /// this.
    pub fn routes_revision(&self) -> u64 {
        self.routes_revision.load(Acquire)
    }

    /// The metrics of all versions that there ever were.
    fn all_targets(&self) -> Vec<Arc<TargetStats>> {
        lock(&self.targets).values().flat_map(|versions| versions.values().cloned()).collect()
    }
}

/// A panic elsewhere does not make a count wrong.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes all shards' metrics in the text format of Prometheus.
pub fn render(shards: &[Arc<ShardMetrics>], routes: &BucketStatus) -> String {
    let mut page = Page::default();
    page.family("natsway_routes", "gauge", "Routes in force, and documents that are refused.");
    page.sample("natsway_routes", "state=\"serving\"", routes.serving);
    page.sample("natsway_routes", "state=\"refused\"", routes.refusals.len());
    page.family(
        "natsway_routes_revision",
        "gauge",
        "Newest revision of the routes bucket that was taken in.",
    );
    page.sample("natsway_routes_revision", "", routes.revision);

    let sum =
        |metric: fn(&ShardMetrics) -> i64| shards.iter().map(|shard| metric(shard)).sum::<i64>();
    let count = |metric: fn(&ShardMetrics) -> &Counter| {
        shards.iter().map(|shard| metric(shard).get()).sum::<u64>()
    };
    let broker_connections = || shards.iter().flat_map(|shard| shard.broker_connections.all());
    let count_connections = |metric: fn(&ConnectionCounts) -> &Counter| {
        broker_connections().map(|connection| metric(connection).get()).sum::<u64>()
    };

    page.family("natsway_client_connections", "gauge", "Open connections of clients.");
    page.sample("natsway_client_connections", "", sum(|shard| shard.connections.get()));
    page.family(
        "natsway_client_closes_total",
        "counter",
        "Connections of clients that the gateway closed.",
    );
    for reason in ClientClose::ALL {
        let total: u64 = shards.iter().map(|shard| shard.closes[reason as usize].get()).sum();
        let total = match reason {
            // The reader of a connection counts these.
            ClientClose::NoRoom => total + count(|shard| &shard.memory.closed),
            _ => total,
        };
        page.sample(
            "natsway_client_closes_total",
            &format!("reason=\"{}\"", reason.as_str()),
            total,
        );
    }
    page.family(
        "natsway_held_bytes",
        "gauge",
        "Bytes that are held for clients: requests and answers.",
    );
    page.sample("natsway_held_bytes", "", sum(|shard| shard.memory.held_bytes.get()));
    page.family(
        "natsway_arriving_bytes",
        "gauge",
        "Bytes of these for requests that are not here whole.",
    );
    page.sample("natsway_arriving_bytes", "", sum(|shard| shard.memory.arriving_bytes.get()));
    page.family(
        "natsway_expected_reply_bytes",
        "gauge",
        "Bytes of answers that the broker is expected to bring.",
    );
    page.sample("natsway_expected_reply_bytes", "", sum(|shard| shard.memory.coming_bytes.get()));
    page.family(
        "natsway_room_waits_total",
        "counter",
        "Requests that waited for room for their answers.",
    );
    page.sample("natsway_room_waits_total", "", count(|shard| &shard.memory.waits));
    page.family("natsway_requests_total", "counter", "Requests that came in.");
    page.sample("natsway_requests_total", "", count(|shard| &shard.requests));
    page.family("natsway_retries_total", "counter", "Attempts after a request's first.");
    page.sample("natsway_retries_total", "", count(|shard| &shard.dispatch.retries));
    page.family(
        "natsway_late_replies_total",
        "counter",
        "Replies that nobody waits for: late, second or forged.",
    );
    page.sample(
        "natsway_late_replies_total",
        "",
        count_connections(|connections| &connections.late_replies),
    );
    page.family("natsway_bad_replies_total", "counter", "Replies that could not be read.");
    page.sample("natsway_bad_replies_total", "", count(|shard| &shard.bad_replies));
    page.family(
        "natsway_bodies_dropped_total",
        "counter",
        "Bodies of replies that were left out: statuses 204, 205 and 304 have none.",
    );
    page.sample("natsway_bodies_dropped_total", "", count(|shard| &shard.bodies_dropped));
    page.family(
        "natsway_trailers_dropped_total",
        "counter",
        "Trailer fields that were left out: their client takes none, or they may not be trailers.",
    );
    page.sample("natsway_trailers_dropped_total", "", count(|shard| &shard.trailers_dropped));
    page.family(
        "natsway_request_trailers_dropped_total",
        "counter",
        "Trailer fields of requests that were left out: workers get none.",
    );
    page.sample(
        "natsway_request_trailers_dropped_total",
        "",
        count(|shard| &shard.request_trailers_dropped),
    );
    page.family(
        "natsway_lingering_closes_total",
        "counter",
        "Connections whose clients went on sending what was refused, by what ended them.",
    );
    page.sample(
        "natsway_lingering_closes_total",
        "end=\"client\"",
        count(|shard| &shard.lingered.closed),
    );
    page.sample(
        "natsway_lingering_closes_total",
        "end=\"limit\"",
        count(|shard| &shard.lingered.cut),
    );
    page.family("natsway_tunnels", "gauge", "Tunnels from workers that are open.");
    page.sample("natsway_tunnels", "", sum(|shard| shard.tunnels.open.get()));
    page.family("natsway_tunnels_opened_total", "counter", "Tunnels that were opened.");
    page.sample("natsway_tunnels_opened_total", "", count(|shard| &shard.tunnels.opened));
    page.family(
        "natsway_tunnels_refused_total",
        "counter",
        "Connections that did not become a tunnel.",
    );
    page.sample("natsway_tunnels_refused_total", "", count(|shard| &shard.tunnels.refused));
    page.family("natsway_unary_tunnels", "gauge", "Tunnels for whole requests that are open.");
    page.sample("natsway_unary_tunnels", "", sum(|shard| shard.tunnels.unary_open.get()));
    page.family(
        "natsway_unary_tunnels_opened_total",
        "counter",
        "Tunnels for whole requests that were opened.",
    );
    page.sample(
        "natsway_unary_tunnels_opened_total",
        "",
        count(|shard| &shard.tunnels.unary_opened),
    );
    page.family(
        "natsway_tunnel_requests_total",
        "counter",
        "Attempts that went to a worker by a tunnel, and not by the broker.",
    );
    page.sample("natsway_tunnel_requests_total", "", count(|shard| &shard.tunnels.unary_requests));
    page.family(
        "natsway_tunnel_late_replies_total",
        "counter",
        "Answers by a tunnel that nobody waited for.",
    );
    page.sample("natsway_tunnel_late_replies_total", "", count(|shard| &shard.tunnels.unary_late));
    page.family(
        "natsway_pipes",
        "gauge",
        "Pipes on the broker that are open, each for one tunnel.",
    );
    page.sample("natsway_pipes", "", sum(|shard| shard.tunnels.pipes.get()));
    let pipes = |figure: fn(&PipeMeter) -> u64| {
        shards.iter().map(|shard| figure(&shard.tunnels.pipe_meter)).sum::<u64>()
    };
    page.family("natsway_pipes_broken_total", "counter", "Pipes that broke.");
    page.sample("natsway_pipes_broken_total", "", pipes(PipeMeter::broken));
    page.family("natsway_pipe_bytes_total", "counter", "Bytes that went by pipes, encrypted.");
    let sent = pipes(PipeMeter::sent_bytes);
    page.sample("natsway_pipe_bytes_total", r#"direction="sent""#, sent);
    let received = pipes(PipeMeter::received_bytes);
    page.sample("natsway_pipe_bytes_total", r#"direction="received""#, received);
    page.family("natsway_streams_total", "counter", "Streams that were opened on tunnels.");
    page.sample("natsway_streams_total", "", count(|shard| &shard.tunnels.streams));
    page.family(
        "natsway_streams_not_opened_total",
        "counter",
        "Streams that could not be opened: no tunnel in time, or the worker was gone.",
    );
    page.sample("natsway_streams_not_opened_total", "", count(|shard| &shard.tunnels.not_opened));
    page.family("natsway_cancelled_total", "counter", "Requests cancelled at their worker.");
    page.sample(
        "natsway_cancelled_total",
        "",
        count_connections(|connections| &connections.cancelled),
    );
    page.family(
        "natsway_broker_connections",
        "gauge",
        "Connections to the broker that are up: --connections-per-shard for each shard, and as \
         many for native routes.",
    );
    page.sample(
        "natsway_broker_connections",
        "",
        broker_connections().map(|connections| connections.connected.get()).sum::<i64>(),
    );
    page.family(
        "natsway_broker_connects_total",
        "counter",
        "Connections to the broker that were made.",
    );
    page.sample(
        "natsway_broker_connects_total",
        "",
        count_connections(|connections| &connections.sessions),
    );

    page.family("natsway_failed_attempts_total", "counter", "Attempts that gave no response.");
    for error in AttemptError::ALL {
        let total: u64 = shards.iter().map(|shard| shard.dispatch.failures(error)).sum();
        page.sample(
            "natsway_failed_attempts_total",
            &format!("reason=\"{}\"", error.as_str()),
            total,
        );
    }
    render_durable(&mut page, shards);
    page.family("natsway_problems_total", "counter", "Errors that the gateway answered by itself.");
    for (code, total) in problems(shards) {
        page.sample("natsway_problems_total", &format!("code=\"{code}\""), total);
    }
    render_targets(&mut page, shards);
    page.text()
}

/// What requests of durable routes came to.
fn render_durable(page: &mut Page, shards: &[Arc<ShardMetrics>]) {
    let count = |metric: fn(&DispatchCounts) -> &Counter| {
        shards.iter().map(|shard| metric(&shard.dispatch).get()).sum::<u64>()
    };
    page.family("natsway_published_total", "counter", "Requests that a stream stored.");
    page.sample("natsway_published_total", "", count(|dispatch| &dispatch.publish.stored));
    page.family(
        "natsway_publish_duplicates_total",
        "counter",
        "Requests that a stream had stored before, by their Idempotency-Key.",
    );
    let duplicates = count(|dispatch| &dispatch.publish.duplicates);
    page.sample("natsway_publish_duplicates_total", "", duplicates);
    page.family(
        "natsway_publish_repeats_total",
        "counter",
        "Attempts after the first to have a request stored.",
    );
    page.sample("natsway_publish_repeats_total", "", count(|dispatch| &dispatch.publish.repeats));
    page.family(
        "natsway_publish_failures_total",
        "counter",
        "Attempts to have a request stored that were not acknowledged.",
    );
    for error in PublishError::ALL {
        let failures = |shard: &Arc<ShardMetrics>| shard.dispatch.publish.failures(error);
        let total: u64 = shards.iter().map(failures).sum();
        let reason = format!("reason=\"{}\"", error.as_str());
        page.sample("natsway_publish_failures_total", &reason, total);
    }
    page.family(
        "natsway_results_total",
        "counter",
        "What clients heard that asked for the result of a stored request.",
    );
    for state in ResultState::ALL {
        let total: u64 = shards.iter().map(|shard| shard.results[state as usize].get()).sum();
        page.sample("natsway_results_total", &format!("state=\"{}\"", state.as_str()), total);
    }
}

fn problems(shards: &[Arc<ShardMetrics>]) -> BTreeMap<&'static str, u64> {
    let mut totals = BTreeMap::new();
    for shard in shards {
        for (code, count) in lock(&shard.problems).iter() {
            *totals.entry(*code).or_default() += count;
        }
    }
    totals
}

fn render_targets(page: &mut Page, shards: &[Arc<ShardMetrics>]) {
    let mut targets: BTreeMap<(String, String), Vec<Arc<TargetStats>>> = BTreeMap::new();
    for stats in shards.iter().flat_map(|shard| shard.all_targets()) {
        targets.entry((stats.route.clone(), stats.version.clone())).or_default().push(stats);
    }
    // Names are letters, digits, `-` and `_`, so labels need no escapes.
    let label =
        |(route, version): &(String, String)| format!("route=\"{route}\",version=\"{version}\"");

    page.family(
        "natsway_responses_total",
        "counter",
        "Responses to clients, by route, version and status class.",
    );
    for (names, stats) in &targets {
        for class in 0..4 {
            let total: u64 = stats.iter().map(|stats| stats.responses[class].get()).sum();
            let labels = format!("{},code=\"{}xx\"", label(names), class + 2);
            page.sample("natsway_responses_total", &labels, total);
        }
    }
    let attempts: Vec<(String, AttemptMetrics)> =
        targets.iter().map(|(names, stats)| (label(names), sum_of_attempts(stats))).collect();
    page.family("natsway_in_flight", "gauge", "Attempts that are out, by route and version.");
    for (labels, attempts) in &attempts {
        page.sample("natsway_in_flight", labels, attempts.in_flight);
    }
    page.family("natsway_streams_open", "gauge", "Streams that are open, by route and version.");
    for (labels, attempts) in &attempts {
        page.sample("natsway_streams_open", labels, attempts.streams);
    }
    page.family("natsway_attempts_total", "counter", "Attempts that ended, by route and version.");
    for (labels, attempts) in &attempts {
        page.sample("natsway_attempts_total", labels, attempts.requests());
    }
    page.family(
        "natsway_attempt_errors_total",
        "counter",
        "Attempts that ended with a status of 500 or more, or without a response.",
    );
    for (labels, attempts) in &attempts {
        page.sample("natsway_attempt_errors_total", labels, attempts.errors);
    }
    page.family(
        "natsway_duplicate_replies_total",
        "counter",
        "Replies to attempts that were answered already: a second queue group listens there, and \
         both run everything.",
    );
    for (labels, attempts) in &attempts {
        page.sample("natsway_duplicate_replies_total", labels, attempts.second_replies);
    }
    page.family(
        "natsway_attempt_seconds",
        "histogram",
        "From sending a try to its end, however it ended.",
    );
    for (labels, attempts) in &attempts {
        for (bound_us, count) in attempts.latency.cumulative_by_octave() {
            let bound = bound_us as f64 / 1e6;
            page.sample(
                "natsway_attempt_seconds_bucket",
                &format!("{labels},le=\"{bound}\""),
                count,
            );
        }
        page.sample(
            "natsway_attempt_seconds_bucket",
            &format!("{labels},le=\"+Inf\""),
            attempts.requests(),
        );
        page.sample("natsway_attempt_seconds_count", labels, attempts.requests());
    }
    page.family(
        "natsway_duration_seconds",
        "histogram",
        "From a request's head to its response's head.",
    );
    for (names, stats) in &targets {
        let mut cumulative = 0;
        for bucket in 0..=BOUNDS_US.len() {
            cumulative +=
                stats.iter().map(|stats| stats.duration.buckets[bucket].get()).sum::<u64>();
            let bound = BOUNDS_US
                .get(bucket)
                .map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            let labels = format!("{},le=\"{bound}\"", label(names));
            page.sample("natsway_duration_seconds_bucket", &labels, cumulative);
        }
        let sum_us: u64 = stats.iter().map(|stats| stats.duration.sum_us.get()).sum();
        page.sample("natsway_duration_seconds_sum", &label(names), sum_us as f64 / 1e6);
        page.sample("natsway_duration_seconds_count", &label(names), cumulative);
    }
}

/// The attempts of all shards with one version.
fn sum_of_attempts(shards: &[Arc<TargetStats>]) -> AttemptMetrics {
    let mut sum = AttemptMetrics::default();
    for stats in shards {
        sum += &stats.attempts.read();
    }
    sum
}

/// The attempts with every version that was tried, all shards together.
pub fn versions(shards: &[Arc<ShardMetrics>]) -> Vec<VersionMetrics> {
    let mut sums = BTreeMap::<(String, String), AttemptMetrics>::new();
    for stats in
        shards.iter().flat_map(|shard| shard.all_targets()).filter(|stats| stats.attempts.is_used())
    {
        *sums.entry((stats.route.clone(), stats.version.clone())).or_default() +=
            &stats.attempts.read();
    }
    let version = |((route, version), metrics)| VersionMetrics { route, version, metrics };
    sums.into_iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_sums_the_shards() {
        let shards = [Arc::new(ShardMetrics::default()), Arc::new(ShardMetrics::default())];
        for shard in &shards {
            shard.requests.inc();
            shard.dispatch.failed(AttemptError::NoResponders);
            shard.problem("no_route");
            let math = shard.target("math", "blue");
            math.responded(http::StatusCode::OK, Duration::from_millis(2));
            math.attempts.begin().failed();
        }
        let page = render(&shards, &BucketStatus::default());
        for line in [
            "natsway_requests_total 2",
            "natsway_failed_attempts_total{reason=\"no_responders\"} 2",
            "natsway_problems_total{code=\"no_route\"} 2",
            "natsway_responses_total{route=\"math\",version=\"blue\",code=\"2xx\"} 2",
            "natsway_duration_seconds_bucket{route=\"math\",version=\"blue\",le=\"0.001\"} 0",
            "natsway_duration_seconds_bucket{route=\"math\",version=\"blue\",le=\"0.0025\"} 2",
            "natsway_duration_seconds_count{route=\"math\",version=\"blue\"} 2",
            "natsway_duration_seconds_sum{route=\"math\",version=\"blue\"} 0.004",
            "natsway_attempt_errors_total{route=\"math\",version=\"blue\"} 2",
            "natsway_attempt_seconds_bucket{route=\"math\",version=\"blue\",le=\"67.108864\"} 2",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in:\n{page}");
        }
    }
}
