//! The metrics of workers: `$SRV.STATS`, as ADR-32 has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use natsway_boot::exposition::Page;
use natsway_wire::Subject;
use serde::Deserialize;

use super::registry::{ANSWER_BYTES, Registry, is_name};

/// The most subjects of a worker that are told of.
const MOST_SUBJECTS: usize = 16;

/// Present in the metadata of our workers: the versions of the wire that they speak.
const WIRE: &str = "natsway.wire";

/// A worker, by what it serves.
#[derive(Debug)]
pub(super) struct Worker(Vec<Endpoint>);

/// An answer, as ADR-32 has it; what is not needed here is passed over.
#[derive(Deserialize)]
struct Stats {
    id: String,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    subject: String,
    /// Counted only, and never shown.
    #[serde(default)]
    queue_group: Option<String>,
    num_requests: u64,
    num_errors: u64,
    /// In nanoseconds.
    processing_time: u64,
    #[serde(default)]
    data: Data,
}

/// What our workers tell beyond ADR-32.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    in_flight: u64,
    in_flight_bytes: u64,
    max_in_flight: u64,
    streams: u64,
    shed: u64,
    expired: u64,
    cancelled: u64,
    overran: u64,
    refused_directives: u64,
    /// What a sidecar tells of its app.
    upstream: Option<Upstream>,
}

/// What became of requests to an app that got no response, or not all of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Upstream {
    down: u64,
    timed_out: u64,
    broken: u64,
    broken_bodies: u64,
}

/// The worker that answered; what is no answer, or not of one of ours, is none.
pub(super) fn read(answer: &[u8]) -> Option<(String, Worker)> {
    if answer.len() > ANSWER_BYTES {
        return None;
    }
    let Stats { id, metadata, mut endpoints } = serde_json::from_slice(answer).ok()?;
    let is_ours = metadata.is_some_and(|metadata| metadata.contains_key(WIRE));
    endpoints.retain(|endpoint| is_label(&endpoint.subject));
    endpoints.truncate(MOST_SUBJECTS);
    (is_ours && is_name(&id)).then_some((id, Worker(endpoints)))
}

/// Whether a subject is one, and can stand in a label without being escaped.
fn is_label(subject: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    subject.len() <= 256 && subject.bytes().all(fits) && subject.parse::<Subject>().is_ok()
}

