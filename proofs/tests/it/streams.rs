//! The short form of `make prove-streams`: each promise once, but for measurements (`slow_paths`).

use natsway_proofs::streams::{self, Size};
use tokio::sync::Mutex;

/// One at a time: each is a load that would be the other one's fault.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn kept(scenario: &str) {
    let size = Size {
        seed: 1,
        requests: 1_000,
        rounds: 1,
        connections: 8,
        frozen_seconds: 1,
        switches: 2,
        percent: 10,
        downloads: 300,
        only: scenario.to_owned(),
    };
    let _alone = ALONE.lock().await;
    let report = streams::prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), [scenario], "it ran");
}

#[tokio::test]
async fn bodies_of_any_size_go_up_and_down_as_they_are() {
    kept("intact").await;
}

#[tokio::test]
async fn a_killed_worker_breaks_its_streams_off_visibly() {
    kept("worker_killed").await;
}

#[tokio::test]
async fn a_killed_gateway_leaves_no_body_that_looks_whole() {
    kept("gateway_killed").await;
}

#[tokio::test]
async fn streams_outlive_the_broker() {
    kept("broker_killed").await;
}

#[tokio::test]
async fn streams_end_whole_or_announced_when_workers_are_replaced() {
    kept("rolling_restart").await;
}

#[tokio::test]
async fn strangers_have_no_tunnels() {
    kept("strangers").await;
}

#[tokio::test]
async fn what_stands_still_for_a_moment_costs_no_stream_and_a_reset_is_seen() {
    kept("frozen").await;
}

#[tokio::test]
async fn streams_end_whole_or_announced_through_switches_and_restarts() {
    kept("switches").await;
}

#[tokio::test]
async fn half_opened_tunnels_keep_no_worker_from_its_own() {
    kept("half_opened").await;
}

#[tokio::test]
async fn what_taps_hear_opens_no_tunnel() {
    kept("taps").await;
}

#[tokio::test]
async fn a_worker_gets_no_stream_of_another_service() {
    kept("foreign_worker").await;
}

#[tokio::test]
async fn a_gateway_without_its_broker_keeps_its_streams_through_a_switch() {
    kept("cut_off").await;
}

#[tokio::test]
async fn stopped_readers_keep_the_gateway_small() {
    kept("stopped_readers").await;
}

#[tokio::test]
async fn nuisances_hurt_no_other_stream() {
    kept("nuisances").await;
}

#[tokio::test]
async fn many_downloads_leave_nothing_behind() {
    kept("soak").await;
}

#[tokio::test]
async fn an_idle_websocket_costs_little() {
    kept("idle_sockets").await;
}

#[tokio::test]
async fn streams_go_by_pipes_on_the_broker() {
    kept("by_pipes").await;
}

#[tokio::test]
async fn a_lost_broker_breaks_pipes_off_visibly() {
    kept("pipes_lose_their_broker").await;
}

#[tokio::test]
async fn a_pipe_is_replaced_where_its_broker_of_three_is_lost() {
    kept("pipes_in_a_cluster").await;
}
