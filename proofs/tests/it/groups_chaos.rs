//! The short proof: enough chaos to notice a break, little enough to run every time.

use std::path::PathBuf;

use natsway_partitioned_consumer::GroupKind;
use natsway_proofs::groups::chaos::{self, Plan};

/// One chaos at a time: each takes a broker and eight members.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn promises_hold(kind: GroupKind, changes: u32) {
    let _turn = TURN.lock().await;
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let logs = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        seed,
        kind,
        changes,
        member: PathBuf::from(env!("CARGO_BIN_EXE_groups-member")),
        logs: logs.path().to_owned(),
        max_ack_pending: 100,
        replicas: 1,
    };
    let outcome = chaos::run(plan).await.expect("the chaos can be made");
    assert!(outcome.verdict.kept(), "{outcome:#?}");
    // Some messages for each disturbance, or the verdict would be of nothing.
    assert!(outcome.verdict.published as u32 >= 3 * changes, "{outcome:#?}");
    println!("{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_hold_under_chaos() {
    promises_hold(GroupKind::Elastic, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_of_a_static_group_hold_under_chaos() {
    promises_hold(GroupKind::Static, 20).await;
}
