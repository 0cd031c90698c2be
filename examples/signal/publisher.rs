//! Service A: it has items, says by a broadcast that there are new ones, and answers which.
//!
//! The signal carries nothing but the news that there is news. Core NATS keeps no messages, so
//! whoever was away has missed it; subscribers therefore also look by themselves now and then.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example signal-publisher`
//!
//! `EVERY_MS` is the time between two items, 1,000 without. `LOSE_EVERY=3` sends no signal for each
//! third item, as if that were lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Client;
use futures_util::StreamExt;

/// The broadcast: every subscriber hears it, since none is in a queue group.
const CHANGED: &str = "items.changed";

/// Which items came behind a version: a request, answered by one member of the group.
const LIST: &str = "items.list";

/// All items in the order in which they came. The version is how many there are.
type Items = Arc<Mutex<Vec<String>>>;

/// Answers which items came behind the version that somebody has: `<epoch> <version>`. The answer
/// begins with the epoch on a line of its own.
///
/// A version counts within an epoch. One that was started again has other items and counts anew, so
/// a version of an epoch that is not this one is none: all items are new then.
async fn answer(client: Client, epoch: String, items: Items) -> Result<(), async_nats::Error> {
    let mut questions = client.queue_subscribe(LIST, "q".to_owned()).await?;
    while let Some(question) = questions.next().await {
        let text = String::from_utf8_lossy(&question.payload);
        let known = text.split_once(' ').filter(|(known, _)| *known == epoch);
        let since = known.and_then(|(_, version)| version.parse().ok()).unwrap_or(0);
        let newer = {
            let items = items.lock().unwrap_or_else(PoisonError::into_inner);
            let newer = items.get(since..).unwrap_or_default();
            std::iter::once(&epoch).chain(newer).cloned().collect::<Vec<_>>().join("\n")
        };
        if let Some(reply) = question.reply {
            client.publish(reply, newer.into()).await?;
        }
    }
    Ok(())
}

/// What no earlier run of this program was called.
fn new_epoch() -> String {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", started.as_nanos(), std::process::id())
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::main]
async fn main() -> Result<(), async_nats::Error> {
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let (every, lose_every) =
        (Duration::from_millis(number("EVERY_MS", 1_000)), number("LOSE_EVERY", 0));
    let (client, items) = (async_nats::connect(url).await?, Items::default());
    tokio::spawn(answer(client.clone(), new_epoch(), Arc::clone(&items)));
    for item in 1_u64.. {
        items.lock().unwrap_or_else(PoisonError::into_inner).push(format!("item {item}"));
        let is_lost = lose_every != 0 && item.is_multiple_of(lose_every);
        if !is_lost {
            client.publish(CHANGED, "".into()).await?;
            // Now, and not with whatever is sent next.
            client.flush().await?;
        }
        println!("item {item}{}", if is_lost { ", and its signal is lost" } else { "" });
        tokio::time::sleep(every).await;
    }
    Ok(())
}
