//! A gateway that is cut off from the broker, with its tunnels alive, while versions switch.

use std::path::Path;
use std::time::Duration;

use http::Method;
use natsway_testkit::{TcpLink, TestBroker, eventually};
use tokio_util::sync::CancellationToken;

use super::Size;
use super::client::{SocketEnd, chat, download, events, read};
use crate::Finding;
use crate::stand::{DEADLINE, PATIENT};
use crate::versions::fleet::{Fleet, is_done, route, until};

/// Read for six seconds.
const BODY_BYTES: u64 = 48 << 20;
const RATE: u32 = 8 << 20;

/// One of two gateways loses the broker. Its streams go on; the other one switches; the old version
/// leaves, and what has not ended then is told so. The one cut off opens nothing at the version
/// that was left, not while it is cut off and not when it is back.
pub(super) async fn cut_off(
    _: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::builder().jetstream().start().await;
    let mut way = TcpLink::to_port(broker.port()).await;
    let mut fleet = Fleet::on(broker, directory, &route("/{*rest}", PATIENT)).await?;
    fleet.environment.push(("NATSWAY_WORKER_DRAIN_TIMEOUT", "3s".to_owned()));
    fleet.add_gateway(None).await;
    fleet.add_gateway_by(None, Some(way.url())).await;
    fleet.add_workers("blue", 1, None).await;
    fleet.add_workers("green", 1, None).await;

    let ports = [fleet.gateways[1].port];
    let never = CancellationToken::new();
    let body = tokio::spawn(async move { download(&ports, BODY_BYTES, true, Some(RATE)).await });
    let pause = Duration::from_millis(50);
    let told = tokio::spawn(async move { chat(&ports, pause, never).await });
    let ticks = tokio::spawn(async move { events(&ports, None, 50).await });
    eventually(DEADLINE, async || {
        let sample = r#"natsway_streams_open{route="prove",version="blue"}"#;
        match fleet.gateways[1].metric(sample).await {
            Ok(3.0) => Ok(()),
            other => Err(format!("streams: {other:?}")),
        }
    })
    .await;
    way.cut().await;

    let mut documents = fleet.documents().await?;
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    until(&mut documents, |rollout| rollout["phase"] == "checking").await?;
    let rollout =
        until(&mut documents, |rollout| is_done(rollout["phase"].as_str().unwrap_or_default()));
    let rollout = rollout.await?;
    let behind = rollout["behind"].as_array().map_or(0, Vec::len);
    let is_named = rollout["phase"] == "promoted" && behind == 1;
    finding.promise(is_named, || format!("the one cut off is not named: {rollout}"));
    let reached = fleet.reached("blue")?;
    // It has the tunnel, and may not ask for a stream on it.
    let asked = read(&ports, Method::GET, "/download?bytes=1000000", None);
    let asked = tokio::time::timeout(DEADLINE, asked).await;
    let is_refused = matches!(&asked, Ok(Ok(seen)) if seen.status.is_server_error());
    finding.promise(is_refused, || format!("cut off it answers {asked:?}"));

    let seen = body.await??;
    finding.promise(seen.is_complete(BODY_BYTES), || format!("its download: {seen:?}"));
    finding.promise(!told.is_finished() && !ticks.is_finished(), || {
        "its other streams ended before their version did".to_owned()
    });
    fleet.stop_workers("blue").await?;
    let (messages, end) = told.await??;
    finding.figure("messages", messages);
    finding.promise(end == SocketEnd::Closed(1_012), || format!("its WebSocket: {end:?}"));
    let seen = ticks.await??;
    finding.promise(seen.is_whole && seen.is_in_order, || format!("its events: {seen:?}"));

    way.resume().await;
    eventually(DEADLINE, async || match download(&ports, 1 << 20, false, None).await {
        Ok(seen) if seen.is_complete(1 << 20) => Ok(()),
        other => Err(format!("back again: {other:?}")),
    })
    .await;
    let late = fleet.reached("blue")? - reached;
    finding.promise(late == 0, || format!("{late} bytes of requests reached blue"));
    fleet.all_let_go().await;
    Ok(())
}
