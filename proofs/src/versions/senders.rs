//! Those who send requests and are no ordinary gateway: one that is cut off from the bucket, and
//! services that call others without a gateway.

use std::path::Path;
use std::time::Duration;

use natsway_testkit::{TestBroker, eventually};
use serde_json::Value;

use super::fleet::{FRONT, Fleet, ROUTE, User, behind_callers, route, until};
use super::switches::switch_to_and_fro;
use super::{Size, none_failed, settle, under_load};
use crate::Finding;
use crate::stand::{DEADLINE, PATIENT};

/// The user of the gateway that is cut off; all others are anonymous.
const CUT_OFF: User = ("cutoff", "proof");

/// One of three gateways is cut off from JetStream, and from nothing else: it goes on answering, by
/// the old routes. A switch waits for it and names it, the old version serves what it sends, and
/// when it has the routes again the switch is complete: no request fails, and none reaches the old
/// version afterwards.
pub(super) async fn cut_off_gateway(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::builder().jetstream().config_lines(&users("")).start().await;
    let mut fleet = Fleet::on(broker, directory, &route("/{*rest}", PATIENT)).await?;
    fleet.add_gateway(Some(CUT_OFF)).await;
    // What it may not ask for, and what it was being told. First the one, then the other, and
    // before anybody else follows the bucket: on a busy machine it may make its watch anew at any
    // time, and a list made earlier does not have that one.
    fleet.broker.reload(&users("publish: { deny: [\"$JS.>\", \"$KV.>\"] }")).await;
    let bucket = fleet.bucket().await?;
    eventually(DEADLINE, async || {
        let own = consumers(&fleet).await.map_err(|error| error.to_string())?;
        for name in &own {
            bucket.stream.delete_consumer(name).await.map_err(|error| error.to_string())?;
        }
        if own.is_empty() {
            Ok(())
        } else {
            Err(format!("it is still told of the routes: {own:?}"))
        }
    })
    .await;
    fleet.add_gateway(None).await;
    fleet.add_gateway(None).await;

    let cut_off = fleet.gateways[0].port.to_string();
    let (mut fleet, load) = under_load(fleet, size, &[("blue", None), ("green", None)]).await;
    let mut documents = fleet.documents().await?;
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    eventually(DEADLINE, async || {
        let status =
            fleet.cli(&["rollout", "status", ROUTE]).await.map_err(|error| error.to_string())?;
        let names = |line: &str| line.starts_with("behind ") && line.contains(&cut_off);
        let is_named = status.text.contains("draining") && status.text.lines().any(names);
        is_named.then_some(()).ok_or(status.text)
    })
    .await;
    // Longer than a drain waits for one that says nothing.
    let before = fleet.reached("blue")?;
    tokio::time::sleep(Duration::from_secs(5 + size.hold_seconds)).await;
    finding.promise(fleet.reached("blue")? > before, || "the one cut off sent nothing".to_owned());
    let (document, _) = fleet.document().await?;
    let phase = &document["rollout"]["phase"];
    finding.promise(phase == "draining", || format!("it was {phase} while one still sent to blue"));

    fleet.broker.reload(&users("")).await;
    let rollout = fleet.done(&mut documents).await?;
    let at_report = fleet.reached("blue")?;
    finding.promise(rollout["phase"] == "promoted" && rollout["behind"].is_null(), || {
        format!("it ended so: {rollout}")
    });
    load.more(20 * size.connections).await;
    let late = fleet.reached("blue")? - at_report;
    finding.promise(late == 0, || format!("{late} bytes of requests reached blue after its drain"));
    fleet.stop_workers("blue").await?;
    load.more(20 * size.connections).await;
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

/// The lines of a broker's configuration: everybody may do everything, but for these permissions of
/// one user.
fn users(permissions: &str) -> String {
    let (user, password) = CUT_OFF;
    format!(
        "no_auth_user: anyone\nauthorization {{ users: [ {{ user: anyone, password: proof }}, \
         {{ user: {user}, password: {password}, permissions: {{ {permissions} }} }} ] }}"
    )
}

/// The consumers of the routes bucket.
async fn consumers(fleet: &Fleet) -> anyhow::Result<Vec<String>> {
    use futures_util::TryStreamExt;
    let bucket = fleet.bucket().await?;
    Ok(bucket.stream.consumer_names().try_collect().await?)
}

/// Services call the one under proof without a gateway, while it is switched to and fro: the
/// switches wait for what they have out as for a gateway's. Then one of them is frozen during a
/// switch, the old workers leave, and it wakes: it is named, and what it still sends to the old
/// version is answered `moved` and sent again. No request fails.
pub(super) async fn direct_callers(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    // It does not drop the one that is frozen, so that nothing is lost with a connection.
    let broker =
        TestBroker::builder().jetstream().config_lines("ping_interval: \"60s\"").start().await;
    let mut fleet = Fleet::on(broker, directory, &behind_callers()).await?;
    fleet.add_gateway(None).await;
    fleet.add_gateway(None).await;
    let mut callers = fleet.start_callers(2).await;
    let (mut fleet, load) = under_load(fleet, size, &[("blue", None), ("green", None)]).await;
    // An even number, so that it ends where it began.
    switch_to_and_fro(2 * size.rounds.div_ceil(2), &fleet, &load, finding).await?;

    callers[0].freeze();
    let mut documents = fleet.documents().await?;
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    until(&mut documents, |rollout| rollout["phase"] == "checking").await?;
    let rollout = fleet.done(&mut documents).await?;
    let behind = rollout["behind"].as_array().map_or(&[][..], Vec::as_slice);
    let names = |one: &Value| one.as_str().is_some_and(|text| text.contains(FRONT));
    finding.figure("behind", behind.to_vec());
    finding
        .promise(rollout["phase"] == "promoted" && behind.len() == 1 && names(&behind[0]), || {
            format!("the frozen caller is not named: {rollout}")
        });
    fleet.stop_workers("blue").await?;
    callers[0].thaw();
    load.more(40 * size.connections).await;
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    for mut caller in callers {
        caller.terminate();
        let status = caller.wait_exit(DEADLINE).await;
        finding.promise(status.success(), || format!("a caller left with {status}"));
    }
    Ok(())
}
