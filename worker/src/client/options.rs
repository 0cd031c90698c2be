//! How a client connects, and within which limits.

use std::time::Duration;

use natsway_boot::BrokerConfig;
#[cfg(feature = "trace")]
use natsway_boot::trace::HeadSampler;
use natsway_caller::connection::ConnectionLimits;
use natsway_routes::store::BUCKET;

use super::spans::Wanted;
use crate::Error;

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
}

impl ClientOptions {
    /// Options for a caller of that name, which the broker's monitoring and the status of a rollout
    /// show: its service's.
    pub fn new(name: impl Into<String>) -> ClientOptions {
        ClientOptions {
            name: name.into(),
            broker: None,
            bucket: BUCKET.to_owned(),
            limits: ConnectionLimits { in_flight: 8_192, in_flight_bytes: 32 << 20 },
            patience: Duration::from_secs(5),
            traced: None,
        }
    }

    /// The broker; `nats://127.0.0.1:4222` without.
    pub fn broker(mut self, broker: BrokerConfig) -> ClientOptions {
        self.broker = Some(broker);
        self
    }

    /// The bucket that the routes live in, `natsway-routes` without. It is read, never written or
    /// made.
    pub fn bucket(mut self, bucket: impl Into<String>) -> ClientOptions {
        self.bucket = bucket.into();
        self
    }

    /// Calls out at once; more fail with
    /// [`CallErrorKind::Unavailable`](crate::CallErrorKind::Unavailable). 8,192 without.
    pub fn max_in_flight(mut self, calls: usize) -> ClientOptions {
        self.limits.in_flight = calls;
        self
    }

    /// Bytes of the calls out at once. 32 MiB without: the broker drops a client for which twice as
    /// much is pending.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> ClientOptions {
        self.limits.in_flight_bytes = bytes;
        self
    }

    /// How long [`connect`](crate::Client::connect) waits for a broker that is away and for the
    /// routes. 5 s without.
    pub fn patience(mut self, patience: Duration) -> ClientOptions {
        self.patience = patience;
        self
    }

    /// Whether calls and their tries have spans, children of the request that is being handled:
    /// `false` without. They go to OpenTelemetry's global tracer provider; what a request's own
    /// trace says of sampling goes for its calls.
    #[cfg(feature = "trace")]
    pub fn traced(self, traced: bool) -> ClientOptions {
        let sampler = traced.then(|| HeadSampler::share(1.0).heeding_parent());
        ClientOptions { traced: sampler, ..self }
    }

    /// Spans as with [`traced`](Self::traced), for a tracer provider that samples as `sampler`
    /// does.
    #[cfg(feature = "trace")]
    pub fn sampled(self, sampler: HeadSampler) -> ClientOptions {
        ClientOptions { traced: Some(sampler), ..self }
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
        match self.broker.or_else(|| BrokerConfig::new("nats://127.0.0.1:4222").ok()) {
            Some(broker) if errors.is_empty() => {
                let ClientOptions { name, bucket, limits, patience, traced, .. } = self;
                Ok(Config { name, broker, bucket, limits, patience, traced })
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
        let error = options.check().unwrap_err().to_string();
        for part in ["name \"\"", "\"a.b\"", "max_in_flight 0", "max_in_flight_bytes 0"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(ClientOptions::new("shop").check().is_ok());
    }
}
