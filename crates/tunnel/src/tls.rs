//! TLS of a tunnel, pinned: the worker trusts the one certificate whose hash an offer named.
//!
//! The offer came over the broker, in a request that the worker may hear and answer. Whoever could
//! put another hash there could have answered the request as well, so no authority is needed. The
//! worker shows who it is inside the connection, by what it said in its answer.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerMisbehaved, ServerConfig,
    SignatureScheme, version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::read_ahead::ReadAhead;

/// The name that a worker asks for. It is not looked at, since the hash says more.
const NAME: &str = "natsway-tunnel";
/// The one protocol of a tunnel, so that nothing else that speaks TLS takes it for its own.
const PROTOCOL: &[u8] = b"natsway-tunnel/1";

/// The SHA-256 of a certificate: all that a worker knows of a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateHash(pub [u8; 32]);

/// The gateway's end: a certificate and its key.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    hash: CertificateHash,
}

/// Why a gateway has no certificate for its tunnels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptorError {
    /// None could be made.
    #[error("no certificate could be made for tunnels")]
    Generate(#[source] rcgen::Error),
    /// The certificate and the key that were given do not go together, or are none.
    #[error("the certificate for tunnels does not go with its key")]
    Unusable(#[source] rustls::Error),
}

impl Acceptor {
    /// Makes a certificate of its own, which lives as long as the process.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn generate() -> Result<Self, AcceptorError> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]);
        let made = made.map_err(AcceptorError::Generate)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Self::new(vec![made.cert.der().clone()], key.into())
    }

    /// Takes an operator's certificate, leaf first, and its key.
    ///
    /// # Errors
    /// If there is none, or they do not go together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, AcceptorError> {
        let missing = || rustls::Error::NoCertificatesPresented;
        let leaf = chain.first().ok_or_else(|| AcceptorError::Unusable(missing()))?;
        let hash = CertificateHash::of(leaf);
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&TLS13])
                .map_err(AcceptorError::Unusable)?
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .map_err(AcceptorError::Unusable)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A tunnel is dialled once in minutes: tickets would be sent and never used.
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), hash })
    }

    /// The hash to name in offers.
    pub fn hash(&self) -> CertificateHash {
        self.hash
    }

    /// Does the gateway's part of the handshake. The deadline is the caller's.
    ///
    /// # Errors
    /// If the peer ends the connection, or does not speak the tunnel's protocol.
    pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: T,
    ) -> std::io::Result<server::TlsStream<ReadAhead<T>>> {
        let stream = self.acceptor.accept(ReadAhead::new(io)).await?;
        speaks_tunnel(stream.get_ref().1.alpn_protocol())?;
        Ok(stream)
    }
}

/// Does the worker's part of the handshake, with a gateway that must show the certificate of this
/// hash. The deadline is the caller's.
///
/// # Errors
/// If the gateway shows another certificate, ends the connection, or does not speak the tunnel's
/// protocol.
pub async fn connect<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    expected: CertificateHash,
) -> std::io::Result<client::TlsStream<ReadAhead<T>>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Pinned { expected, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from(NAME).expect("a name of letters");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, ReadAhead::new(io)).await?;
    speaks_tunnel(stream.get_ref().1.alpn_protocol())?;
    Ok(stream)
}

fn speaks_tunnel(protocol: Option<&[u8]>) -> std::io::Result<()> {
    if protocol == Some(PROTOCOL) {
        return Ok(());
    }
    Err(std::io::Error::other("the peer does not speak the protocol of tunnels"))
}

impl CertificateHash {
    /// Computes the hash of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 is 32 bytes"))
    }
}

impl fmt::Display for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateHash({self})")
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Trusts one certificate, whoever signed it and whatever name and dates it bears.
///
/// That the peer has its key is checked by the handshake's signature as ever.
#[derive(Debug)]
struct Pinned {
    expected: CertificateHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if CertificateHash::of(end_entity) == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never asked: only TLS 1.3 is offered.
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Both ends' views of a handshake.
    async fn shake(
        acceptor: &Acceptor,
        expected: CertificateHash,
    ) -> (
        std::io::Result<server::TlsStream<ReadAhead<DuplexStream>>>,
        std::io::Result<client::TlsStream<ReadAhead<DuplexStream>>>,
    ) {
        let (gateway, worker) = duplex(64 << 10);
        tokio::join!(acceptor.accept(gateway), connect(worker, expected))
    }

    #[tokio::test]
    async fn the_certificate_of_the_offer_is_trusted() {
        let acceptor = Acceptor::generate().expect("a certificate");
        let (gateway, worker) = shake(&acceptor, acceptor.hash()).await;
        let (mut gateway, mut worker) = (gateway.expect("accepted"), worker.expect("connected"));
        worker.write_all(b"hello").await.expect("written");
        worker.flush().await.expect("flushed");
        let mut heard = [0; 5];
        gateway.read_exact(&mut heard).await.expect("read");
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn any_other_certificate_is_refused_by_the_worker() {
        let (acceptor, other) = (Acceptor::generate(), Acceptor::generate());
        let (acceptor, other) = (acceptor.expect("a certificate"), other.expect("another"));
        assert_ne!(acceptor.hash(), other.hash());
        let (_, worker) = shake(&acceptor, other.hash()).await;
        assert_eq!(worker.expect_err("another's").kind(), std::io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_copied_certificate_without_its_key_is_of_no_use() {
        let real = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let other = rcgen::KeyPair::generate().expect("a key");
        let key = PrivatePkcs8KeyDer::from(other.serialize_der());
        let copied = Acceptor::new(vec![real.cert.der().clone()], key.into());
        assert!(matches!(copied, Err(AcceptorError::Unusable(_))), "{copied:?}");
    }

    #[tokio::test]
    async fn what_speaks_tls_and_no_tunnel_is_refused() {
        let acceptor = Acceptor::generate().expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                expected: acceptor.hash(),
                provider: Arc::new(aws_lc_rs::default_provider()),
            }))
            .with_no_client_auth();
        let (gateway, client) = duplex(64 << 10);
        let name = ServerName::try_from("example.org").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let (gateway, _client) =
            tokio::join!(acceptor.accept(gateway), connector.connect(name, client));
        assert!(gateway.is_err(), "no protocol was named");
    }
}
