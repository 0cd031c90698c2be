//! The short form of `make prove-gateway`: each promise once, with a small load.

use natsway_proofs::{Size, Transport, gateway};

async fn kept(scenario: &str) {
    kept_by(Transport::Broker, scenario).await;
}

async fn kept_by(transport: Transport, scenario: &str) {
    let only = scenario.to_owned();
    let size = Size { seed: 1, requests: 1_000, rounds: 1, connections: 8, transport, only };
    let report = gateway::prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), [scenario], "it ran");
}

#[tokio::test]
async fn workers_restart_one_by_one_and_no_request_fails() {
    kept("rolling_restart").await;
}

#[tokio::test]
async fn the_last_worker_of_a_version_restarts_and_no_request_fails() {
    kept("last_member").await;
}

#[tokio::test]
async fn a_broker_shuts_down_in_lame_duck_mode_and_no_request_fails() {
    kept("lame_duck").await;
}

#[tokio::test]
async fn a_killed_worker_costs_only_what_it_held() {
    kept("worker_killed").await;
}

#[tokio::test]
async fn a_frozen_worker_costs_no_get() {
    kept("worker_frozen").await;
}

#[tokio::test]
async fn a_restarted_broker_is_used_within_two_seconds() {
    kept("broker_restart").await;
}

#[tokio::test]
async fn what_a_cut_network_held_back_never_runs_late() {
    kept("network_cut").await;
}

#[tokio::test]
async fn workers_restart_one_by_one_and_no_request_by_tunnels_fails() {
    kept_by(Transport::Auto, "rolling_restart").await;
}

#[tokio::test]
async fn tunnels_serve_without_a_broker_as_long_as_their_lease() {
    kept_by(Transport::Auto, "broker_away").await;
}

#[tokio::test]
async fn tunnels_that_are_cut_in_a_storm_come_back_and_nothing_runs_twice() {
    kept_by(Transport::Auto, "tunnels_cut").await;
}
