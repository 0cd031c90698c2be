//! Settings of HTTP/2 on a tunnel, the same at both ends.

use std::time::Duration;

use hyper::server::conn::http2 as server;
use hyper_util::rt::TokioTimer;

use super::worker::StreamExecutor;

/// Wide enough that no number of stalled streams reaches it: 500 streams x 4 MiB are below it. A
/// stream that nobody reads keeps its part of the connection's window, so a smaller one lets a few
/// stalled downloads stop every other stream.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// The smallest and the largest that [`Settings::stream_window_bytes`] may be.
const STREAM_WINDOW_BYTES: std::ops::RangeInclusive<u32> = (64 << 10)..=(4 << 20);
/// Streams of one tunnel, at either end: so many of the widest windows are below the connection's.
const MOST_STREAMS: u32 = 500;
/// Resets that may wait for the worker to accept their streams. The peer is a gateway of ours,
/// whose clients may all leave at once; the default of 20 is for strangers.
const PENDING_RESETS: usize = 100_000;
/// How long late frames of a stream that was reset are passed over: longer than any round trip.
const RESET_MEMORY: Duration = Duration::from_secs(5);

/// What both ends of a tunnel's HTTP/2 are set to.
///
/// The defaults of the libraries let one stream end or stall all others on the connection. What is
/// not a field here is fixed for that reason: the connection's window, and the limits of resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes that a sender may be ahead of the reader of one stream. The rate of a stream is at
    /// most this by round trip: 256 KiB at 10 ms are 25 MiB/s. Taken as 64 KiB to 4 MiB.
    pub stream_window_bytes: u32,
    /// Streams at a time on one tunnel. What is above is refused, not queued: a worker dials
    /// another tunnel before that.
    pub max_streams: u32,
    /// Bytes that wait in memory for each stream because the other end's window is full.
    pub send_buffer_bytes: usize,
    /// Bytes of all fields of one head, as HTTP/2 counts them.
    pub header_list_bytes: u32,
    /// How often the gateway asks whether the worker is there, also while nothing runs.
    pub keep_alive_interval: Duration,
    /// How long an answer to that may take before the tunnel is lost.
    pub keep_alive_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window_bytes: 256 << 10,
            max_streams: MOST_STREAMS,
            send_buffer_bytes: 64 << 10,
            header_list_bytes: 128 << 10,
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Bytes that one stream may hold at this end: what came and was not read, and what waits to
    /// leave.
    ///
    /// Small frames cost their receiver more than their bytes, which is why senders merge them.
    pub fn stream_bytes(&self) -> usize {
        self.stream_window() as usize + self.send_buffer_bytes
    }

    pub(super) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(self.stream_window())
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(self.max_streams as usize)
            .max_send_buffer_size(self.send_buffer_bytes)
            .max_header_list_size(self.header_list_bytes)
            .max_concurrent_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(None)
            .reset_stream_duration(RESET_MEMORY);
        builder
    }

    pub(super) fn server(&self) -> server::Builder<StreamExecutor> {
        let mut builder = server::Builder::new(StreamExecutor);
        builder
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .initial_stream_window_size(self.stream_window())
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(self.max_streams)
            .max_send_buf_size(self.send_buffer_bytes)
            .max_header_list_size(self.header_list_bytes)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(usize::MAX)
            .keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .auto_date_header(false)
            .enable_connect_protocol();
        builder
    }

    fn stream_window(&self) -> u32 {
        self.stream_window_bytes.clamp(*STREAM_WINDOW_BYTES.start(), *STREAM_WINDOW_BYTES.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_of_the_widest_window_are_below_the_connections() {
        let most = u64::from(MOST_STREAMS) * u64::from(*STREAM_WINDOW_BYTES.end());
        assert!(most < u64::from(CONNECTION_WINDOW_BYTES), "{most}");
    }
}
