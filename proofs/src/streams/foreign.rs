//! A worker that serves one service and would have the streams of another.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use natsway_testkit::TestBroker;
use natsway_tunnel::http2::{self, Settings};
use natsway_tunnel::preface::{Kind, Preface, Welcome, welcomed};
use natsway_tunnel::tls::{CertificateHash, connect};
use natsway_wire::Limits;
use natsway_wire::envelope::{Reference, decode_request, encode_reference};
use natsway_wire::offer::{Offer, StreamToken, TunnelSecret};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Size;
use super::attacks::{BODY_BYTES, CLOSED_WITHIN, closed, is_welcome, reference, secret};
use super::client::{download, read};
use crate::Finding;
use crate::stand::{DEADLINE, Extras, PATIENT, Stand};

fn token() -> StreamToken {
    StreamToken(fastrand::u128(..).to_be_bytes())
}

/// What the malevolent worker does with a request, as its path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    /// Nothing: it serves, so that what follows is a trick and no mistake.
    Honest,
    /// It names the tunnel of another service's worker, and a token of its own.
    ForeignTunnel,
    /// The same with a token that was said to that worker.
    ForeignStream,
    /// It never dials.
    NoTunnel,
    /// It dials, and says for another thread of the gateway.
    OtherShard,
    /// It does not answer on the stream.
    Silent,
    /// It says on its tunnel what is no HTTP/2.
    Garbage,
}

impl Trick {
    const ALL: [Self; 7] = [
        Self::Honest,
        Self::ForeignTunnel,
        Self::ForeignStream,
        Self::NoTunnel,
        Self::OtherShard,
        Self::Silent,
        Self::Garbage,
    ];

    fn path(self) -> String {
        format!("/evil/{self:?}")
    }

    fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trick| path == trick.path())
    }
}

/// A worker with a route of its own answers in every wrong way that it can: the clients of its
/// route see that, and nobody else. It gets no stream that it has not named.
pub(super) async fn foreign_worker(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    const ROUTES: &str = "[[route]]\nname = \"evil\"\npath = \"/evil/{*rest}\"\ntimeout = \"3s\"\n\
                          [[route.target]]\nversion = \"blue\"\nsubject = \"svc.evil.blue\"\n\n";
    let broker = TestBroker::start().await;
    let extras = Extras { routes: ROUTES, gateway: &["--shards", "2"], ..Extras::default() };
    let urls = (&*broker.url(), &*broker.url());
    let stand = Stand::start_with(directory, urls, PATIENT, 1, extras).await?;
    let ports = [stand.port];
    let evil = Evil::start(broker.connect().await).await?;
    // The other service has its tunnels, one to each thread, and streams on them all the time.
    let stop = CancellationToken::new();
    let others: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut complete, mut broken) = (0, Vec::new());
                while !stop.is_cancelled() {
                    match download(&ports, BODY_BYTES, false, None).await {
                        Ok(seen) if seen.is_complete(BODY_BYTES) => complete += 1,
                        other => broken.push(format!("{other:?}")),
                    }
                }
                (complete, broken)
            })
        })
        .collect();
    for round in 0..size.rounds {
        let asked = Trick::ALL.map(|trick| async move {
            let path = trick.path();
            let asking = read(&ports, Method::GET, &path, None);
            (trick, tokio::time::timeout(DEADLINE, asking).await)
        });
        for (trick, seen) in join_all(asked).await {
            let seen = seen.with_context(|| format!("{trick:?} hangs"))?;
            let is_served = matches!(&seen, Ok(seen) if seen.status.is_success() && seen.is_whole);
            finding.promise(is_served == (trick == Trick::Honest), || {
                format!("round {round}, {trick:?}: {seen:?}")
            });
        }
    }
    stop.cancel();
    let mut complete = 0;
    for other in others {
        let (whole, broken) = other.await?;
        complete += whole;
        finding.promise(broken.is_empty(), || format!("others' streams: {broken:?}"));
    }
    finding.figure("others_complete", complete);
    finding.promise(complete > 0, || "others had no streams".to_owned());
    let (own, foreign, twice) = evil.counts();
    finding.figure("own_streams", own);
    finding.promise(own > 0, || "its own streams did not work".to_owned());
    finding.promise(foreign == 0, || format!("{foreign} streams that it had not named"));
    finding.promise(twice == 0, || format!("{twice} secrets made two tunnels"));
    // Nobody's tunnel ended: the other worker has one to each thread.
    let log = stand.workers[0].stderr();
    let opened = log.lines().filter(|line| line.contains("tunnel opened")).count();
    finding.promise(opened <= 2, || format!("{opened} tunnels of the other worker"));
    stand.all_let_go().await;
    Ok(())
}

/// The worker of its own service, and no good one.
struct Evil {
    counts: Arc<Counts>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    /// The secrets that it chose: what it hears with one of these is its own answer.
    secrets: Mutex<HashSet<[u8; 16]>>,
    own: AtomicUsize,
    foreign: AtomicUsize,
    twice: AtomicUsize,
}

