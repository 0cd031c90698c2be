//! Whether a route's requests run more than once, because two queue groups listen on one subject:
//! NATS gives a request to one member of each group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_routes::report::Report;
use natsway_routes::table::{Route, Target};
use serde::Deserialize;

/// How long services may take to say in which groups they are.
const PRESENCE_LIMIT: Duration = Duration::from_millis(300);

/// Answers that are read: a broker has no more services than that, or somebody makes them up.
const MOST_ANSWERS: usize = 4_096;

/// The queue groups that services say they are in (ADR-32), by subject.
pub(super) type Groups = BTreeMap<String, BTreeSet<String>>;

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    subject: String,
    #[serde(default)]
    queue_group: Option<String>,
}

/// Asks all services in which groups they are.
pub(super) async fn ask(client: &Client) -> anyhow::Result<Groups> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply("$SRV.INFO", inbox, Bytes::new()).await?;
    let mut groups = Groups::new();
    let until = tokio::time::Instant::now() + PRESENCE_LIMIT;
    for _ in 0..MOST_ANSWERS {
        let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await else { break };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            break;
        }
        note(&mut groups, &answer.payload);
    }
    Ok(groups)
}

fn note(groups: &mut Groups, answer: &[u8]) {
    let Ok(Info { endpoints }) = serde_json::from_slice(answer) else { return };
    for Endpoint { subject, queue_group } in endpoints {
        // Without a group, or with an empty one, each of them gets every request.
        groups.entry(subject).or_default().insert(queue_group.unwrap_or_default());
    }
}

/// Says what is wrong with who listens for a route, a sentence for each version that has it.
pub(super) fn warnings(route: &Route, groups: &Groups, reports: &[Report]) -> Vec<String> {
    route
        .split
        .targets()
        .iter()
        .filter_map(|target| warning(&route.name, target, groups, reports))
        .collect()
}

fn warning(route: &str, target: &Target, groups: &Groups, reports: &[Report]) -> Option<String> {
    let (subject, own) = (target.subject.as_str(), target.queue_group.as_str());
    let quoted = |group: &String| if group.is_empty() { "none".to_owned() } else { group.clone() };
    let others: Vec<String> = groups
        .get(subject)
        .into_iter()
        .flatten()
        .filter(|group| *group != own)
        .map(quoted)
        .collect();
    let has_own = groups.get(subject).is_some_and(|groups| groups.contains(own));
    let seconds = second_replies(route, &target.version, reports);
    let others_are = format!("queue group {}", others.join(", "));
    match (others.len(), has_own || others.len() > 1) {
        (0, _) if seconds == 0 => None,
        (0, _) => Some(format!(
            "{subject}: {seconds} requests were answered twice: somebody outside of queue group \
             {own} runs them too"
        )),
        (_, true) => Some(format!(
            "{subject}: every request runs in {others_are} and in {own}: use one group"
        )),
        (_, false) => Some(format!(
            "{subject}: its workers are in {others_are}, the route says {own}: a second group \
             would run all again"
        )),
    }
}

fn second_replies(route: &str, version: &str, reports: &[Report]) -> u64 {
    let all = reports.iter().flat_map(|report| &report.versions);
    all.filter(|of| of.route == route && of.version == version)
        .map(|of| of.metrics.second_replies)
        .sum()
}

#[cfg(test)]
mod tests {
    use natsway_routes::document::RouteDocument;
    use natsway_routes::metrics::AttemptMetrics;
    use natsway_routes::report::VersionMetrics;

    use super::*;

    fn said(groups: &[&str], second_replies: u64) -> Vec<String> {
        let json =
            r#"{"name":"greet","path":"/","target":[{"version":"v1","subject":"svc.greet.v1"}]}"#;
        let route = RouteDocument::from_json(json.as_bytes()).unwrap().check(None).unwrap();
        let mut announced = Groups::new();
        for group in groups {
            let answer = format!(
                r#"{{"endpoints":[{{"subject":"svc.greet.v1","queue_group":"{group}"}},{{"subject":"x"}}]}}"#
            );
            note(&mut announced, answer.as_bytes());
        }
        let metrics = AttemptMetrics { second_replies, ..AttemptMetrics::default() };
        let (route_name, version) = ("greet".to_owned(), "v1".to_owned());
        let versions = vec![VersionMetrics { route: route_name, version, metrics }];
        warnings(&route, &announced, &[Report { versions, ..Report::default() }])
    }

    #[test]
    fn one_group_is_sound_and_two_are_named() {
        assert_eq!(said(&[], 0), [""; 0]);
        assert_eq!(said(&["q", "q"], 0), [""; 0]);
        assert_eq!(
            said(&["q", "other"], 0),
            ["svc.greet.v1: every request runs in queue group other and in q: use one group"]
        );
        assert!(
            said(&["other"], 0)[0]
                .contains("its workers are in queue group other, the route says q")
        );
        assert!(said(&["q", ""], 0)[0].contains("in queue group none and in q"));
    }

    #[test]
    fn who_does_not_announce_itself_is_known_by_second_replies() {
        assert!(said(&["q"], 7)[0].contains("7 requests were answered twice"));
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let mut groups = Groups::new();
        for answer in [&b""[..], b"[]", br#"{"endpoints":7}"#] {
            note(&mut groups, answer);
        }
        assert!(groups.is_empty());
    }
}
