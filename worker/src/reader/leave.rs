//! What the last member of a subject does before it leaves: it has the gateways stand in for it.
//!
//! In a cluster, a server that receives a routed message after its last local member left drops it
//! without a word. So whoever leaves asks who else is there, and when nobody is, asks the gateways
//! to answer in its stead that the request did not run; only then does it unsubscribe.

use std::time::Duration;

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_wire::{QueueGroup, Subject, control};
use tracing::{debug, info};

/// How long another member may take to say that it is there.
const PRESENCE_LIMIT: Duration = Duration::from_millis(100);

/// How long the first gateway may take to stand in. One member of the queue group anywhere is
/// enough to lose nothing.
const TOMBSTONE_LIMIT: Duration = Duration::from_millis(250);

/// Makes sure that requests to `subject` are answered by somebody when this instance has left.
pub(crate) async fn hand_over(
    client: &Client,
    subject: &Subject,
    queue_group: &QueueGroup,
    own_id: &str,
) {
    match somebody_else(client, subject, own_id).await {
        Ok(Some(other)) => debug!(%subject, %other, "others stay"),
        Ok(None) => match ask_gateways(client, subject, queue_group).await {
            Ok(true) => info!(%subject, "last member leaves; a gateway stands in for it"),
            Ok(false) => debug!(%subject, "last member leaves; no gateway stands in for it"),
            Err(error) => debug!(%subject, %error, "gateways could not be asked"),
        },
        Err(error) => debug!(%subject, %error, "others could not be asked"),
    }
}

/// The id of another instance that serves `subject` and does not leave.
async fn somebody_else(
    client: &Client,
    subject: &Subject,
    own_id: &str,
) -> Result<Option<String>, async_nats::Error> {
    let mut other = None;
    let question = control::presence_subject(subject);
    ask(client, question, Bytes::new(), PRESENCE_LIMIT, |answer| {
        let id = String::from_utf8_lossy(answer).into_owned();
        if id != own_id {
            other = Some(id);
        }
        other.is_some()
    })
    .await?;
    Ok(other)
}

/// Asks the gateways to stand in, and says whether one does.
async fn ask_gateways(
    client: &Client,
    subject: &Subject,
    queue_group: &QueueGroup,
) -> Result<bool, async_nats::Error> {
    let mut stands_in = false;
    let question = control::tombstone_subject(subject);
    let payload = Bytes::copy_from_slice(queue_group.as_str().as_bytes());
    ask(client, question, payload, TOMBSTONE_LIMIT, |_| {
        stands_in = true;
        true
    })
    .await?;
    Ok(stands_in)
}

/// Asks all who listen and hands each answer to `enough`, until that is so, or `limit` has passed,
/// or nobody listens.
async fn ask(
    client: &Client,
    subject: String,
    payload: Bytes,
    limit: Duration,
    mut enough: impl FnMut(&[u8]) -> bool,
) -> Result<(), async_nats::Error> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(subject, inbox, payload).await?;
    let collect = async {
        while let Some(answer) = answers.next().await {
            if answer.status == Some(StatusCode::NO_RESPONDERS) || enough(&answer.payload) {
                return;
            }
        }
    };
    // Passing the limit is how this ends when not everybody answers.
    tokio::time::timeout(limit, collect).await.ok();
    Ok(())
}
