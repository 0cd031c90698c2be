//! Two queue groups on one subject: each runs every message once, however many members it has.
//!
//! So a second service, say an audit, hears what the first one serves, and each of them scales by
//! itself. Only one of them is to answer: who asks takes the first answer and drops the others.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example two-groups`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::{Client, Message};
use futures_util::StreamExt;

const SUBJECT: &str = "orders.placed";
const MESSAGES: u32 = 1_000;

/// The members of each group, by its name.
const GROUPS: [(&str, u32); 2] = [("billing", 3), ("audit", 2)];

/// One member of a queue group.
async fn join(
    client: &Client,
    group: &'static str,
    handled: Arc<AtomicU32>,
) -> Result<(), async_nats::Error> {
    let mut messages = client.queue_subscribe(SUBJECT, group.to_owned()).await?;
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            handle(group, &message);
            handled.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn handle(group: &str, message: &Message) {
    // What the group is there for.
    assert!(!message.payload.is_empty(), "{group} got an order without a number");
}

#[tokio::main]
async fn main() -> Result<(), async_nats::Error> {
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = async_nats::connect(url).await?;
    let mut counts = Vec::new();
    for (group, members) in GROUPS {
        let handled = Arc::<AtomicU32>::default();
        for _ in 0..members {
            join(&client, group, Arc::clone(&handled)).await?;
        }
        counts.push((group, members, handled));
    }
    for number in 0..MESSAGES {
        client.publish(SUBJECT, number.to_string().into()).await?;
    }
    client.flush().await?;
    for (group, members, handled) in counts {
        let all = async {
            while handled.load(Ordering::Relaxed) < MESSAGES {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await?;
        println!("{group}: {members} members, {} messages", handled.load(Ordering::Relaxed));
    }
    Ok(())
}
