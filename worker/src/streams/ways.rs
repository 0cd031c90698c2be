//! Which way to a gateway is taken: its address, or a pipe on the broker.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use natsway_tunnel::dial::{DialError, Dialled, Reach, dial, dial_pipe};
use natsway_tunnel::pipe::PipeLeaving;
use natsway_tunnel::preface::Kind;
use natsway_wire::offer::{Offer, TunnelSecret};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::TunnelMode;
use super::pipes::{Pipe, PipeEnd, PipeError, Sender};

/// How long a gateway's addresses may take where a pipe is possible: the request waits.
const DIRECT_PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts while the gateway closes connections.
const CLOSED_PAUSE: Duration = Duration::from_millis(50);

/// How long addresses are not dialled again that could not be reached, where a pipe is possible.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Sets of addresses that are remembered.
const MOST_REMEMBERED: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub(super) struct Ways {
    mode: TunnelMode,
    reach: Reach,
    pipes: PipeEnd,
    /// Addresses that could not be reached, until when they are left alone. All threads of a
    /// gateway have the same.
    out_of_reach: Mutex<HashMap<Vec<String>, Instant>>,
}

/// A connection to a gateway that is not a tunnel yet.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) connection: Dialled,
    /// Of a pipe: when it should take no further streams.
    pub(super) leaving: Option<PipeLeaving>,
}

/// Why there is no way to a gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoWay {
    #[error(transparent)]
    Direct(#[from] DialError),
    #[error("no pipe to the gateway")]
    Pipe(#[from] PipeError),
    #[error("the pipe to the gateway broke")]
    Broke(#[from] io::Error),
    #[error("the gateway takes no pipes")]
    NoPipes,
    #[error("the gateway has as many tunnels as it may")]
    Full,
}

impl NoWay {
    /// Whether the gateway closed the connection: it may take another one.
    pub(super) fn was_closed(&self) -> bool {
        matches!(self, Self::Direct(error) if error.was_closed())
    }
}

impl Ways {
    pub(super) fn new(mode: TunnelMode, reach: Reach, pipes: PipeEnd) -> Self {
        Self { mode, reach, pipes, out_of_reach: Mutex::default() }
    }

    /// Dials a gateway, by its address or by a pipe. What moves the pipe's bytes runs among
    /// `tasks`.
    ///
    /// # Errors
    /// [`NoWay`], the last one that was tried.
    pub(super) async fn dial(
        &self,
        offer: &Offer,
        secret: TunnelSecret,
        sender: &Sender,
        tasks: &TaskTracker,
    ) -> Result<Way, NoWay> {
        let takes_pipes = offer.takes_pipes && offer.certificate.is_some();
        match self.mode {
            TunnelMode::Broker if takes_pipes => self.pipe(offer, secret, sender, tasks).await,
            TunnelMode::Broker => Err(NoWay::NoPipes),
            TunnelMode::Auto if takes_pipes && sender.can_be_asked() => {
                if let Some(way) = self.direct_if_soon(offer, secret).await {
                    return Ok(way);
                }
                self.pipe(offer, secret, sender, tasks).await
            }
            TunnelMode::Auto | TunnelMode::Direct | TunnelMode::Off => {
                self.direct(offer, secret).await
            }
        }
    }

    async fn direct(&self, offer: &Offer, secret: TunnelSecret) -> Result<Way, NoWay> {
        let connection = dial(Kind::Streams, offer, secret, &self.reach).await?;
        Ok(Way { connection, leaving: None })
    }

    async fn direct_if_soon(&self, offer: &Offer, secret: TunnelSecret) -> Option<Way> {
        if !self.is_worth_dialling(offer) {
            return None;
        }
        let dialled = tokio::time::timeout(DIRECT_PATIENCE, async {
            loop {
                match self.direct(offer, secret).await {
                    // Others hold its places for a moment.
                    Err(error) if error.was_closed() => tokio::time::sleep(CLOSED_PAUSE).await,
                    dialled => return dialled,
                }
            }
        });
        let dialled = dialled.await;
        let reason = match dialled {
            Ok(Ok(way)) => return Some(way),
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        let (gateway, addresses) = (&offer.gateway, &offer.addresses);
        debug!(gateway, ?addresses, reason, "gateway is not reached, asking for a pipe");
        let mut out_of_reach = self.lock();
        let now = Instant::now();
        if out_of_reach.len() >= MOST_REMEMBERED {
            out_of_reach.retain(|_, until| *until > now);
        }
        if out_of_reach.len() < MOST_REMEMBERED {
            out_of_reach.insert(addresses.clone(), now + REMEMBERED_FOR);
        }
        None
    }

    fn is_worth_dialling(&self, offer: &Offer) -> bool {
        let until = self.lock().get(&offer.addresses).copied();
        !offer.addresses.is_empty() && until.is_none_or(|until| until <= Instant::now())
    }

    async fn pipe(
        &self,
        offer: &Offer,
        secret: TunnelSecret,
        sender: &Sender,
        tasks: &TaskTracker,
    ) -> Result<Way, NoWay> {
        let Pipe { stream, driver, permit } = self.pipes.open(sender).await?;
        let leaving = stream.leaving();
        tasks.spawn(async move {
            if let Err(error) = driver.run().await {
                debug!(%error, "pipe broke");
            }
            drop(permit);
        });
        let connection = dial_pipe(stream, offer, secret).await?;
        Ok(Way { connection, leaving: Some(leaving) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<String>, Instant>> {
        self.out_of_reach.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
