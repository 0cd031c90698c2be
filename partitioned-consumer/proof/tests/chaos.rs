//! The short proof: enough chaos to notice a break, little enough to run every time.

use std::path::PathBuf;

use natsway_groups_proof::chaos::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn promises_hold_under_chaos() {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let logs = tempfile::tempdir().unwrap();
    let plan = Plan {
        seed,
        changes: 60,
        member: PathBuf::from(env!("CARGO_BIN_EXE_groups-member")),
        logs: logs.path().to_owned(),
        max_ack_pending: 100,
    };
    let outcome = chaos::run(plan).await.unwrap();
    assert!(outcome.verdict.kept(), "{outcome:#?}");
    assert!(outcome.verdict.published > 500, "{outcome:#?}");
    println!("{outcome:?}");
}
