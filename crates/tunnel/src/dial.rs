//! The worker's way to a gateway: which of the addresses of an offer it may dial, and dialling.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use natsway_wire::offer::{Offer, TunnelSecret};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::pipe::PipeStream;
use crate::preface::{self, Kind, Preface};
use crate::read_ahead::ReadAhead;
use crate::socket;
use crate::tls::{self, CertificateHash};

/// How long one address may take, from the first packet to the end of TLS.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// What carries a tunnel's bytes: a connection, or a pipe on the broker.
pub type Carrier = Either<TcpStream, PipeStream>;

/// A connection that is not a tunnel before the gateway has said so.
pub type Dialled = Either<Carrier, TlsStream<ReadAhead<Carrier>>>;

/// Where a worker may dial. Who may send it requests names addresses, so they are bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    networks: Vec<IpNet>,
    allows_cleartext: bool,
}

/// Why there is no connection to a gateway.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address of the offer is one that may be dialled.
    #[error("no address of {addresses:?} is in the networks that tunnels may go to")]
    OutOfReach {
        /// Those of the offer.
        addresses: Vec<String>,
    },
    /// The offer has no certificate, and is not on this machine.
    #[error("the gateway takes tunnels without TLS, at {address}")]
    Cleartext {
        /// Where.
        address: IpAddr,
    },
    /// It does not answer, or is not what the offer says.
    #[error("cannot reach the gateway at {address}")]
    Unreachable {
        /// The last address.
        address: String,
        /// Why.
        source: io::Error,
    },
}

impl DialError {
    /// Whether the gateway was reached and closed the connection: it had to give way to others, and
    /// the next one may not.
    pub fn was_closed(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Unreachable { source, .. } => {
                matches!(source.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
            }
            Self::OutOfReach { .. } | Self::Cleartext { .. } => false,
        }
    }
}

impl Default for Reach {
    /// This machine and private networks. Not link-local ones: clouds tell machines their secrets
    /// there.
    fn default() -> Self {
        const PRIVATE: [&str; 7] = [
            "127.0.0.0/8",
            "::1/128",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
        ];
        let networks = PRIVATE.map(|network| network.parse().expect("a network")).to_vec();
        Self { networks, allows_cleartext: false }
    }
}

impl Reach {
    /// Returns one that allows these networks alone.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks, allows_cleartext: false }
    }

    /// The same, also without TLS on other machines than this.
    #[must_use]
    pub fn with_cleartext(self, allows_cleartext: bool) -> Self {
        Self { allows_cleartext, ..self }
    }

    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// Dials a gateway, does TLS, and shows the secret. What comes next is the gateway's
/// [welcome](preface::welcomed).
///
/// # Errors
/// [`DialError`]: the last of the addresses' reasons.
pub async fn dial(
    kind: Kind,
    offer: &Offer,
    secret: TunnelSecret,
    reach: &Reach,
) -> Result<Dialled, DialError> {
    let mut failed = None;
    for address in &offer.addresses {
        let found = match tokio::time::timeout(DIAL_TIMEOUT, lookup_host(address)).await {
            Ok(Ok(found)) => found,
            Ok(Err(source)) => {
                failed = Some(unreachable(address, source));
                continue;
            }
            Err(elapsed) => {
                failed = Some(unreachable(address, elapsed.into()));
                continue;
            }
        };
        for socket in found.filter(|socket| reach.allows(socket.ip())) {
            if offer.certificate.is_none() && !reach.allows_cleartext && !socket.ip().is_loopback()
            {
                failed = Some(DialError::Cleartext { address: socket.ip() });
                continue;
            }
            let dialling = dial_one(kind, socket, offer, secret);
            match tokio::time::timeout(DIAL_TIMEOUT, dialling).await {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(source)) => failed = Some(unreachable(address, source)),
                Err(elapsed) => failed = Some(unreachable(address, elapsed.into())),
            }
        }
    }
    Err(failed.unwrap_or_else(|| DialError::OutOfReach { addresses: offer.addresses.clone() }))
}

fn unreachable(address: &str, source: io::Error) -> DialError {
    DialError::Unreachable { address: address.to_owned(), source }
}

async fn dial_one(
    kind: Kind,
    address: std::net::SocketAddr,
    offer: &Offer,
    secret: TunnelSecret,
) -> io::Result<Dialled> {
    let stream = TcpStream::connect(address).await?;
    socket::for_tunnel(&stream)?;
    begin(kind, Either::Left(stream), offer, secret).await
}

