//! What the broker's monitoring port says of a queue group; an extra, for services that tell
//! nothing of themselves.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use natsway_boot::Clock;
use serde::Deserialize;

use super::{Counters, Signal, Totals, get_json, now_ms};
use crate::sample::{Fault, Sample};

/// Polls `/connz`: messages that each member of a queue group was sent. Each server tells of its
/// own connections, so name all of them.
pub struct MonitoringSignal {
    servers: Vec<Uri>,
    subject: String,
    queue_group: String,
    clock: Clock,
    totals: Totals,
}

#[derive(Deserialize)]
struct Page {
    server_id: String,
    #[serde(default)]
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    cid: u64,
    #[serde(default)]
    subscriptions_list_detail: Vec<Subscription>,
}

#[derive(Deserialize)]
struct Subscription {
    subject: String,
    #[serde(default)]
    qgroup: String,
    #[serde(default)]
    msgs: u64,
}

impl MonitoringSignal {
    /// A signal of the members of `queue_group` on `subject`; `servers` are `http://host:port`, one
    /// for each server.
    pub fn new(
        servers: Vec<Uri>,
        subject: impl Into<String>,
        queue_group: impl Into<String>,
    ) -> Self {
        let (subject, queue_group) = (subject.into(), queue_group.into());
        Self { servers, subject, queue_group, clock: Clock::start(), totals: Totals::default() }
    }

    async fn ask(&mut self) -> Result<Sample, Fault> {
        let mut answers = Vec::new();
        for server in &self.servers {
            let base = server.to_string();
            let page = format!("{}/connz?subs=detail&limit=65536", base.trim_end_matches('/'));
            let page: Uri =
                page.parse().map_err(|error| Fault::Missing(format!("{page}: {error}")))?;
            let page: Page = get_json(&page).await.map_err(Fault::Missing)?;
            for connection in page.connections {
                let of_group = connection.subscriptions_list_detail.iter().filter(|subscription| {
                    subscription.subject == self.subject && subscription.qgroup == self.queue_group
                });
                let completed = of_group.map(|subscription| subscription.msgs).sum();
                let identity = format!("{} {}", page.server_id, connection.cid);
                answers.push((identity, Counters { completed, ..Counters::default() }));
            }
        }
        let sent = self.totals.poll(answers).completed;
        Ok(Sample {
            at_ms: now_ms(&self.clock),
            source: format!("{} of {}", self.queue_group, self.subject),
            arrived: sent,
            ..Sample::default()
        })
    }
}

impl Signal for MonitoringSignal {
    fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
        self.ask().boxed()
    }
}
