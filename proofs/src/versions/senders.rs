//! Those who send requests and are no ordinary gateway: one that is cut off from the bucket, and
//! services that call others without a gateway.

use std::path::Path;
use std::time::{Duration, Instant};

use natsway_testkit::{TcpLink, TestBroker, eventually};
use serde_json::Value;

use super::fleet::{FRONT, Fleet, ROUTE, User, behind_callers, route, until};
use super::switches::switch_to_and_fro;
use super::{Size, none_failed, settle, under_load};
use crate::ledger::Ledger;
use crate::load::Load;
use crate::stand::{DEADLINE, PATIENT};
use crate::{Finding, Transport};

/// Requests that a gateway has sent by tunnels.
const BY_TUNNEL: &str = "natsway_tunnel_requests_total";

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
    let mut fleet =
        Fleet::on(broker, directory, &route("/{*rest}", &size.transport.with(PATIENT))).await?;
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

/// One of three gateways loses the broker, and keeps its tunnels to workers: it goes on answering
/// by them and the old routes, for as long as its lease lasts. A switch waits that long, and from
/// then on no request reaches the old version, although its workers and the tunnels are there.
pub(super) async fn cut_off_with_tunnels(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::builder().jetstream().start().await;
    let mut link = TcpLink::to_port(broker.port()).await;
    let routes = route("/{*rest}", &Transport::Auto.with(PATIENT));
    let mut fleet = Fleet::on(broker, directory, &routes).await?;
    fleet.add_gateway_by(None, Some(link.url())).await;
    fleet.add_gateway(None).await;
    fleet.add_gateway(None).await;
    for version in ["blue", "green"] {
        fleet.add_workers(version, 1, None).await;
    }
    let ports = fleet.ports();
    let load = Load::start_across(&ports[1..], size.connections, size.seed, 0);
    let at_cut_off = Load::start_across(&ports[..1], size.connections, size.seed, 1 << 32);
    load.reach(1_000).await;
    eventually(DEADLINE, async || match fleet.gateways[0].metric(BY_TUNNEL).await {
        Ok(by_tunnel) if by_tunnel > 100.0 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    let mut documents = fleet.documents().await?;
    match size.seed % 2 {
        0 => link.pause(),
        _ => link.cut().await,
    }
    let cut = Instant::now();
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    let by_tunnel = fleet.gateways[0].metric(BY_TUNNEL).await?;
    eventually(DEADLINE, async || {
        let now = fleet.gateways[0].metric(BY_TUNNEL).await.map_err(|error| error.to_string())?;
        // By the old routes, which are the only ones that it knows.
        if now > by_tunnel + 10.0 { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    let rollout = fleet.done(&mut documents).await?;
    let at_report = fleet.reached("blue")?;
    finding.figure("drained_after_ms", u64::try_from(cut.elapsed().as_millis())?);
    let behind = rollout["behind"].to_string();
    finding
        .promise(rollout["phase"] == "promoted" && behind.contains(&ports[0].to_string()), || {
            format!("it ended so: {rollout}")
        });
    load.more(20 * size.connections).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = fleet.reached("blue")? - at_report;
    finding.promise(late == 0, || format!("{late} bytes of requests reached blue after its drain"));

    link.resume().await;
    fleet.stop_workers("blue").await?;
    let cut_off = at_cut_off.stop().await;
    fleet.gateways[0].ready().await;
    eventually(DEADLINE, async || {
        let own = fleet.gateways[0].metric("natsway_routes_revision").await;
        let newest = fleet.gateways[1].metric("natsway_routes_revision").await;
        match (own, newest) {
            (Ok(own), Ok(newest)) if own == newest => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let again = Load::start_across(&ports[..1], size.connections, size.seed, 1 << 33);
    again.reach(20 * size.connections).await;
    let again = again.stop().await;
    finding.figure("requests_at_the_cut_off_one", cut_off.outcomes.len());
    finding.figure("failed_at_the_cut_off_one", cut_off.failures());
    let is_honest = |status: &Result<u16, String>| matches!(status, Ok(502..=504));
    let dishonest = cut_off.failed().iter().filter(|outcome| !is_honest(&outcome.status)).count();
    finding.promise(dishonest == 0, || format!("at the one cut off: {}", cut_off.failures()));
    finding.promise(again.failed().is_empty(), || {
        format!("with the broker again: {}", again.failures())
    });
    let repeated = Ledger::read(&fleet.run_logs()?)?;
    for tally in [&cut_off, &again] {
        let repeated = repeated.repeated_posts(tally);
        finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    }
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
    let mut fleet = Fleet::on(broker, directory, &behind_callers(size.transport)).await?;
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