impl Evil {
    async fn start(client: Client) -> anyhow::Result<Self> {
        let counts = Arc::<Counts>::default();
        let mut requests = client.queue_subscribe("svc.evil.blue", "q".to_owned()).await?;
        // As a worker's permissions would not let it.
        let mut answers = client.subscribe("_INBOX_apiproxy.>").await?;
        client.flush().await?;
        let (heard, mut references) = mpsc::channel(64);
        let known = Arc::clone(&counts);
        let listening = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(answer) = answers.next().await {
                let reference = reference(&answer.payload);
                if let Some(reference) = reference.filter(|heard| !known.is_own(heard.secret)) {
                    // The newest are as good as any.
                    heard.try_send(reference).ok();
                }
            }
        }));
        let counted = Arc::clone(&counts);
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            let _listening = listening;
            while let Some(message) = requests.next().await {
                let foreign = references.recv().await;
                let (Some(foreign), Some(reply)) = (foreign, message.reply) else { return };
                let Ok(request) = decode_request(&message.payload, Limits::DEFAULT) else { return };
                let offer = request.offer.and_then(|offer| Offer::decode(&offer).ok());
                let trick = Trick::of_path(request.path_and_query.path());
                let (Some(offer), Some(trick)) = (offer, trick) else { continue };
                let playing = play(trick, offer, foreign, Arc::clone(&counted));
                let client = client.clone();
                tokio::spawn(async move {
                    if let Ok(answer) = playing.await {
                        client.publish(reply, answer).await.ok();
                    }
                });
            }
        }));
        Ok(Self { counts, _serving: serving })
    }

    /// Streams that it had named and got, those that it had not named, and second tunnels of one
    /// secret.
    fn counts(&self) -> (usize, usize, usize) {
        let Counts { own, foreign, twice, .. } = &*self.counts;
        (
            own.load(Ordering::Relaxed),
            foreign.load(Ordering::Relaxed),
            twice.load(Ordering::Relaxed),
        )
    }
}

impl Counts {
    fn is_own(&self, secret: TunnelSecret) -> bool {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).contains(&secret.0)
    }

    fn choose(&self) -> TunnelSecret {
        let secret = secret();
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.0);
        secret
    }
}

/// Does what the trick takes, and returns the answer to send.
async fn play(
    trick: Trick,
    offer: Offer,
    foreign: Reference,
    counts: Arc<Counts>,
) -> anyhow::Result<Bytes> {
    let own = Reference { token: token(), secret: counts.choose() };
    let named = match trick {
        Trick::ForeignTunnel => Reference { token: token(), ..foreign },
        Trick::ForeignStream => foreign,
        _ => own,
    };
    let shard = match trick {
        Trick::OtherShard => 1 - offer.shard,
        _ => offer.shard,
    };
    match trick {
        Trick::ForeignTunnel | Trick::ForeignStream | Trick::NoTunnel => {}
        _ => {
            let io = knock(&offer, shard, own.secret).await?;
            tokio::spawn(serve(trick, io, own, offer, counts));
        }
    }
    let fields = HeaderMap::new();
    Ok(encode_reference(StatusCode::OK, &fields, b"it begins, ", named)?)
}

/// Dials as a worker does, and says what it likes of the thread.
async fn knock(
    offer: &Offer,
    shard: u16,
    secret: TunnelSecret,
) -> anyhow::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
    let address = offer.addresses.first().context("an address")?;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&Preface { kind: Kind::Streams, shard }.encode()).await?;
    let hash = offer.certificate.context("a certificate")?;
    let mut stream = connect(stream, CertificateHash(hash)).await?;
    stream.write_all(&secret.0).await?;
    stream.flush().await?;
    Ok(stream)
}

async fn serve(
    trick: Trick,
    mut io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    own: Reference,
    offer: Offer,
    counts: Arc<Counts>,
) -> anyhow::Result<()> {
    let welcome = tokio::time::timeout(CLOSED_WITHIN, welcomed(&mut io)).await??;
    ensure!(welcome == Welcome::Accepted, "{welcome:?}");
    if is_welcome(&offer, own.secret).await {
        counts.twice.fetch_add(1, Ordering::Relaxed);
    }
    if trick == Trick::Garbage {
        io.write_all(&[0xff; 64 << 10]).await?;
        closed(&mut io).await;
        return Ok(());
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let counts = Arc::clone(&counts);
        async move {
            let is_own = StreamToken::parse(request.uri().path()) == Some(own.token);
            let count = if is_own { &counts.own } else { &counts.foreign };
            count.fetch_add(1, Ordering::Relaxed);
            if trick == Trick::Silent {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::from("and it ends")))
        }
    });
    let leaving = CancellationToken::new();
    http2::serve(io, service, &Settings::default(), leaving).await?;
    Ok(())
}
