//! The short form of `make prove-versions`: each promise with a small load.

use natsway_proofs::Transport;
use natsway_proofs::versions::{Size, prove};

async fn kept(scenario: &str) {
    let size = Size {
        seed: 1,
        switches: 4,
        restarts: 1,
        rounds: 10,
        hold_seconds: 2,
        connections: 8,
        transport: Transport::Broker,
        only: scenario.to_owned(),
    };
    let report = prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), [scenario], "it ran");
}

#[tokio::test]
async fn versions_switch_and_no_request_fails_or_comes_late() {
    kept("blue_green").await;
}

#[tokio::test]
async fn a_pair_of_gateways_restarts_and_no_request_fails() {
    kept("gateway_restarts").await;
}

#[tokio::test]
async fn a_version_that_fails_goes_back_by_itself() {
    kept("fails").await;
}

#[tokio::test]
async fn a_version_that_never_answers_goes_back_by_itself() {
    kept("hangs").await;
}

#[tokio::test]
async fn a_gateway_that_is_frozen_during_a_switch_loses_nothing() {
    kept("frozen_gateway").await;
}

#[tokio::test]
async fn a_gateway_without_the_routes_bucket_is_waited_for_and_loses_nothing() {
    kept("cut_off_gateway").await;
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_sends_nothing_by_tunnels_after_the_drain() {
    kept("cut_off_with_tunnels").await;
}

#[tokio::test]
async fn callers_without_a_gateway_follow_a_switch_and_lose_nothing() {
    kept("direct_callers").await;
}

#[tokio::test]
async fn a_canary_goes_on_whoever_of_its_drivers_is_killed() {
    kept("driver_killed").await;
}

#[tokio::test]
async fn of_two_operators_one_is_told() {
    kept("two_operators").await;
}

#[tokio::test]
async fn documents_that_are_none_change_nothing() {
    kept("bad_documents").await;
}
