//! The tunnels of one reader: dialled when the first stream needs them, made anew before they are
//! old, and served.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use natsway_tunnel::LIFETIME;
use natsway_tunnel::dial::Dialled;
use natsway_tunnel::http2::{self, Settings};
use natsway_tunnel::pipe::PipeLeaving;
use natsway_tunnel::preface::{Welcome, welcomed};
use natsway_wire::offer::{Offer, StreamToken, TunnelSecret};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::pipes::Sender;
use super::ways::{NoWay, Way, Ways};
use super::{HELD_FOR, Offered, Opened, random_16, take_over};

/// How long a pipe takes new streams that nobody asks for: it costs the broker a little, and others
/// may need its place.
const PIPE_IDLE: Duration = Duration::from_secs(60);

/// How long a gateway is left alone that could not be reached, the first time; twice as long each
/// time after that, up to some minutes.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(10);

/// How long a gateway may take to welcome: until it has heard the answer that names the secret.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts to be welcomed: a gateway under attack may close a connection that is not done with its
/// handshake, or whose secret it has not heard yet.
const WELCOMES: u32 = 5;

/// How long after the first attempt the next one comes; twice as long each time after that.
const WELCOME_PAUSE: Duration = Duration::from_millis(20);

/// Gateways that are remembered.
const MOST_GATEWAYS: usize = 1_024;

/// How long a tunnel that is to be renewed goes on when the gateway cannot be dialled anew.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct Tunnels {
    shared: Arc<Shared>,
    runtime: Handle,
}

#[derive(Debug)]
struct Shared {
    ways: Ways,
    settings: Settings,
    waiting: Arc<Mutex<HashMap<StreamToken, oneshot::Sender<Opened>>>>,
    /// By all that an offer says: who names the same gateway at another address, or with another
    /// certificate, is somebody else.
    peers: Mutex<HashMap<Offer, Tunnel>>,
    tasks: TaskTracker,
    leaving: CancellationToken,
    /// Ends all that were dialled until now, also those whose place another one has taken.
    cut: Mutex<CancellationToken>,
}

/// What is known of the way to a gateway's thread.
#[derive(Clone, Debug)]
struct Tunnel {
    secret: TunnelSecret,
    state: watch::Receiver<State>,
    /// When it is dialled anew.
    until: Instant,
    /// When it was last named in an answer.
    used: Instant,
    /// How often in a row it could not be reached.
    failures: u32,
    /// Streams that it carries, or was named for.
    streams: Arc<AtomicUsize>,
    /// Has it take no further stream.
    retire: CancellationToken,
    /// Ends it, and every stream on it.
    cut: CancellationToken,
}

/// The place of a stream on its tunnel, from when that is named until the stream has ended.
#[derive(Debug)]
pub(crate) struct TunnelPlace(Arc<AtomicUsize>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Dialling,
    Dialled,
    Unreachable,
}

impl Tunnels {
    pub(super) fn new(
        ways: Ways,
        settings: Settings,
        runtime: Handle,
        waiting: Arc<Mutex<HashMap<StreamToken, oneshot::Sender<Opened>>>>,
    ) -> Self {
        let (peers, tasks, leaving, cut) = Default::default();
        let shared = Shared { ways, settings, waiting, peers, tasks, leaving, cut };
        Self { shared: Arc::new(shared), runtime }
    }

    /// Returns the secret of a tunnel to whoever made an offer, as soon as it is dialled, and the
    /// place of a stream on it.
    pub(super) async fn secret(&self, offered: Offered<'_>) -> Option<(TunnelSecret, TunnelPlace)> {
        // One that takes requests as well takes streams no other way.
        let offer = Offer { takes_requests: false, ..Offer::decode(offered.offer).ok()? };
        let tunnel = self.tunnel(offer, &offered.into())?;
        let (place, Tunnel { secret, mut state, .. }) = (tunnel.place(), tunnel);
        let settled = state.wait_for(|state| *state != State::Dialling).await.ok()?;
        (*settled == State::Dialled).then_some((secret, place))
    }

