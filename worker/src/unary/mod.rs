//! Whole requests by tunnels: which gateways have one to this reader, and what comes by it.
//!
//! A worker joins a tunnel in an answer by the broker, to a gateway that offered to send requests
//! by one. It dials at once, and names the same tunnel in each further answer to that gateway.
//! Requests go to the same admission as those of the broker, on the reader's thread.

mod keep;
mod outlet;
mod reply;
mod served;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use natsway_tunnel::LIFETIME;
use natsway_tunnel::dial::Reach;
use natsway_wire::envelope::with_join;
use natsway_wire::offer::{Join, Offer, TunnelSecret};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::keep::keep;
pub(crate) use self::reply::{ReplyTo, ResultReply, TunnelReply};
use crate::streams::{TunnelMode, TunnelOptions, random_16};

/// How long a gateway is left alone that could not be reached, the first time; twice as long each
/// time after that, up to some minutes.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(10);

/// Gateways that are remembered.
const MOST_GATEWAYS: usize = 1_024;

/// What a join adds to an answer, at the most.
const JOIN_BYTES: usize = 24;

/// Tunnels that may wait to be dialled: more are not joined, and their gateways ask again.
const MOST_DIALS: usize = 256;

/// How long tunnels may take to say goodbye once all that came by them is answered.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The unary tunnels of one reader, as its handlers know them.
#[derive(Debug)]
pub(crate) struct UnaryTunnels {
    mode: TunnelMode,
    reach: Reach,
    /// By all that an offer says, as for streams.
    peers: Mutex<HashMap<Offer, Peer>>,
    dials: mpsc::Sender<Dial>,
    /// Until the reader takes it.
    dialler: Mutex<Option<mpsc::Receiver<Dial>>>,
    tasks: TaskTracker,
    /// Has those that are there take no new requests.
    retire: Mutex<CancellationToken>,
    /// The worker leaves: none is joined any more.
    leaving: CancellationToken,
    /// Ends them at once.
    cut: Mutex<CancellationToken>,
}

/// What is known of the way to a gateway's thread.
#[derive(Clone, Copy, Debug)]
struct Peer {
    secret: TunnelSecret,
    /// When it is dialled anew.
    until: Instant,
    /// How often in a row it could not be reached.
    failures: u32,
    is_unreachable: bool,
}

/// A tunnel that is to be dialled.
#[derive(Debug)]
struct Dial {
    offer: Offer,
    secret: TunnelSecret,
    until: Instant,
    retire: CancellationToken,
    cut: CancellationToken,
}

impl UnaryTunnels {
    /// Returns one without a tunnel.
    pub(crate) fn new(options: &TunnelOptions) -> Self {
        let TunnelOptions { mode, reach, allows_cleartext, .. } = options;
        let reach = reach.clone().map_or_else(Reach::default, Reach::new);
        let (dials, dialler) = mpsc::channel(MOST_DIALS);
        let (peers, tasks, retire, leaving, cut) = Default::default();
        Self {
            mode: *mode,
            reach: reach.with_cleartext(*allows_cleartext),
            peers,
            dials,
            dialler: Mutex::new(Some(dialler)),
            tasks,
            retire,
            leaving,
            cut,
        }
    }

    /// Returns an answer by the broker as it is to be sent to whoever made this offer: with the
    /// tunnel by which further requests for the worker's subject may come, if there is to be one
    /// and `most_bytes` leave room to say so. Begins to dial where there is none yet.
    pub(crate) fn join(
        &self,
        offer: &Bytes,
        endpoint: usize,
        message: Bytes,
        most_bytes: usize,
    ) -> Bytes {
        let has_room = message.len() + JOIN_BYTES <= most_bytes;
        let subject = u16::try_from(endpoint).ok().filter(|_| has_room);
        let join = subject.and_then(|subject| {
            let secret = self.secret(offer)?;
            with_join(&message, Join { secret, subject }).ok()
        });
        join.unwrap_or(message)
    }

    fn secret(&self, offer: &Bytes) -> Option<TunnelSecret> {
        let is_wanted = Offer::may_take_requests(offer);
        // By the broker requests come already: there are pipes for streams alone.
        let is_on = matches!(self.mode, TunnelMode::Auto | TunnelMode::Direct);
        if !is_wanted || !is_on || self.leaving.is_cancelled() {
            return None;
        }
        let offer = Offer::decode(offer).ok().filter(|offer| offer.takes_requests)?;
        let (now, mut peers) = (Instant::now(), self.lock_peers());
        let mut failures = 0;
        if let Some(peer) = peers.get(&offer) {
            if now < peer.until {
                return (!peer.is_unreachable).then_some(peer.secret);
            }
            failures = peer.failures;
        }
        if peers.len() >= MOST_GATEWAYS {
            peers.retain(|_, peer| now < peer.until);
            if peers.len() >= MOST_GATEWAYS {
                return None;
            }
        }
        let secret = TunnelSecret(random_16());
        let jitter =
            LIFETIME.mul_f64(f64::from(natsway_boot::random_u64() as u16) / 65_536.0 / 5.0);
        let until = now + LIFETIME - jitter;
        let (retire, cut) = (lock(&self.retire).clone(), lock(&self.cut).clone());
        self.dials.try_send(Dial { offer: offer.clone(), secret, until, retire, cut }).ok()?;
        peers.insert(offer, Peer { secret, until, failures, is_unreachable: false });
        Some(secret)
    }