/// The metrics in the text format of Prometheus.
pub(super) fn page(workers: &Registry<Worker>) -> String {
    let mut page = Page::default();
    let mut counts = BTreeMap::<&str, usize>::new();
    for (_, endpoint) in endpoints(workers) {
        *counts.entry(&endpoint.subject).or_default() += 1;
    }
    page.family("natsway_workers", "gauge", "Workers that answer, by the subject that they serve.");
    for (subject, count) in counts {
        page.sample("natsway_workers", &format!("subject=\"{subject}\""), count);
    }
    let mut groups = BTreeMap::<&str, BTreeSet<Option<&str>>>::new();
    for (_, endpoint) in endpoints(workers) {
        groups.entry(&endpoint.subject).or_default().insert(endpoint.queue_group.as_deref());
    }
    page.family(
        "natsway_queue_groups",
        "gauge",
        "Queue groups that the workers of a subject are in: with two, every request runs twice.",
    );
    for (subject, groups) in groups {
        page.sample("natsway_queue_groups", &format!("subject=\"{subject}\""), groups.len());
    }
    page.family(
        "natsway_workers_left_out",
        "gauge",
        "Workers that are too many to be told of one by one.",
    );
    page.sample("natsway_workers_left_out", "", workers.left_out());

    let counter = |page: &mut Page, name: &str, help: &str, metric: &dyn Fn(&Endpoint) -> f64| {
        page.family(name, "counter", help);
        for (worker, endpoint) in endpoints(workers) {
            let labels = format!("subject=\"{}\",worker=\"{worker}\"", endpoint.subject);
            page.sample(name, &labels, metric(endpoint));
        }
    };
    counter(
        &mut page,
        "natsway_worker_requests_total",
        "Requests that ran to their end.",
        &|endpoint| endpoint.num_requests as f64,
    );
    counter(
        &mut page,
        "natsway_worker_errors_total",
        "Requests answered with 500 or above, and requests that could not be read.",
        &|endpoint| endpoint.num_errors as f64,
    );
    counter(
        &mut page,
        "natsway_worker_processing_seconds_total",
        "Time that requests took, from their arrival to their encoded answer.",
        &|endpoint| endpoint.processing_time as f64 / 1e9,
    );
    counter(
        &mut page,
        "natsway_worker_refused_directives_total",
        "Directives of an autoscaler that were none, or another subject's.",
        &|endpoint| endpoint.data.refused_directives as f64,
    );
    reasons(
        workers,
        &mut page,
        "natsway_worker_refused_total",
        "Requests that did not run: the worker was full (shed), or they came after their deadline \
         (expired).",
        |data| [("shed", data.shed), ("expired", data.expired)],
    );
    reasons(
        workers,
        &mut page,
        "natsway_worker_dropped_total",
        "Requests whose handler did not end: their caller went away (cancelled), or their deadline \
         passed (overran).",
        |data| [("cancelled", data.cancelled), ("overran", data.overran)],
    );

    upstreams(workers, &mut page);

    let gauge = |page: &mut Page, name: &str, help: &str, metric: fn(&Data) -> u64| {
        page.family(name, "gauge", help);
        for (worker, told) in workers.iter() {
            // The same at each of its subjects.
            if let Some(endpoint) = told.0.first() {
                page.sample(name, &format!("worker=\"{worker}\""), metric(&endpoint.data));
            }
        }
    };
    gauge(&mut page, "natsway_worker_in_flight", "Requests that a worker holds.", |data| {
        data.in_flight
    });
    gauge(&mut page, "natsway_worker_in_flight_bytes", "Bytes of these.", |data| {
        data.in_flight_bytes
    });
    gauge(
        &mut page,
        "natsway_worker_in_flight_limit",
        "Requests that a worker may hold; it sheds what comes beyond.",
        |data| data.max_in_flight,
    );
    gauge(
        &mut page,
        "natsway_worker_streams",
        "Streams that are open at a worker, or wait to be opened.",
        |data| data.streams,
    );
    page.text()
}

fn endpoints(workers: &Registry<Worker>) -> impl Iterator<Item = (&str, &Endpoint)> {
    workers.iter().flat_map(|(id, worker)| worker.0.iter().map(move |endpoint| (id, endpoint)))
}

/// The failures of apps behind sidecars.
fn upstreams(workers: &Registry<Worker>, page: &mut Page) {
    const NAME: &str = "natsway_worker_upstream_failures_total";
    page.family(
        NAME,
        "counter",
        "Requests that a sidecar's app took no connection for (down), did not begin to answer in \
         time (timed_out), broke before the head of its response (broken) or behind it \
         (broken_body).",
    );
    for (worker, told) in workers.iter() {
        // The same at each of its subjects.
        let Some(upstream) = told.0.first().and_then(|endpoint| endpoint.data.upstream.as_ref())
        else {
            continue;
        };
        for (reason, count) in [
            ("down", upstream.down),
            ("timed_out", upstream.timed_out),
            ("broken", upstream.broken),
            ("broken_body", upstream.broken_bodies),
        ] {
            page.sample(NAME, &format!("worker=\"{worker}\",reason=\"{reason}\""), count);
        }
    }
}