    /// Returns the tunnel to use; begins to dial where there is none, or it is old.
    fn tunnel(&self, offer: Offer, sender: &Sender) -> Option<Tunnel> {
        let now = Instant::now();
        let mut peers = self.shared.lock_peers();
        let mut failures = 0;
        let most = self.shared.settings.max_streams as usize;
        match peers.get_mut(&offer) {
            // It should carry no more, so that it never has to refuse what it was named for. What
            // comes waits for another one.
            Some(tunnel) if tunnel.is_served() && tunnel.is_crowded(most) => {
                let before = Some(tunnel.clone());
                let newest = self.dial(offer.clone(), sender, 0, before);
                peers.insert(offer, newest.clone());
                return Some(newest);
            }
            Some(tunnel) if now < tunnel.until && tunnel.is_known() => {
                tunnel.used = now;
                return Some(tunnel.clone());
            }
            // It goes on until there is another in its place.
            Some(tunnel) if tunnel.is_served() => {
                (tunnel.until, tunnel.used) = (now + RENEWAL_PAUSE, now);
                let before = tunnel.clone();
                self.dial(offer, sender, 0, Some(before.clone()));
                return Some(before);
            }
            Some(tunnel) => failures = tunnel.failures,
            None => {}
        }
        if peers.len() >= MOST_GATEWAYS {
            peers.retain(|_, tunnel| tunnel.until > now);
            if peers.len() >= MOST_GATEWAYS {
                return None;
            }
        }
        // Under the same lock as the look before: who comes next waits for this one.
        let tunnel = self.dial(offer.clone(), sender, failures, None);
        peers.insert(offer, tunnel.clone());
        Some(tunnel)
    }

    /// Begins to dial. A tunnel that takes another one's place is used once it is there; any other
    /// is its owner's to remember.
    fn dial(
        &self,
        offer: Offer,
        asked_by: &Sender,
        failures: u32,
        before: Option<Tunnel>,
    ) -> Tunnel {
        let (sender, state) = watch::channel(State::Dialling);
        let jitter =
            LIFETIME.mul_f64(f64::from(natsway_boot::random_u64() as u16) / 65_536.0 / 5.0);
        let tunnel = Tunnel {
            secret: TunnelSecret(random_16()),
            state,
            until: Instant::now() + LIFETIME - jitter,
            used: Instant::now(),
            failures,
            streams: Arc::default(),
            retire: self.shared.leaving.child_token(),
            cut: self.shared.lock_cut().clone(),
        };
        let keeping =
            Arc::clone(&self.shared).keep(offer, asked_by.clone(), tunnel.clone(), before, sender);
        self.shared.tasks.spawn_on(keeping, &self.runtime);
        tunnel
    }

    /// Ends every tunnel and its streams at once.
    pub(super) fn cut(&self) {
        let mut peers = self.shared.lock_peers();
        peers.clear();
        // Under the same lock as dialling: what is dialled later is another token's.
        std::mem::take(&mut *self.shared.lock_cut()).cancel();
    }

