//! The broker connections of one thread, those to backends of another make apart from all others.
//!
//! The client library ends a connection on which NATS headers arrive that it cannot read: a value
//! that is not UTF-8, a name with a space. What is out on it is lost then, whoever it was for.
//! Workers that speak the envelope send no such headers; what a backend of `native` or `args`
//! writes, nobody knows. So these have connections of their own, and what one of them breaks is
//! theirs alone.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use natsway_boot::{BrokerConfig, DialError};
use natsway_routes::table::Codec;

use crate::connection::{ConnectionLimits, StreamEvent};
use crate::counter::ConnectionCounts;
use crate::pool::{ConnectionPool, Role};

/// The connections of a thread, by the codec of what is sent on them.
pub struct CodecPools {
    envelope: Rc<ConnectionPool>,
    native: Rc<ConnectionPool>,
    /// Whom to dial for the native ones, until somebody needs them.
    undialled: RefCell<Option<BrokerConfig>>,
}

/// The metrics of a thread's connections, by the codec of what is sent on them.
#[derive(Clone, Debug, Default)]
pub struct CodecCounts {
    /// Of those for the envelope.
    pub envelope: Arc<ConnectionCounts>,
    /// Of those for native backends.
    pub native: Arc<ConnectionCounts>,
}

impl CodecCounts {
    /// Both.
    pub fn all(&self) -> [&ConnectionCounts; 2] {
        [&self.envelope, &self.native]
    }
}

impl CodecPools {
    /// So many connections for the envelope and as many for native backends, none of which is made
    /// yet.
    pub fn new(
        role: Role,
        connections: NonZeroUsize,
        limits: ConnectionLimits,
        counts: &CodecCounts,
    ) -> Self {
        let native = Role { name: format!("{} native", role.name), ..role.clone() };
        Self {
            envelope: ConnectionPool::new(role, connections, limits, Arc::clone(&counts.envelope)),
            native: ConnectionPool::new(native, connections, limits, Arc::clone(&counts.native)),
            undialled: RefCell::new(None),
        }
    }

    /// Keeps the connections up, for ever: those for native backends from the first call of
    /// [`CodecPools::of`] on that asks for them. Needs a `LocalSet`.
    pub fn keep_connected(&self, broker: &BrokerConfig) {
        self.envelope.keep_connected(broker);
        self.undialled.replace(Some(broker.clone()));
    }

    /// Attempts the broker once, and then does as [`CodecPools::keep_connected`].
    ///
    /// # Errors
    /// The broker refused us or is too old; nothing is kept up then.
    pub async fn connect(&self, broker: &BrokerConfig) -> Result<(), DialError> {
        self.envelope.connect(broker).await?;
        self.undialled.replace(Some(broker.clone()));
        Ok(())
    }

    /// The connections for the envelope.
    pub(crate) fn envelope(&self) -> &Rc<ConnectionPool> {
        &self.envelope
    }

    /// The connections for what is written in `codec`.
    pub fn of(&self, codec: Codec) -> &ConnectionPool {
        match codec {
            Codec::Http => &self.envelope,
            Codec::Native | Codec::Args => {
                if let Some(broker) = self.undialled.take() {
                    self.native.keep_connected(&broker);
                    // Who asked first waits for it, as others do after a loss.
                    self.native.expect();
                }
                &self.native
            }
        }
    }

    /// Has somebody hear of workers that ask for a pipe, from now on.
    pub(crate) fn hear_stream_events(&self, hear: impl Fn(StreamEvent) + 'static) {
        self.envelope.hear_stream_events(hear);
    }

    /// Waits until there is a connection for the envelope.
    pub async fn connected(&self) {
        self.envelope.connected().await;
    }
}
