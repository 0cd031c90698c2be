//! Who means harm at the tunnels' address: strangers that dial, and taps that hear requests and
//! answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use http::Method;
use natsway_testkit::TestBroker;
use natsway_tunnel::dial::{Reach, dial};
use natsway_tunnel::preface::{Kind, Preface, Welcome, welcomed};
use natsway_wire::Limits;
use natsway_wire::envelope::{Reference, Reply, decode_reply, decode_request};
use natsway_wire::offer::{Offer, TunnelSecret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::Size;
use super::client::{download, read};
use crate::Finding;
use crate::stand::{PATIENT, Stand, memory};

/// Longer than what is sent in a message, and a few windows.
pub(super) const BODY_BYTES: u64 = 1 << 20;

/// How long a stranger is waited for; longer than any step of an opening may take.
pub(super) const CLOSED_WITHIN: Duration = Duration::from_secs(15);

pub(super) fn secret() -> TunnelSecret {
    TunnelSecret(fastrand::u128(..).to_be_bytes())
}

/// Waits until the gateway has closed a connection, and says whether it did.
pub(super) async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut bytes = [0; 256];
    let ended = tokio::time::timeout(CLOSED_WITHIN, async {
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    ended.await.is_ok()
}

/// Some say nothing, some lie in each way that there is, and some do all that a worker does but
/// have its secret said in an answer.
pub(super) async fn strangers(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 1).await?;
    let port = stand.tunnel_port().await;
    let mut held = Vec::new();
    let hellos = hellos();
    for number in 0..100 * size.rounds {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        // Who is refused by its first byte may be gone before it has sent its last.
        stream.write_all(&hellos[number % hellos.len()]).await.ok();
        held.push(stream);
    }
    let seen = download(&[stand.port], 8 << 20, false, None).await?;
    finding.promise(seen.is_complete(8 << 20), || format!("beside them: {seen:?}"));
    let mut still_open = 0;
    for stream in &mut held {
        still_open += usize::from(!closed(stream).await);
    }
    finding.figure("strangers", held.len());
    finding.promise(still_open == 0, || format!("{still_open} of {} are open", held.len()));
    // Each of the gateway's threads has its own, once it had a stream.
    let tunnels = stand.metric("natsway_tunnels_opened_total").await?;
    finding.figure("tunnels", tunnels);
    finding.promise((1.0..=8.0).contains(&tunnels), || format!("{tunnels} tunnels"));
    Ok(())
}

/// What a connection may begin with: nothing, the truth without what follows it, and lies.
fn hellos() -> Vec<Vec<u8>> {
    let preface = |kind, shard| Preface { kind, shard }.encode().to_vec();
    let sound = preface(Kind::Streams, 0);
    let with = |at: usize, byte: u8| {
        let mut lie = sound.clone();
        lie[at] = byte;
        lie
    };
    vec![
        Vec::new(),
        sound.clone(),
        // No hello of TLS.
        [&sound[..], &[0; 64]].concat(),
        sound[..10].to_vec(),
        preface(Kind::Streams, u16::MAX),
        preface(Kind::Streams, 1),
        preface(Kind::Unary, 0),
        // Another version, flags, and what is reserved.
        with(15, b'9'),
        with(17, 0xff),
        with(23, 1),
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0x16; 4_096],
    ]
}