    /// Has no tunnel take further streams, and waits until all have ended.
    pub(super) async fn leave(&self) {
        self.shared.leaving.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Tunnel {
    fn place(&self) -> TunnelPlace {
        self.streams.fetch_add(1, Relaxed);
        TunnelPlace(Arc::clone(&self.streams))
    }

    /// Whether it carries four fifths of the `most` that it may.
    fn is_crowded(&self, most: usize) -> bool {
        self.streams.load(Relaxed) >= most - most / 5
    }

    /// Whether its task is there: its sender is gone with that.
    fn is_served(&self) -> bool {
        self.state.has_changed().is_ok()
    }

    /// Whether it is served, or known not to be reached.
    fn is_known(&self) -> bool {
        self.is_served() || *self.state.borrow() == State::Unreachable
    }
}

impl Drop for TunnelPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Shared {
    /// Dials a tunnel and serves it to its end.
    async fn keep(
        self: Arc<Self>,
        offer: Offer,
        asked_by: Sender,
        tunnel: Tunnel,
        before: Option<Tunnel>,
        state: watch::Sender<State>,
    ) {
        tokio::select! {
            () = self.dial_and_serve(&offer, &asked_by, &tunnel, before, &state) => {}
            () = tunnel.cut.cancelled() => {}
        }
        let mut peers = self.lock_peers();
        let is_newest = peers.get(&offer).is_some_and(|newest| newest.secret == tunnel.secret);
        if is_newest && *state.borrow() != State::Unreachable {
            peers.remove(&offer);
        }
    }

    async fn dial_and_serve(
        &self,
        offer: &Offer,
        asked_by: &Sender,
        tunnel: &Tunnel,
        before: Option<Tunnel>,
        state: &watch::Sender<State>,
    ) {
        let (gateway, shard) = (&offer.gateway, offer.shard);
        let mut before = before;
        for attempt in 1..=WELCOMES {
            let dialled = tokio::select! {
                dialled = self.ways.dial(offer, tunnel.secret, asked_by, &self.tasks) => dialled,
                () = self.leaving.cancelled() => return,
            };
            let Way { mut connection, leaving } = match dialled {
                Ok(way) => way,
                Err(error) if error.was_closed() && attempt < WELCOMES => {
                    debug!(gateway, shard, attempt, %error, "gateway closed the connection");
                    tokio::time::sleep(WELCOME_PAUSE * (1 << (attempt - 1))).await;
                    continue;
                }
                Err(error) => return self.unreachable(offer, tunnel, state, &error),
            };
            state.send_replace(State::Dialled);
            if let Some(before) = before.take() {
                self.lock_peers().insert(offer.clone(), tunnel.clone());
                // What was said with the secret of the old one is still opened.
                tokio::spawn(async move {
                    tokio::time::sleep(HELD_FOR).await;
                    before.retire.cancel();
                });
            }
            let welcomed = tokio::select! {
                heard = tokio::time::timeout(WELCOME_TIMEOUT, welcomed(&mut connection)) => heard,
                () = self.leaving.cancelled() => return,
            };
            match welcomed {
                Ok(Ok(Welcome::Accepted)) => {
                    let is_pipe = leaving.is_some();
                    info!(gateway, shard, is_pipe, "tunnel opened");
                    let retire = tunnel.retire.clone();
                    let old = tokio::time::sleep_until((tunnel.until + HELD_FOR).into());
                    let mut serving = std::pin::pin!(self.serve(connection, retire.clone()));
                    tokio::select! {
                        () = &mut serving => {}
                        // Nobody needed another one; this ends with the last of its streams.
                        () = old => {
                            retire.cancel();
                            serving.await;
                        }
                        () = self.given_up(offer, tunnel, leaving) => {
                            retire.cancel();
                            serving.await;
                        }
                    }
                    return debug!(gateway, shard, "tunnel ended");
                }
                // Another one would find no place either.
                Ok(Ok(Welcome::Full)) => {
                    return self.unreachable(offer, tunnel, state, &NoWay::Full);
                }
                refused => debug!(gateway, shard, attempt, ?refused, "tunnel not accepted"),
            }
            tokio::time::sleep(WELCOME_PAUSE * (1 << (attempt - 1))).await;
        }
    }

    /// Waits until a pipe is to take no further streams: nobody needs it, or its way to the broker
    /// will end. It is named in no answer from then on, and those that were said are still opened.
    async fn given_up(&self, offer: &Offer, tunnel: &Tunnel, leaving: Option<PipeLeaving>) {
        let Some(leaving) = leaving else { return std::future::pending().await };
        loop {
            let used = self.lock_peers().get(offer).map_or(tunnel.used, |newest| newest.used);
            let has_begun = tokio::select! {
                () = leaving.begun() => true,
                () = tokio::time::sleep_until((used + PIPE_IDLE).into()) => false,
            };
            let mut peers = self.lock_peers();
            let is_newest = |newest: &&mut Tunnel| newest.secret == tunnel.secret;
            let Some(newest) = peers.get_mut(offer).filter(is_newest) else { break };
            if has_begun || newest.used + PIPE_IDLE <= Instant::now() {
                peers.remove(offer);
                break;
            }
        }
        tokio::time::sleep(HELD_FOR).await;
    }

    async fn serve(&self, connection: Dialled, retire: CancellationToken) {
        let waiting = Arc::clone(&self.waiting);
        let service = service_fn(move |request| take_over(Arc::clone(&waiting), request));
        if let Err(error) = http2::serve(connection, service, &self.settings, retire).await {
            debug!(%error, "tunnel broke");
        }
    }

    /// Remembers that a gateway cannot be reached, longer each time.
    fn unreachable(
        &self,
        offer: &Offer,
        tunnel: &Tunnel,
        state: &watch::Sender<State>,
        error: &NoWay,
    ) {
        let reason = std::error::Error::source(error).map(ToString::to_string);
        let (gateway, shard) = (&offer.gateway, offer.shard);
        warn!(gateway, shard, %error, reason, "no tunnel to this gateway");
        let mut peers = self.lock_peers();
        // A renewal is its owner's to remember only once it is there.
        let newest = peers.get_mut(offer).filter(|newest| newest.secret == tunnel.secret);
        if let Some(newest) = newest {
            newest.failures += 1;
            let pause = UNREACHABLE_PAUSE.saturating_mul(1 << (newest.failures - 1).min(5));
            newest.until = Instant::now() + pause;
        }
        state.send_replace(State::Unreachable);
    }

    fn lock_peers(&self) -> std::sync::MutexGuard<'_, HashMap<Offer, Tunnel>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_cut(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use natsway_boot::BrokerConfig;
    use natsway_tunnel::dial::Reach;

    use super::super::TunnelMode;
    use super::*;
    use crate::Options;
    use crate::handler::outbox::Outbox;

    /// Of which nothing is reached.
    fn nowhere() -> Tunnels {
        let config =
            Options::new("svc.test.blue").broker(BrokerConfig::new("127.0.0.1:1").unwrap());
        let pipes = config.check().unwrap().pipe_end(&Arc::new(Outbox::new()));
        let ways = Ways::new(TunnelMode::Auto, Reach::new(Vec::new()), pipes);
        Tunnels::new(ways, Settings::default(), Handle::current(), Arc::default())
    }

    fn an_offer() -> Offer {
        Offer {
            gateway: "gateway".to_owned(),
            shard: 0,
            addresses: vec!["10.0.0.7:7443".to_owned()],
            certificate: Some([1; 32]),
            takes_requests: false,
            takes_pipes: false,
        }
    }

    #[tokio::test]
    async fn who_name_a_gateway_at_the_same_time_share_a_tunnel() {
        let tunnels = nowhere();
        let (bytes, reply) = (Bytes::new(), "_INBOX_x.y".into());
        let sender = Sender::from(Offered { offer: &bytes, reply: Some(&reply), endpoint: 0 });
        for shard in 0..200 {
            let offer = Offer { shard, ..an_offer() };
            let at_once = std::sync::Barrier::new(2);
            let secret = || {
                at_once.wait();
                tunnels.tunnel(offer.clone(), &sender).map(|tunnel| tunnel.secret)
            };
            let [one, other] = std::thread::scope(|threads| {
                [threads.spawn(secret), threads.spawn(secret)].map(|thread| thread.join().unwrap())
            });
            assert_eq!(one, other, "round {shard}");
        }
    }

    #[tokio::test]
    async fn a_cut_ends_what_was_replaced_and_what_is_not_named_any_more() {
        let tunnels = nowhere();
        let (bytes, reply) = (Bytes::new(), "_INBOX_x.y".into());
        let sender = Sender::from(Offered { offer: &bytes, reply: Some(&reply), endpoint: 0 });
        let dialled = |shard| {
            let offer = Offer { shard, ..an_offer() };
            (tunnels.tunnel(offer.clone(), &sender).expect("there is room"), offer)
        };
        let ((replaced, same), (not_named, idle)) = (dialled(0), dialled(1));
        // As a renewal does, and as a pipe does that nobody needs.
        let newest = tunnels.dial(same.clone(), &sender, 0, Some(replaced.clone()));
        tunnels.shared.lock_peers().insert(same.clone(), newest.clone());
        tunnels.shared.lock_peers().remove(&idle);
        tunnels.cut();
        for (tunnel, which) in
            [(&replaced, "replaced"), (&newest, "newest"), (&not_named, "not named")]
        {
            assert!(tunnel.cut.is_cancelled(), "the {which} one goes on");
        }
        let later = tunnels.tunnel(same, &sender).expect("the right may come back");
        assert!(!later.cut.is_cancelled());
    }

    #[tokio::test]
    async fn another_tunnel_takes_what_one_should_not_carry() {
        let tunnels = nowhere();
        let (bytes, reply) = (Bytes::new(), "_INBOX_x.y".into());
        let sender = Sender::from(Offered { offer: &bytes, reply: Some(&reply), endpoint: 0 });
        let tunnel = || tunnels.tunnel(an_offer(), &sender).expect("there is room");
        let first = tunnel();
        let mut places: Vec<_> = (0..399).map(|_| first.place()).collect();
        assert_eq!(tunnel().secret, first.secret);
        places.push(first.place());
        let second = tunnel();
        assert_ne!(second.secret, first.secret);
        assert_eq!(tunnel().secret, second.secret, "one more is enough");
        drop(places);
        assert_eq!(first.streams.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn who_names_a_gateway_at_another_address_or_certificate_is_somebody_else() {
        let tunnels = nowhere();
        let (bytes, reply) = (Bytes::new(), "_INBOX_x.y".into());
        let sender = Sender::from(Offered { offer: &bytes, reply: Some(&reply), endpoint: 0 });
        let offer = an_offer();
        let secret =
            |offer: &Offer| tunnels.tunnel(offer.clone(), &sender).map(|tunnel| tunnel.secret);
        let own = secret(&offer);
        assert_eq!((own.is_some(), secret(&offer)), (true, own), "one tunnel to each");
        for other in [
            Offer { certificate: Some([2; 32]), ..offer.clone() },
            Offer { addresses: vec!["10.0.0.8:7443".to_owned()], ..offer.clone() },
            Offer { takes_pipes: true, ..offer.clone() },
            Offer { shard: 1, ..offer },
        ] {
            assert_ne!(secret(&other), own, "{other:?}");
        }
    }
}