/// A counter for each of two reasons.
fn reasons(
    workers: &Registry<Worker>,
    page: &mut Page,
    name: &str,
    help: &str,
    of: fn(&Data) -> [(&'static str, u64); 2],
) {
    page.family(name, "counter", help);
    for (worker, endpoint) in endpoints(workers) {
        for (reason, count) in of(&endpoint.data) {
            let labels =
                format!("subject=\"{}\",worker=\"{worker}\",reason=\"{reason}\"", endpoint.subject);
            page.sample(name, &labels, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(id: &str, requests: u64) -> Vec<u8> {
        let endpoint = json!({
            "name": "blue", "subject": "svc.math.blue", "queue_group": "q",
            "num_requests": requests, "num_errors": 1, "last_error": "", "processing_time": 2_500_000_000_u64,
            "data": { "in_flight": 3, "max_in_flight": 512, "streams": 5, "shed": 7, "other": [] },
        });
        let document = json!({
            "type": "io.nats.micro.v1.stats_response", "name": "math", "id": id, "version": "1.0.0",
            "metadata": { WIRE: "1" }, "endpoints": [endpoint],
        });
        document.to_string().into_bytes()
    }

    fn told(answers: &[&[u8]]) -> String {
        let mut registry = Registry::default();
        registry.begin();
        answers.iter().for_each(|answer| registry.note(read(answer)));
        registry.end();
        page(&registry)
    }

    #[test]
    fn each_worker_is_told_of_by_its_subject() {
        let page = told(&[&answer("a", 5), &answer("b", 6)]);
        for line in [
            "natsway_workers{subject=\"svc.math.blue\"} 2",
            "natsway_workers_left_out 0",
            "natsway_worker_requests_total{subject=\"svc.math.blue\",worker=\"a\"} 5",
            "natsway_worker_requests_total{subject=\"svc.math.blue\",worker=\"b\"} 6",
            "natsway_worker_processing_seconds_total{subject=\"svc.math.blue\",worker=\"a\"} 2.5",
            "natsway_worker_refused_total{subject=\"svc.math.blue\",worker=\"a\",reason=\"shed\"} \
             7",
            "natsway_worker_in_flight{worker=\"a\"} 3",
            "natsway_worker_in_flight_limit{worker=\"b\"} 512",
            "natsway_worker_streams{worker=\"b\"} 5",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in:\n{page}");
        }
    }

    #[test]
    fn a_sidecar_tells_what_became_of_requests_to_its_app() {
        let text = |answer: Vec<u8>| String::from_utf8(answer).unwrap();
        let upstream =
            r#""upstream":{"connections":9,"down":1,"timed_out":2,"broken":3},"streams""#;
        let sidecar = text(answer("a", 1)).replacen(r#""streams""#, upstream, 1);
        let page = told(&[sidecar.as_bytes(), &answer("b", 1)]);
        let name = "natsway_worker_upstream_failures_total{worker=\"a\",reason=";
        for line in ["\"down\"} 1", "\"timed_out\"} 2", "\"broken\"} 3", "\"broken_body\"} 0"] {
            let line = format!("{name}{line}");
            assert!(page.lines().any(|have| have == line), "{line} is not in:\n{page}");
        }
        assert!(!page.contains("failures_total{worker=\"b\""), "it has no app behind it:\n{page}");
    }

    #[test]
    fn two_queue_groups_of_a_subject_are_counted() {
        let text = |answer: Vec<u8>| String::from_utf8(answer).unwrap();
        let other =
            text(answer("b", 1)).replace(r#""queue_group":"q""#, r#""queue_group":"other""#);
        let one = told(&[&answer("a", 1), &answer("c", 1)]);
        assert!(one.contains("natsway_queue_groups{subject=\"svc.math.blue\"} 1"), "{one}");
        let two = told(&[&answer("a", 1), other.as_bytes()]);
        assert!(two.contains("natsway_queue_groups{subject=\"svc.math.blue\"} 2"), "{two}");
    }

    #[test]
    fn strangers_and_labels_that_would_break_the_page_are_passed_over() {
        let text = |answer: Vec<u8>| String::from_utf8(answer).unwrap();
        let foreign = text(answer("a", 1)).replace(WIRE, "other.wire");
        let broken = text(answer("a", 1)).replace("svc.math.blue", "svc.math.\\\"} 1");
        let wild = text(answer("b", 1)).replace("svc.math.blue", "svc.>");
        let page = told(&[
            b"no json",
            foreign.as_bytes(),
            broken.as_bytes(),
            wild.as_bytes(),
            &answer("a\"b", 1),
        ]);
        assert!(!page.contains("subject="), "{page}");
    }
}