/// Thousands of connections that stop at each step of an opening, and come again when they are
/// closed, while a worker needs its first tunnel: it gets one, and nobody else is hurt.
pub(super) async fn half_opened(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 1).await?;
    let port = stand.tunnel_port().await;
    let offer = heard_offer(&stand).await?;
    let attempts = Arc::<AtomicUsize>::default();
    let attackers: Vec<_> = (0..size.share(2_000))
        .map(|number| {
            let attacking = half_open(port, offer.clone(), number, Arc::clone(&attempts));
            AbortOnDropHandle::new(tokio::spawn(attacking))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Who had a tunnel keeps it, and who comes now gets one.
    let mut complete = 0;
    let downloads = 10 * size.rounds;
    for number in 0..downloads {
        if number == downloads / 2 {
            stand.add_worker();
            stand.members(2).await;
            stand.retire_worker(0).await?;
        }
        let seen = download(&[stand.port], BODY_BYTES, number % 2 == 0, None).await?;
        complete += usize::from(seen.is_complete(BODY_BYTES));
    }
    finding.figure("attempts", attempts.load(Ordering::Relaxed));
    finding.figure("attackers", attackers.len());
    finding.figure("complete", complete);
    finding.promise(complete == downloads, || format!("{complete} of {downloads} beside them"));
    let peak = memory(&stand.gateway)?.peak >> 20;
    finding.figure("gateway_peak_mib", peak);
    finding.promise(peak < 300, || format!("the gateway took {peak} MiB"));
    drop(attackers);
    stand.all_let_go().await;
    Ok(())
}

/// Stops at one of the steps, holds that until it is closed, and begins again.
async fn half_open(port: u16, offer: Offer, number: usize, attempts: Arc<AtomicUsize>) {
    let shard = (number % 2) as u16;
    let preface = Preface { kind: Kind::Streams, shard }.encode();
    loop {
        // They come again as fast as this machine lets them, which has to attack and to serve.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..300))).await;
        attempts.fetch_add(1, Ordering::Relaxed);
        let bytes = match number % 8 {
            0 => Vec::new(),
            1 => preface[..20].to_vec(),
            2..=4 => preface.to_vec(),
            // The head of a hello of TLS, and not the rest.
            5..=6 => [&preface[..], &[0x16, 3, 1, 0, 200]].concat(),
            // All that a worker does; only its secret is not said.
            _ => {
                let offer = Offer { shard, ..offer.clone() };
                if let Ok(mut dialled) =
                    dial(Kind::Streams, &offer, secret(), &Reach::default()).await
                {
                    closed(&mut dialled).await;
                }
                continue;
            }
        };
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        if stream.write_all(&bytes).await.is_ok() {
            closed(&mut stream).await;
        }
    }
}

/// What the gateway offers, as anybody hears it who may hear requests.
async fn heard_offer(stand: &Stand) -> anyhow::Result<Offer> {
    let mut requests = stand.client.subscribe("svc.>").await?;
    stand.client.flush().await?;
    read(&[stand.port], Method::GET, "/", None).await?;
    let request = requests.next().await.context("a request is heard")?;
    let request = decode_request(&request.payload, Limits::DEFAULT)?;
    Ok(Offer::decode(&request.offer.context("it has an offer")?)?)
}

/// Somebody hears all requests, and all answers too, and dials with what is said there.
pub(super) async fn taps(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 2).await?;
    let mut requests = stand.client.subscribe("svc.>").await?;
    let mut answers = stand.client.subscribe("_INBOX_apiproxy.>").await?;
    stand.client.flush().await?;
    let (mut by_offer, mut by_secret, mut dialled) = (0, 0, Vec::new());
    let tap = |offer: &Offer, secret| {
        let offer = offer.clone();
        tokio::spawn(async move { is_welcome(&offer, secret).await })
    };
    for _ in 0..5 * size.rounds {
        let seen = download(&[stand.port], BODY_BYTES, false, None).await?;
        finding.promise(seen.is_complete(BODY_BYTES), || format!("beside taps: {seen:?}"));
        let request = requests.next().await.context("a request is heard")?;
        let request = decode_request(&request.payload, Limits::DEFAULT)?;
        let offer = Offer::decode(&request.offer.context("it has an offer")?)?;
        dialled.push(tap(&offer, secret()));
        by_offer += 1;
        // What only gateways may hear, where permissions are as they should be.
        while let Some(answer) = answers.next().await {
            let Some(reference) = reference(&answer.payload) else { continue };
            // Used by its worker already.
            dialled.push(tap(&offer, reference.secret));
            by_secret += 1;
            break;
        }
    }
    finding.figure("dialled_by_offer", by_offer);
    finding.figure("dialled_by_secret", by_secret);
    let mut welcomes = 0;
    for tap in dialled {
        welcomes += usize::from(tap.await?);
    }
    finding.promise(welcomes == 0, || format!("{welcomes} taps had a tunnel"));
    stand.all_let_go().await;
    Ok(())
}

/// Where an answer's body goes on, if it does.
pub(super) fn reference(answer: &Bytes) -> Option<Reference> {
    match decode_reply(answer, Limits::DEFAULT) {
        Ok(Reply::Reference(_, reference)) => Some(reference),
        _ => None,
    }
}

/// Whether the gateway makes a connection with this secret a tunnel.
pub(super) async fn is_welcome(offer: &Offer, secret: TunnelSecret) -> bool {
    let Ok(mut dialled) = dial(Kind::Streams, offer, secret, &Reach::default()).await else {
        return false;
    };
    let heard = tokio::time::timeout(CLOSED_WITHIN, welcomed(&mut dialled)).await;
    matches!(heard, Ok(Ok(Welcome::Accepted)))
}
