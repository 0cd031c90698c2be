//! How a client connects, and within which limits.

use std::net::SocketAddr;
use std::time::Duration;

use natsway_boot::BrokerConfig;
#[cfg(feature = "trace")]
use natsway_boot::trace::HeadSampler;
use natsway_caller::connection::ConnectionLimits;
use natsway_routes::store::BUCKET;

use super::spans::Wanted;
use crate::Error;

/// The inbox prefix of callers, so that their permissions can be written down.
pub(super) const INBOX_PREFIX: &str = "_INBOX_caller";

/// How to call others. Only the name of who calls must be given.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientOptions {
    name: String,
    broker: Option<BrokerConfig>,
    bucket: String,
    limits: ConnectionLimits,
    patience: Duration,
    traced: Wanted,
    tunnel_listen: Option<SocketAddr>,
    tunnel_addresses: Vec<String>,
    tunnel_pipes: usize,
    max_streams: usize,
}

/// Options that were checked.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) broker: BrokerConfig,
    pub(super) bucket: String,
    pub(super) limits: ConnectionLimits,
    pub(super) patience: Duration,
    pub(super) traced: Wanted,
    pub(super) tunnels: Option<TunnelWays>,
    pub(super) max_streams: usize,
}

/// Where a client takes tunnels.
#[derive(Clone, Debug)]
pub(super) struct TunnelWays {
    /// Where workers dial.
    pub(super) listen: Option<SocketAddr>,
    /// What workers are told to dial; empty for what follows from the address.
    pub(super) told: Vec<String>,
    /// Pipes at a time.
    pub(super) pipes: usize,
}

impl ClientOptions {
    /// Options for a caller of that name, which the broker's monitoring and the status of a rollout
    /// show: its service's.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            broker: None,
            bucket: BUCKET.to_owned(),
            limits: ConnectionLimits { in_flight: 8_192, in_flight_bytes: 32 << 20 },
            patience: Duration::from_secs(5),
            traced: None,
            tunnel_listen: None,
            tunnel_addresses: Vec::new(),
            tunnel_pipes: 0,
            max_streams: 1_024,
        }
    }

    /// The broker; `nats://127.0.0.1:4222` without.
    pub fn broker(mut self, broker: BrokerConfig) -> Self {
        self.broker = Some(broker);
        self
    }

    /// The bucket that the routes live in, `natsway-routes` without. It is read, never written or
    /// made.
    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = bucket.into();
        self
    }

    /// Calls out at once; more fail with
    /// [`CallErrorKind::Unavailable`](crate::CallErrorKind::Unavailable). 8,192 without.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.limits.in_flight = calls;
        self
    }

    /// Bytes of the calls out at once. 32 MiB without: the broker drops a client for which twice as
    /// much is pending.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.limits.in_flight_bytes = bytes;
        self
    }

    /// How long [`connect`](crate::Client::connect) waits for a broker that is away and for the
    /// routes. 5 s without.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Takes tunnels at this address, so that bodies may be streams that fit in no message; no port
    /// is opened without. `0.0.0.0:0` is any free port of all addresses. A connection is taken only
    /// from a worker that answered a call of this client, and is encrypted.
    ///
    /// Without, and without [`tunnel_pipes`](Self::tunnel_pipes), a request's body must fit in a
    /// message (the route's `inline_body_bytes`, 64 KiB by default), and a response is waited for
    /// to its end, up to the broker's `max_payload`.
    pub fn tunnel_listen(mut self, address: SocketAddr) -> Self {
        self.tunnel_listen = Some(address);
        self
    }

    /// One more address that workers are told to dial, `host:port` or `host`: where they cannot
    /// reach the one of [`tunnel_listen`](Self::tunnel_listen) as it is known here, behind a port
    /// mapping, say. Without, every address of this machine on which tunnels are taken.
    pub fn tunnel_address(mut self, address: impl Into<String>) -> Self {
        self.tunnel_addresses.push(address.into());
        self
    }

    /// Bodies that are streams at a time, 1,024 without. A call that needs one more fails with
    /// [`CallErrorKind::Unavailable`](crate::CallErrorKind::Unavailable), or with
    /// [`CallErrorKind::OutcomeUnknown`](crate::CallErrorKind::OutcomeUnknown) where it ran
    /// already. Each may hold some 256 KiB.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.max_streams = streams;
        self
    }

    /// Takes so many tunnels at a time by pipes on the broker, from workers that cannot dial this
    /// client; 0 without. Needs no [`tunnel_listen`](Self::tunnel_listen): without that, all come
    /// by pipes, and no port is opened.
    ///
    /// Each holds up to 576 KiB. All together carry up to 32 MiB/s, both ways, for each byte
    /// crosses the broker.
    pub fn tunnel_pipes(mut self, most: usize) -> Self {
        self.tunnel_pipes = most;
        self
    }

    /// Whether calls and their attempts have spans, children of the request that is being handled:
    /// `false` without. They go to OpenTelemetry's global tracer provider; what a request's own
    /// trace says of sampling goes for its calls.
    #[cfg(feature = "trace")]
    pub fn traced(self, traced: bool) -> Self {
        let sampler = traced.then(|| HeadSampler::share(1.0).heeding_parent());
        Self { traced: sampler, ..self }
    }

    /// Spans as with [`traced`](Self::traced), for a tracer provider that samples as `sampler`
    /// does.
    #[cfg(feature = "trace")]
    pub fn sampled(self, sampler: HeadSampler) -> Self {
        Self { traced: Some(sampler), ..self }
    }

    /// Checks every option.
    pub(super) fn check(self) -> Result<Config, Error> {
        let mut errors = Vec::new();
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            errors.push(format!("name {:?}: expected the name of a service", self.name));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if self.bucket.is_empty() || !self.bucket.bytes().all(is_plain) {
            errors.push(format!("bucket {:?}: expected letters, digits, `-` and `_`", self.bucket));
        }
        let ConnectionLimits { in_flight, in_flight_bytes } = self.limits;
        for (limit, value) in
            [("max_in_flight", in_flight), ("max_in_flight_bytes", in_flight_bytes)]
        {
            if value == 0 {
                errors.push(format!("{limit} 0: expected 1 or more"));
            }
        }
        if self.tunnel_listen.is_none() && !self.tunnel_addresses.is_empty() {
            let told = &self.tunnel_addresses;
            errors.push(format!("tunnel_address {told:?}: expected with tunnel_listen"));
        }
        let takes_tunnels = self.tunnel_listen.is_some() || self.tunnel_pipes > 0;
        let tunnels = takes_tunnels.then_some(TunnelWays {
            listen: self.tunnel_listen,
            told: self.tunnel_addresses,
            pipes: self.tunnel_pipes,
        });
        match self.broker.or_else(|| BrokerConfig::new("nats://127.0.0.1:4222").ok()) {
            Some(broker) if errors.is_empty() => {
                let Self { name, bucket, limits, patience, traced, max_streams, .. } = self;
                Ok(Config { name, broker, bucket, limits, patience, traced, tunnels, max_streams })
            }
            _ => Err(Error::Options(errors)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_told_at_once_with_its_value() {
        let options = ClientOptions::new("").bucket("a.b").max_in_flight(0).max_in_flight_bytes(0);
        let error = options.tunnel_address("shop").check().unwrap_err().to_string();
        let limits = ["max_in_flight 0", "max_in_flight_bytes 0"];
        let others = ["name \"\"", "\"a.b\"", "tunnel_address [\"shop\"]"];
        for part in limits.into_iter().chain(others) {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(ClientOptions::new("shop").check().is_ok());
    }
}
