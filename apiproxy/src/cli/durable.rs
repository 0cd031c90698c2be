//! What `apiproxy routes` says of durable routes.

use std::process::ExitCode;
use std::time::Duration;

use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::{Client, jetstream};
use natsway_routes::table::{Publish, Route};
use natsway_stores::definitions::RESULTS;
use serde_json::json;

use super::bucket::NOT_FOUND;

/// How long JetStream may take to say which stream listens.
const PATIENCE: Duration = Duration::from_secs(2);

/// The subject to which a route publishes, as its document has it.
pub(super) fn template(route: &Route) -> Option<String> {
    route.publish.as_ref().map(|publish| publish.subject.to_string())
}

/// Says where a request of a durable route would be stored, and whether it can be.
pub(super) async fn test(
    route: &Route,
    publish: &Publish,
    path: &str,
    broker: &Client,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let subject = match publish.subject.subject(path) {
        Ok(subject) => subject,
        Err(not_listed) => {
            println!("404: route {} has no {:?} of that value", route.name, not_listed.parameter);
            return Ok(ExitCode::from(NOT_FOUND));
        }
    };
    let stream = stream_of(broker, &subject).await;
    let expected = publish.expect_stream.as_deref();
    if json {
        let (name, fault) = match &stream {
            Ok(name) => (name.as_deref(), None),
            Err(fault) => (None, Some(fault)),
        };
        let value = json!({
            "route": route.name, "publishes_to": subject, "stream": name,
            "expect_stream": expected, "fault": fault,
        });
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    let host = route.host.as_deref().unwrap_or("any host");
    println!("route      {} ({host} {})", route.name, route.path);
    println!("stored at  {subject}");
    let said = match (stream, expected) {
        (Ok(Some(name)), Some(expected)) if name != expected => {
            format!("{name}, and {expected} is expected: requests get 503 wrong_stream")
        }
        (Ok(Some(name)), _) => name,
        (Ok(None), _) => "none listens there: requests get 503 no_stream".to_owned(),
        (Err(fault), _) => format!("not known: {fault}"),
    };
    println!("stream     {said}");
    Ok(ExitCode::SUCCESS)
}

/// Says where the result would be looked up that a status URL names.
pub(super) fn say_results(route: &Route, json: bool) {
    if json {
        println!("{}", json!({ "route": route.name, "results_in": RESULTS }));
        return;
    }
    let host = route.host.as_deref().unwrap_or("any host");
    println!("route      {} ({host} {})", route.name, route.path);
    println!("result in  bucket {RESULTS}");
}

/// The stream that listens on a subject, if there is one.
async fn stream_of(broker: &Client, subject: &str) -> Result<Option<String>, String> {
    let context = jetstream::new(broker.clone());
    let asked = context.stream_by_subject(subject);
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(name)) => Ok(Some(name)),
        Ok(Err(error)) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            Err("JetStream does not answer, or this user may not ask which stream it is".to_owned())
        }
    }
}
