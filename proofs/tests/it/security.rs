//! The short form of `make prove-security`: all but the drops, of which chance chooses some, and
//! fewer users. `SEED` chooses others.

use natsway_proofs::security::{Size, prove};

/// How many permissions and lines are dropped, and how many users try everything.
const SAMPLE: usize = 3;

async fn holds(only: &str) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let size = Size { seed, sample: Some(SAMPLE), role: None, jobs: 3, only: only.to_owned() };
    let report = prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "seed {seed}: {:#?}", report.broken());
    assert_eq!(report.scenarios(), [only], "it ran");
}

#[tokio::test]
async fn every_program_does_its_job_and_each_permission_is_used() {
    holds("sufficient").await;
}

#[tokio::test]
async fn what_is_not_permitted_is_not_possible_and_the_list_of_what_remains_is_exact() {
    holds("kept_to").await;
}

#[tokio::test]
async fn a_worker_guesses_no_other_workers_token() {
    holds("forged_replies").await;
}

#[tokio::test]
async fn a_role_speaks_for_no_other_in_metrics_but_where_that_is_said() {
    holds("forged_metrics").await;
}

#[tokio::test]
async fn pipes_need_no_permission_of_their_own_and_other_roles_have_no_part_in_them() {
    holds("pipes").await;
}

#[tokio::test]
async fn nothing_crosses_but_what_is_listed_and_as_many_answers_come_back() {
    holds("boundaries").await;
}

#[tokio::test]
async fn users_reach_what_is_listed_and_nothing_else() {
    holds("users").await;
}

#[tokio::test]
async fn a_dropped_permission_or_line_is_noticed_and_told() {
    holds("minimal").await;
}

#[tokio::test]
async fn what_is_taken_from_a_running_program_is_told_by_it() {
    holds("revoked").await;
}

#[tokio::test]
async fn three_brokers_as_they_are_shipped_serve_all_and_lose_any_one() {
    holds("three_brokers").await;
}
