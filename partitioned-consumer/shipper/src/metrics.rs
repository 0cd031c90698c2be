//! Counters of a process, as a page for Prometheus.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use natsway_boot::exposition::{CONTENT_TYPE, Page};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind};

/// A number that is counted up, or set.
#[derive(Debug, Default)]
pub(crate) struct Metric(AtomicU64);

impl Metric {
    /// Counts.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Counts down, where several have counted up.
    pub(crate) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    /// Sets it.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One line of help, the kind, and the value; none where it is not known.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) help: &'a str,
    pub(crate) kind: Kind,
    pub(crate) value: Option<u64>,
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// Writes them as a page.
pub(crate) fn page<'a>(rows: impl IntoIterator<Item = Row<'a>>) -> String {
    let mut page = Page::default();
    for Row { name, help, kind, value } in rows {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        page.family(name, kind, help);
        if let Some(value) = value {
            page.sample(name, "", value);
        }
    }
    page.text()
}

/// Serves `/metrics` until `stop`, if there is an address to serve it at.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(
    address: Option<SocketAddr>,
    page: impl Fn() -> String + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<(), Error> {
    let Some(address) = address else { return Ok(()) };
    let failed =
        |error| ErrorKind::InvalidConfig.caused(format!("SHIPPER_METRICS={address}"), error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!(address = %listener.local_addr().map_err(failed)?, "serving metrics at /metrics");
    let answer = move || {
        let text = page();
        async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], text) }
    };
    let app = Router::new().route("/metrics", get(answer));
    tokio::spawn(async move {
        let served =
            axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_text_format() {
        let row = Row { name: "lines_total", help: "Lines.", kind: Kind::Counter, value: Some(3) };
        assert_eq!(
            page([row]),
            "# HELP lines_total Lines.\n# TYPE lines_total counter\nlines_total 3\n"
        );
        let unknown = Row { name: "lost", help: "Lost.", kind: Kind::Gauge, value: None };
        assert_eq!(page([unknown]), "# HELP lost Lost.\n# TYPE lost gauge\n");
    }
}