/// Begins a tunnel for streams on a pipe, as on a connection: TLS, and the secret. What comes next
/// is the gateway's [welcome](preface::welcomed).
///
/// # Errors
/// The pipe breaks, the gateway is another one than the offer's, or it takes only tunnels without
/// TLS: none of those goes by the broker.
pub async fn dial_pipe(
    pipe: PipeStream,
    offer: &Offer,
    secret: TunnelSecret,
) -> io::Result<Dialled> {
    if offer.certificate.is_none() {
        return Err(io::Error::other("a pipe without TLS"));
    }
    let begun = begin(Kind::Streams, Either::Right(pipe), offer, secret);
    tokio::time::timeout(DIAL_TIMEOUT, begun).await?
}

async fn begin(
    kind: Kind,
    mut carrier: Carrier,
    offer: &Offer,
    secret: TunnelSecret,
) -> io::Result<Dialled> {
    use tokio::io::AsyncWriteExt;

    let preface = Preface { kind, shard: offer.shard };
    carrier.write_all(&preface.encode()).await?;
    let mut dialled = match offer.certificate {
        Some(hash) => Either::Right(tls::connect(carrier, CertificateHash(hash)).await?),
        None => Either::Left(carrier),
    };
    preface::show(&mut dialled, secret).await?;
    Ok(dialled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(addresses: &[&str]) -> Offer {
        Offer {
            gateway: "g".to_owned(),
            shard: 0,
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            certificate: None,
            takes_requests: false,
            takes_pipes: false,
        }
    }

    #[test]
    fn private_networks_are_in_reach_and_what_tells_secrets_is_not() {
        let reach = Reach::default();
        for inside in ["127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "fd00::1"] {
            assert!(reach.allows(inside.parse().expect("an address")), "{inside}");
        }
        for outside in ["169.254.169.254", "8.8.8.8", "172.32.0.1", "fe80::1", "2001:db8::1"] {
            assert!(!reach.allows(outside.parse().expect("an address")), "{outside}");
        }
        assert!(!reach.allows("::ffff:169.254.169.254".parse().expect("an address")));
        assert!(reach.allows("::ffff:10.0.0.1".parse().expect("an address")));
    }

    #[tokio::test]
    async fn what_is_out_of_reach_is_not_dialled() {
        let (secret, reach) = (TunnelSecret([1; 16]), Reach::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let refused = dial(Kind::Streams, &offer(&[&address]), secret, &reach).await;
        assert!(matches!(refused, Err(DialError::OutOfReach { .. })), "{refused:?}");
        let none = dial(Kind::Unary, &offer(&[]), secret, &Reach::default()).await;
        assert!(matches!(none, Err(DialError::OutOfReach { .. })), "{none:?}");
    }

    #[tokio::test]
    async fn another_machine_is_not_dialled_in_the_clear_unless_that_was_allowed() {
        let (secret, offer) = (TunnelSecret([1; 16]), offer(&["10.255.255.1:1"]));
        let refused = dial(Kind::Streams, &offer, secret, &Reach::default()).await;
        assert!(matches!(refused, Err(DialError::Cleartext { .. })), "{refused:?}");
        let nowhere = "127.0.0.2/32".parse().expect("a network");
        let allowed = Reach::new(vec![nowhere]).with_cleartext(true);
        let offer = Offer { addresses: vec!["127.0.0.2:1".to_owned()], ..offer };
        let refused = dial(Kind::Streams, &offer, secret, &allowed).await;
        assert!(matches!(refused, Err(DialError::Unreachable { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn the_next_address_is_tried_and_the_secret_shown() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let offer = offer(&["no such address", &address]);
        let (secret, reach) = (TunnelSecret([7; 16]), Reach::default());
        let (dialled, accepted) =
            tokio::join!(dial(Kind::Unary, &offer, secret, &reach), listener.accept());
        let (_dialled, (mut accepted, _)) =
            (dialled.expect("dialled"), accepted.expect("accepted"));
        let mut preface = [0; Preface::BYTES];
        tokio::io::AsyncReadExt::read_exact(&mut accepted, &mut preface).await.expect("read");
        let expected = Preface { kind: Kind::Unary, shard: 0 };
        assert_eq!(Preface::decode(preface), Ok(expected));
        assert_eq!(preface::shown(&mut accepted).await.expect("shown"), secret);
    }
}
