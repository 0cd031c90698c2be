//! Where workers dial this client, or call it by the broker: what does not fit in a message goes by
//! these tunnels.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use natsway_caller::tunnels::{PipeConfig, TunnelConfig, Tunnels};
use natsway_tunnel::http2::Settings;
use natsway_tunnel::joins::JoinLimits;
use natsway_tunnel::listen::{begun, said_addresses};
use natsway_tunnel::pipe::{Pace, PipeBroker, PipeSettings};
use natsway_tunnel::preface::Kind;
use natsway_tunnel::tls::Acceptor;
use natsway_wire::offer::Offer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tracing::{debug, info, warn};

use super::options::{Config, INBOX_PREFIX, TunnelWays};
use crate::Error;

/// Connections that have not said yet what they are.
const MOST_NEW: usize = 64;

/// How long to wait when the process or the system has no file descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How many tunnels there may be, and of what waits to be one: a client has one for each reader of
/// the workers that it calls.
const LIMITS: JoinLimits = JoinLimits { open: 1_024, of_one: 768, expected: 256, early: 64 };

/// What may be on its way by a pipe, in either direction: a gateway's default.
const PIPE_WINDOW_BYTES: u32 = 512 << 10;

/// What all pipes carry in a second, both ways together: a gateway's default.
const PIPE_RATE: NonZeroU64 = NonZeroU64::new(32 << 20).expect("it is not 0");

/// Begins to take tunnels; needs a `LocalSet`.
///
/// # Errors
/// The address or a certificate cannot be had.
pub(super) async fn open(
    ways: &TunnelWays,
    config: &Config,
    gateway: &str,
) -> Result<Rc<Tunnels>, Error> {
    let (mut listener, mut addresses) = (None, Vec::new());
    if let Some(address) = ways.listen {
        let failed = |source| Error::TunnelListen { address, source };
        let listening = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listening.local_addr().map_err(failed)?;
        addresses = said_addresses(&ways.told, bound);
        info!(listen = %bound, ?addresses, pipes = ways.pipes, "tunnels are taken");
        listener = Some(listening);
    }
    let acceptor = Acceptor::generate().map_err(Error::TunnelCertificate)?;
    let offer = Offer {
        gateway: gateway.to_owned(),
        shard: 0,
        addresses,
        certificate: Some(acceptor.hash().0),
        takes_requests: false,
        takes_pipes: ways.pipes > 0,
    };
    let pipes = (ways.pipes > 0).then(|| pipes(config, ways.pipes));
    let config = TunnelConfig {
        offer: offer.encode().into(),
        acceptor: Some(acceptor),
        settings: Settings::default(),
        limits: LIMITS,
        pipes,
    };
    let tunnels = Tunnels::new(config, Arc::default());
    if let Some(listener) = listener {
        spawn_local(accept(listener, Rc::clone(&tunnels)));
    }
    Ok(tunnels)
}

/// They have a connection to the broker of their own, made for the first of them.
fn pipes(config: &Config, most: usize) -> PipeConfig {
    let name = format!("caller {} pipes", config.name);
    let (broker, window) = (config.broker.clone(), PIPE_WINDOW_BYTES);
    PipeConfig {
        broker: Arc::new(PipeBroker::new(broker, name, INBOX_PREFIX, window)),
        settings: PipeSettings {
            window_bytes: window,
            pace: Some(Arc::new(Pace::new(PIPE_RATE))),
            meter: Arc::default(),
        },
        most,
    }
}

/// Takes connections for ever. Of too many none is waited for: workers dial again.
async fn accept(listener: TcpListener, tunnels: Rc<Tunnels>) {
    let new = Arc::new(Semaphore::new(MOST_NEW));
    let mut fails = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut fails, true) {
                    warn!(%error, "tunnel not accepted");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        fails = false;
        let Ok(permit) = Arc::clone(&new).try_acquire_owned() else { continue };
        let tunnels = Rc::clone(&tunnels);
        spawn_local(async move {
            let begun = tunnel(stream).await;
            drop(permit);
            if let Some(stream) = begun {
                tunnels.accept(stream).await;
            }
        });
    }
}

/// Reads what a connection begins with; gives it back if it is a tunnel for streams.
async fn tunnel(mut stream: TcpStream) -> Option<TcpStream> {
    match begun(&mut stream).await {
        Ok(preface) if preface.kind == Kind::Streams && preface.shard == 0 => Some(stream),
        Ok(preface) => {
            debug!(?preface, "a tunnel that is not taken");
            None
        }
        Err(error) => {
            debug!(%error, "no tunnel");
            None
        }
    }
}
