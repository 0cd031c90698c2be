//! The short form of `make prove-memory`: some of its attackers, for a moment, with fewer
//! connections.

use natsway_proofs::memory::{Size, prove};

async fn withstood(attacker: &str) {
    let size = Size { seed: 1, seconds: 3, percent: 25, only: attacker.to_owned() };
    let report = prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), [attacker], "it ran");
}

#[tokio::test]
async fn windows_that_stay_shut_fill_no_memory() {
    withstood("windows_opened_by_a_byte").await;
}

#[tokio::test]
async fn answers_that_nobody_reads_fill_no_memory() {
    withstood("large_answers_unread").await;
}

#[tokio::test]
async fn fields_of_a_byte_fill_no_memory() {
    withstood("tiny_indexed_fields").await;
}

#[tokio::test]
async fn bodies_that_come_by_the_byte_fill_no_memory() {
    withstood("http2_bodies_by_the_byte").await;
}

#[tokio::test]
async fn large_answers_at_once_are_served_to_all() {
    withstood("large_answers_at_once").await;
}
