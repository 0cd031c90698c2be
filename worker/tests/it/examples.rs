//! The examples that need nothing but a broker, run as people run them.

use std::time::Duration;

use natsway_testkit::{Process, TestBroker, eventually, workspace_example};

const PATIENCE: Duration = Duration::from_secs(30);

async fn example(name: &'static str) -> std::path::PathBuf {
    tokio::task::spawn_blocking(move || workspace_example(name)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_queue_groups_runs_every_message_once() {
    let broker = TestBroker::start().await;
    let program = example("two-groups").await;
    let mut process = Process::builder(program).env("NATS_URL", broker.url()).start();
    assert!(process.wait_exit(PATIENCE).await.success(), "{}", process.stderr());
    let said = process.stdout();
    assert!(said.contains("billing: 3 members, 1000 messages"), "{said}");
    assert!(said.contains("audit: 2 members, 1000 messages"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_signal_is_caught_by_the_next_look() {
    let broker = TestBroker::start().await;
    let publisher = Process::builder(example("signal-publisher").await)
        .env("NATS_URL", broker.url())
        // The pause is so long that no later signal hides the lost one.
        .env("EVERY_MS", "500")
        .env("LOSE_EVERY", "2")
        .start();
    let subscriber = Process::builder(example("signal-subscriber").await)
        .env("NATS_URL", broker.url())
        .env("POLL_MS", "400")
        .start();
    let number = |line: &str| {
        let digits = line.strip_prefix("item ")?.split(',').next()?;
        digits.parse::<u32>().ok()
    };
    eventually(PATIENCE, async || {
        let said = subscriber.stdout();
        let has_heard = said.lines().any(|line| line.ends_with(", by signal"));
        // Of each second there is no signal.
        let has_looked = said.lines().any(|line| {
            line.ends_with(", by look")
                && number(line).is_some_and(|item| item > 1 && item % 2 == 0)
        });
        if has_heard && has_looked { Ok(()) } else { Err(said) }
    })
    .await;
    let said = subscriber.stdout();
    assert!(publisher.stdout().contains("item 2, and its signal is lost"), "{said}");
    let items = said.lines().map(|line| line.split(',').next().unwrap());
    let expected = (1..).map(|item| format!("item {item}"));
    for (item, expected) in items.zip(expected) {
        assert_eq!(item, expected, "each once and in order");
    }
}
