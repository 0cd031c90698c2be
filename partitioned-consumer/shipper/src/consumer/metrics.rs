//! What a consumer counts, and the page of it.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use crate::metrics::{Kind, Metric, Row, page};

/// Refused messages are all counted, and told of so often.
const TELL_REFUSALS_EVERY: Duration = Duration::from_secs(10);

/// What a process counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) messages: Metric,
    pub(super) bytes: Metric,
    pub(super) groups: Metric,
    pub(super) duplicates: Metric,
    pub(super) ahead: Metric,
    pub(super) stale: Metric,
    pub(super) lost_bytes: Metric,
    pub(super) skipped_bytes: Metric,
    pub(super) cut_bytes: Metric,
    pub(super) overtaken: Metric,
    pub(super) refused: Metric,
    pub(super) stopped: Metric,
    pub(super) parked: Metric,
    pub(super) queued_bytes: Metric,
    pub(super) open_files: Metric,
    pub(super) lookups: Metric,
    pub(super) sources: Metric,
    /// Set once it is known.
    source_loss: OnceLock<Metric>,
    refusal_told: Mutex<Option<Instant>>,
    last_error: Mutex<Option<String>>,
}

impl Metrics {
    /// Notes what went wrong; `true` when that is news.
    pub(super) fn failed(&self, error: String) -> bool {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.is_none();
        *last = Some(error);
        news
    }

    /// Counts messages that can never be written, and says so, naming the host; not for each, since
    /// whoever sends one may send many.
    pub(super) fn refuse(&self, messages: u64, host: &str, reason: &str) {
        self.refused.add(messages);
        let mut told = self.refusal_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_REFUSALS_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        let (host, total) = (host.to_owned(), self.refused.get());
        self.failed(format!("messages of {host} were refused: {reason}"));
        error!(host, reason, total, "a message that can never be written is dropped");
    }

    /// What the stream dropped before the group copied it, as far as anybody knows by now.
    pub(super) fn source_loss(&self, messages: u64) {
        self.source_loss.get_or_init(Metric::default).set(messages);
    }

    /// Something went well.
    pub(super) fn recovered(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn page(&self) -> String {
        let counter = |name, help, value: &Metric| Row {
            name,
            help,
            kind: Kind::Counter,
            value: Some(value.get()),
        };
        let gauge = |name, help, value: &Metric| Row {
            name,
            help,
            kind: Kind::Gauge,
            value: Some(value.get()),
        };
        page([
            counter("shipper_messages_total", "Messages written and acknowledged.", &self.messages),
            counter("shipper_bytes_total", "Bytes written and committed.", &self.bytes),
            counter("shipper_groups_total", "Groups committed.", &self.groups),
            counter(
                "shipper_duplicates_total",
                "Messages that were written before.",
                &self.duplicates,
            ),
            counter(
                "shipper_ahead_total",
                "Messages whose predecessor has to be sent again.",
                &self.ahead,
            ),
            counter("shipper_stale_total", "Messages of an older history, dropped.", &self.stale),
            counter(
                "shipper_lost_bytes_total",
                "Bytes that the broker acknowledged and lost.",
                &self.lost_bytes,
            ),
            counter(
                "shipper_skipped_bytes_total",
                "Bytes that producers could not read.",
                &self.skipped_bytes,
            ),
            counter(
                "shipper_cut_bytes_total",
                "Uncommitted bytes cut from files at the start.",
                &self.cut_bytes,
            ),
            counter(
                "shipper_overtaken_total",
                "Commits refused since another consumer was first.",
                &self.overtaken,
            ),
            counter(
                "shipper_refused_total",
                "Messages that can never be written, dropped.",
                &self.refused,
            ),
            gauge("shipper_stopped", "1 while lines cannot be written.", &self.stopped),
            gauge(
                "shipper_parked_messages",
                "Messages that wait for another partition.",
                &self.parked,
            ),
            gauge("shipper_group_bytes", "Bytes of the group that is written.", &self.queued_bytes),
            gauge("shipper_open_files", "Files that are open.", &self.open_files),
            gauge("shipper_sources", "Sources that the directory has files of.", &self.sources),
            counter(
                "shipper_lookups_total",
                "Messages looked up in the stream to decide on others.",
                &self.lookups,
            ),
            Row {
                name: "shipper_source_loss_messages",
                help: "Messages that the stream dropped before the group copied them.",
                kind: Kind::Gauge,
                // No 0 as long as it is not known: what comes behind it at a start would look like
                // a new loss.
                value: self.source_loss.get().map(Metric::get),
            },
        ])
    }
}
