//! HTTP/2 by its conformance suite.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use natsway_testkit::{TestBroker, h2spec};
use tokio::process::Command;
use tokio::time::timeout;

use crate::backend::Backend;
use crate::fixture::{Gateway, ROUTES};

/// The suite takes seconds, and what hangs is cut off by itself.
const PATIENCE: Duration = Duration::from_secs(180);

/// What it has in version 2.2.1.
const CASES: usize = 145;

/// What does not pass, and why that is right: on a port where both are spoken in the clear, what is
/// not HTTP/2's preface is HTTP/1, and a broken one is answered there.
const FAILS: [&str; 1] = ["3.5/2"];

#[tokio::test]
async fn http2_passes_its_conformance_suite() {
    let Some(program) = h2spec() else { return };
    let broker = TestBroker::start().await;
    // Some cases need a body to withhold.
    let _backend = Backend::saying(&broker, "a body that takes several frames of one byte").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    // Each case waits for as long for what must not come, or must.
    let suite = Command::new(program)
        .args(["--host", "127.0.0.1", "--port", &gateway.port.to_string(), "--timeout", "3"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, suite).await.expect("the suite ends").unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let summary =
        report.lines().find(|line| line.contains("tests, ")).unwrap_or_else(|| panic!("{report}"));
    let passed = CASES - FAILS.len();
    let expected = format!("{CASES} tests, {passed} passed, 0 skipped, {} failed", FAILS.len());
    assert_eq!(summary, expected, "{report}");
    assert_eq!(failed(&report), BTreeSet::from(FAILS.map(str::to_owned)), "{report}");
    assert_eq!(gateway.get("/").await.status, 200, "and it goes on");
}

/// The sections and numbers of the cases that are listed behind `Failures:`, where a section is
/// `3.5. Its title` and a case of it `× 2: What it does`.
fn failed(report: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut failed = BTreeSet::new();
    for line in report.split("Failures:").nth(1).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("×"), Some(case)) => {
                failed.insert(format!("{section}/{}", case.trim_end_matches(':')));
            }
            (Some(first), Some(_)) if first.starts_with(|letter: char| letter.is_ascii_digit()) => {
                section = first.trim_end_matches('.');
            }
            _ => {}
        }
    }
    failed
}

#[test]
fn failures_are_found_in_a_report() {
    let report = "  3. Starting\n      × 9: not here\nFailures: \n\nHTTP/2\n  3. Starting \
                  HTTP/2\n    3.5. Preface\n      × 2: Sends\n        -> The endpoint\n  4. \
                  Frames\n      × 1: x\n\nFinished in 1.0 seconds\n";
    assert_eq!(failed(report), BTreeSet::from(["3.5/2".to_owned(), "4/1".to_owned()]));
}
