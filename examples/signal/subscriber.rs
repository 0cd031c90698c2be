//! Service B: it fetches new items when a signal says that there are some, and now and then without
//! one, for a signal may be missed.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example signal-subscriber`
//!
//! `POLL_MS` is the time between two looks without a signal, 10,000 without.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;

/// As the publisher has them.
const CHANGED: &str = "items.changed";
const LIST: &str = "items.list";

/// Fetches what came behind `version`, which a look that was in vain does not change.
async fn fetch(client: &Client, version: usize) -> Vec<String> {
    match client.request(LIST, version.to_string().into()).await {
        Ok(answer) => {
            let text = String::from_utf8_lossy(&answer.payload);
            text.lines().map(str::to_owned).collect()
        }
        Err(error) => {
            eprintln!("not fetched, the next signal or look is another chance: {error}");
            Vec::new()
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), async_nats::Error> {
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let poll = std::env::var("POLL_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let client = async_nats::connect(url).await?;
    // Before the first look: what comes between the two is heard.
    let mut signals = client.subscribe(CHANGED).await?;
    let mut looks = tokio::time::interval(Duration::from_millis(poll));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut version = 0;
    loop {
        let by = tokio::select! {
            signal = signals.next() => match signal {
                Some(_) => "signal",
                None => return Ok(()),
            },
            _ = looks.tick() => "look",
        };
        for item in fetch(&client, version).await {
            version += 1;
            println!("{item}, by {by}");
        }
    }
}
