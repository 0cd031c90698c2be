//! Where workers dial tunnels: reads for which shard a connection is, and hands it over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use natsway_tunnel::half_open::HalfOpen;
use natsway_tunnel::listen::{begun, said_addresses};
use natsway_tunnel::tls::Acceptor;
use natsway_wire::offer::Offer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::listener::{EXHAUSTED_PAUSE, Failures, listen};
use crate::settings::{TunnelCertificate, TunnelSettings};
use crate::shard_handle::{Dialled, ShardHandle};
use crate::start_error::StartError;

/// Connections that have not said yet for which shard they are. The oldest gives way to the next.
const MOST_NEW: usize = 256;

/// A listener for tunnels; none where workers come by pipes alone.
pub(crate) struct TunnelListener {
    listener: Option<TcpListener>,
    offers: Offers,
}

/// What the shards offer.
#[derive(Clone)]
pub(crate) struct Offers {
    gateway: String,
    addresses: Vec<String>,
    acceptor: Option<Acceptor>,
    takes_pipes: bool,
}

impl TunnelListener {
    /// Binds the address, and makes a certificate where none is given.
    ///
    /// # Errors
    /// The address or a certificate cannot be had.
    pub(crate) fn bind(settings: &TunnelSettings) -> Result<Self, StartError> {
        let acceptor = match &settings.certificate {
            TunnelCertificate::Generated => {
                Some(Acceptor::generate().map_err(StartError::Certificate)?)
            }
            TunnelCertificate::Given(acceptor) => Some(acceptor.clone()),
            TunnelCertificate::Cleartext => None,
        };
        // What goes by the broker others could read there.
        let takes_pipes = settings.pipes.is_some() && acceptor.is_some();
        let (mut listener, mut addresses) = (None, Vec::new());
        if let Some(address) = settings.listen {
            let listening = listen(address)?;
            let failed = |source| StartError::Listen { address, source };
            let bound = listening.local_addr().map_err(failed)?;
            addresses = said_addresses(&settings.addresses, bound);
            let tls = acceptor.is_some();
            info!(listen = %bound, ?addresses, tls, pipes = takes_pipes, "tunnels are taken");
            listener = Some(listening);
        } else {
            info!("tunnels are taken by pipes on the broker alone");
        }
        let gateway = natsway_boot::random_id();
        Ok(Self { listener, offers: Offers { gateway, addresses, acceptor, takes_pipes } })
    }

    /// Returns what the shards offer.
    pub(crate) fn offers(&self) -> Offers {
        self.offers.clone()
    }

    /// Accepts connections for these shards, for ever.
    pub(crate) fn spawn(self, handles: &[ShardHandle]) -> Option<JoinHandle<()>> {
        let shards: Vec<_> = handles.iter().map(|handle| handle.tunnels.clone()).collect();
        Some(tokio::spawn(accept(self.listener?, shards.into())))
    }
}

impl Offers {
    /// Returns the name in them.
    pub(crate) fn gateway(&self) -> &str {
        &self.gateway
    }

    /// Returns what one shard offers, encoded: tunnels for streams, and with `takes_requests` those
    /// for whole requests as well, where there is an address for those.
    pub(crate) fn of(&self, shard: usize, takes_requests: bool) -> Bytes {
        let offer = Offer {
            gateway: self.gateway.clone(),
            shard: u16::try_from(shard).unwrap_or(u16::MAX),
            addresses: self.addresses.clone(),
            certificate: self.acceptor.as_ref().map(|acceptor| acceptor.hash().0),
            takes_requests: takes_requests && !self.addresses.is_empty(),
            takes_pipes: self.takes_pipes,
        };
        offer.encode().into()
    }

    /// Returns TLS's end.
    pub(crate) fn acceptor(&self) -> Option<Acceptor> {
        self.acceptor.clone()
    }
}

async fn accept(listener: TcpListener, shards: Arc<[mpsc::Sender<Dialled>]>) {
    let new = Arc::new(HalfOpen::new(MOST_NEW));
    let mut failures = Failures::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(hand_over(stream, peer, Arc::clone(&new), Arc::clone(&shards)));
            }
            Err(error) => {
                if let Some(unsaid) = failures.say(Instant::now()) {
                    warn!(%error, unsaid, "tunnel not accepted");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

async fn hand_over(
    mut stream: TcpStream,
    peer: SocketAddr,
    new: Arc<HalfOpen>,
    shards: Arc<[mpsc::Sender<Dialled>]>,
) {
    let Some(begun) = new.run(begun(&mut stream)).await else {
        return debug!(%peer, "a newer connection took the place of one that said nothing");
    };
    let preface = match begun {
        Ok(preface) => preface,
        Err(error) => return debug!(%peer, %error, "no tunnel"),
    };
    let Some(shard) = shards.get(usize::from(preface.shard)) else { return };
    // When the shard has as many to take over as may wait, the worker dials again.
    match stream.into_std() {
        Ok(stream) => drop(shard.try_send(Dialled { kind: preface.kind, stream })),
        Err(error) => debug!(%peer, %error, "tunnel not handed over"),
    }
}
