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

/// What this one has: so many items of an epoch, which is the publisher's from its start to its
/// end.
#[derive(Default)]
struct Known {
    epoch: String,
    version: usize,
}

/// Fetches what came behind what is known, which a look that was in vain does not change.
async fn fetch(client: &Client, known: &mut Known) -> Vec<String> {
    let question = format!("{} {}", known.epoch, known.version);
    let answer = match client.request(LIST, question.into()).await {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("not fetched, the next signal or look is another chance: {error}");
            return Vec::new();
        }
    };
    let text = String::from_utf8_lossy(&answer.payload);
    let mut lines = text.lines().map(str::to_owned);
    let epoch = lines.next().unwrap_or_default();
    if epoch != known.epoch {
        // The publisher was started again: these are all of its items.
        *known = Known { epoch, version: 0 };
    }
    let items: Vec<_> = lines.collect();
    known.version += items.len();
    items
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
    let mut known = Known::default();
    loop {
        let by = tokio::select! {
            signal = signals.next() => match signal {
                Some(_) => "signal",
                None => return Ok(()),
            },
            _ = looks.tick() => "look",
        };
        for item in fetch(&client, &mut known).await {
            println!("{item}, by {by}");
        }
    }
}