    /// Has the tunnels that are there take no new requests; others may be joined after them.
    pub(crate) fn retire(&self) {
        self.lock_peers().retain(|_, peer| peer.is_unreachable);
        std::mem::take(&mut *lock(&self.retire)).cancel();
    }

    /// Takes no new requests by tunnels, and joins none.
    pub(crate) fn drain(&self) {
        self.leaving.cancel();
        self.retire();
    }

    /// Ends every tunnel at once: the right to serve was taken away.
    pub(crate) fn cut(&self) {
        self.lock_peers().clear();
        std::mem::take(&mut *lock(&self.cut)).cancel();
    }

    /// Leaves, once all that came by tunnels is answered: each says goodbye, within a moment and
    /// before `deadline`.
    pub(crate) async fn leave(&self, deadline: Instant) {
        self.drain();
        self.tasks.close();
        let until = deadline.min(Instant::now() + GOODBYE_TIMEOUT);
        if tokio::time::timeout_at(until.into(), self.tasks.wait()).await.is_err() {
            self.cut();
            self.tasks.wait().await;
        }
    }

    /// Remembers that a gateway cannot be reached, longer each time.
    fn is_unreachable(&self, offer: &Offer, secret: TunnelSecret) {
        let mut peers = self.lock_peers();
        if let Some(peer) = peers.get_mut(offer).filter(|peer| peer.secret == secret) {
            peer.failures += 1;
            peer.is_unreachable = true;
            let pause = UNREACHABLE_PAUSE.saturating_mul(1 << (peer.failures - 1).min(5));
            peer.until = Instant::now() + pause;
        }
    }

    /// Forgets a tunnel that takes no new requests.
    fn forget(&self, offer: &Offer, secret: TunnelSecret) {
        let mut peers = self.lock_peers();
        if peers.get(offer).is_some_and(|peer| peer.secret == secret && !peer.is_unreachable) {
            peers.remove(offer);
        }
    }

    fn lock_peers(&self) -> MutexGuard<'_, HashMap<Offer, Peer>> {
        lock(&self.peers)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(takes_requests: bool) -> Bytes {
        let offer = Offer {
            gateway: "gateway".to_owned(),
            shard: 0,
            addresses: vec!["10.0.0.7:7443".to_owned()],
            certificate: Some([1; 32]),
            takes_requests,
            takes_pipes: false,
        };
        offer.encode().into()
    }

    #[tokio::test]
    async fn a_gateway_that_takes_requests_has_one_tunnel_and_others_none() {
        let tunnels = UnaryTunnels::new(&TunnelOptions::default());
        assert_eq!(tunnels.secret(&offer(false)), None);
        let secret = tunnels.secret(&offer(true));
        assert!(secret.is_some());
        assert_eq!(tunnels.secret(&offer(true)), secret);
        let mut dialler = lock(&tunnels.dialler).take().unwrap();
        assert_eq!(dialler.try_recv().unwrap().secret, secret.unwrap());
        assert!(dialler.try_recv().is_err());
        tunnels.retire();
        assert_ne!(tunnels.secret(&offer(true)), secret, "another one takes its place");
        tunnels.drain();
        assert_eq!(tunnels.secret(&offer(true)), None);
    }

    #[tokio::test]
    async fn a_worker_of_pipes_alone_joins_none() {
        for (mode, joins) in [(TunnelMode::Direct, true), (TunnelMode::Broker, false)] {
            let tunnels = UnaryTunnels::new(&TunnelOptions { mode, ..TunnelOptions::default() });
            assert_eq!(tunnels.secret(&offer(true)).is_some(), joins, "{mode:?}");
        }
    }

    #[tokio::test]
    async fn who_cannot_be_reached_is_left_alone_for_a_while() {
        let tunnels = UnaryTunnels::new(&TunnelOptions::default());
        let secret = tunnels.secret(&offer(true)).unwrap();
        let read = Offer::decode(&offer(true)).unwrap();
        tunnels.is_unreachable(&read, TunnelSecret([0; 16]));
        assert_eq!(tunnels.secret(&offer(true)), Some(secret), "another one's word");
        tunnels.is_unreachable(&read, secret);
        tunnels.forget(&read, secret);
        assert_eq!(tunnels.secret(&offer(true)), None);
        let whole = Bytes::from_static(b"\x96rest");
        assert_eq!(tunnels.join(&offer(true), 0, whole.clone(), 1_000), whole);
        let other = UnaryTunnels::new(&TunnelOptions::default());
        assert_eq!(other.join(&offer(true), 0, whole.clone(), 28), whole, "it would be too long");
        assert_ne!(other.join(&offer(true), 0, whole.clone(), 29), whole);
    }
}
