//! A gateway that freezes in the middle, operators who cross each other, and documents that are
//! none.

use std::path::Path;

use natsway_testkit::eventually;
use serde_json::{Value, json};

use super::fleet::{Fleet, ROUTE};
use super::{Size, none_failed, settle, under_load};
use crate::Finding;
use crate::load::Load;
use crate::stand::{DEADLINE, PATIENT};

/// One of three gateways is frozen while the others switch, the old workers leave, and it wakes: it
/// is named as behind, and no request fails, not even those that waited at it. (If the broker has
/// dropped it meanwhile, those may be answered that they did not run, or that nobody knows.)
pub(super) async fn frozen_gateway(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(directory, 3, &size.transport.with(PATIENT)).await?;
    fleet.transport = size.transport;
    fleet.add_workers("blue", 1, None).await;
    fleet.add_workers("green", 1, None).await;
    let ports = fleet.ports();
    let load = Load::start_across(&ports[..2], size.connections, size.seed, 0);
    load.reach(1_000).await;
    let connects = "natsway_broker_connects_total";
    let connected = fleet.gateways[2].metric(connects).await?;
    fleet.gateways[2].process.freeze();
    // The system accepts their connections, and what they send waits.
    let waiting = Load::start_across(&ports[2..], 8, size.seed, 1 << 32);
    let mut documents = fleet.documents().await?;
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    let rollout = fleet.done(&mut documents).await?;
    let behind = rollout["behind"].to_string();
    finding.figure("behind", behind.as_str());
    finding.promise(behind.contains(&ports[2].to_string()), || {
        format!("the frozen gateway is not named: {behind}")
    });
    fleet.stop_workers("blue").await?;
    fleet.gateways[2].process.thaw();
    waiting.reach(200).await;
    load.more(10 * size.connections).await;
    let moved = fleet.gateways[2].metric("natsway_failed_attempts_total{reason=\"moved\"}").await?;
    finding.figure("moved_at_the_frozen_one", moved);
    let woken = waiting.stop().await;
    finding.figure("requests_at_the_frozen_one", woken.outcomes.len());
    finding.figure("failed_at_the_frozen_one", woken.failures());
    let was_dropped = fleet.gateways[2].metric(connects).await? > connected;
    finding.figure("frozen_one_was_dropped", was_dropped);
    let is_honest = |status: &Result<u16, String>| was_dropped && matches!(status, Ok(503 | 504));
    let dishonest = woken.failed().iter().filter(|outcome| !is_honest(&outcome.status)).count();
    finding.promise(dishonest == 0, || {
        format!("at the gateway that woke failed: {}", woken.failures())
    });
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

/// Two operators write the same route at the same time: one wins, the other is told.
pub(super) async fn two_operators(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let fleet = Fleet::start(directory, 1, &size.transport.with(PATIENT)).await?;
    let file = directory.join("route.json");
    let name = file.to_string_lossy().into_owned();
    let mut conflicts = 0;
    for round in 0..size.rounds {
        let (mut document, revision) = fleet.document().await?;
        document["max_body_bytes"] = json!(20_000 + round);
        std::fs::write(&file, document.to_string())?;
        let revision = revision.to_string();
        let put = ["routes", "put", &name, "--revision", &revision];
        let (one, other) = tokio::join!(fleet.cli(&put), fleet.cli(&put));
        let mut codes = [one?.code, other?.code];
        codes.sort();
        conflicts += usize::from(codes == [Some(0), Some(3)]);
    }
    finding.figure("rounds", size.rounds);
    finding.figure("one_won_and_one_was_told", conflicts);
    finding
        .promise(conflicts == size.rounds, || format!("in {conflicts} of {} rounds", size.rounds));
    Ok(())
}

/// Documents that are none are written under load: each is refused and named, and the table that
/// served goes on.
pub(super) async fn bad_documents(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let (fleet, load) = under_load(
        Fleet::start(directory, 2, &size.transport.with(PATIENT)).await?,
        size,
        &[("blue", None)],
    )
    .await;
    let bucket = fleet.bucket().await?;
    let (good, _) = fleet.document().await?;
    let documents = broken(&good, 20 + size.rounds);
    for document in &documents {
        let revision = bucket.put(ROUTE, document.clone().into()).await?;
        for gateway in &fleet.gateways {
            eventually(DEADLINE, async || {
                let taken_in = gateway.metric("natsway_routes_revision").await.unwrap_or(0.0);
                (taken_in == revision as f64)
                    .then_some(())
                    .ok_or(format!("{taken_in} of {revision}"))
            })
            .await;
            let refused = gateway.metric("natsway_routes{state=\"refused\"}").await?;
            finding.promise(refused == 1.0, || format!("not refused: {document}"));
        }
    }
    let tally = settle(finding, &fleet, load, directory).await?;
    finding.figure("documents", documents.len());
    none_failed(finding, &tally);
    Ok(())
}

/// Documents that no gateway may take: cut off, of a wrong type, with a member too much, or without
/// sense.
fn broken(good: &Value, count: usize) -> Vec<String> {
    let text = good.to_string();
    let changed = |key: &str, value: Value| {
        let mut document = good.clone();
        document[key] = value;
        document.to_string()
    };
    let mut documents = vec![
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        changed("schema", json!(99)),
        changed("name", json!("another")),
        changed("name", json!("")),
        changed("path", json!("no slash")),
        changed("path", json!("/{")),
        changed("target", json!([])),
        changed("target", json!([{ "version": "blue", "subject": "svc.>" }])),
        changed("target", json!([{ "version": "blue", "subject": "$SYS.REQ" }])),
        changed("target", json!([{ "version": "blue", "subject": "svc.x", "weight": -1 }])),
        changed("timeout", json!("soon")),
        changed("methods", json!(["get"])),
        changed("rule", json!([{ "header": "x", "version": "red" }])),
        changed("sticky", json!({})),
        changed("colour", json!("red")),
        changed("rollout", json!({ "phase": "dancing" })),
        changed("codec", json!(7)),
    ];
    while documents.len() < count {
        // No beginning of a document is one.
        let end = fastrand::usize(1..text.len());
        documents.push(text[..end].to_owned());
    }
    documents
}
