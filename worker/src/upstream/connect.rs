//! Connections to an app: TCP, TLS or a Unix socket.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use natsway_tunnel::socket::notice_loss;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::{Endpoint, Scheme, UpstreamAddress};

/// A connection to the app.
pub(super) enum Connection {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// The version of HTTP that a request is to go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Http1,
    Http2,
    /// Whichever is agreed on by TLS.
    Negotiated,
}

/// Makes connections to one app.
#[derive(Clone)]
pub(super) struct Connector {
    address: UpstreamAddress,
    timeout: Duration,
    tls: Option<Tls>,
}

/// TLS for each version of HTTP that is wanted.
#[derive(Clone)]
struct Tls {
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    either: Arc<ClientConfig>,
}

impl Connector {
    /// # Errors
    /// The authorities that sign the app's certificate cannot be read; the host is no name that a
    /// certificate could have.
    pub(super) fn new(
        address: UpstreamAddress,
        timeout: Duration,
        ca: Option<&Path>,
    ) -> Result<Self, String> {
        let tls = match (address.scheme, &address.endpoint) {
            (Scheme::Https, Endpoint::Tcp { host, .. }) => Some(Tls::new(host, ca)?),
            _ => None,
        };
        Ok(Self { address, timeout, tls })
    }

    /// The same for an app at another port.
    pub(super) fn with_port(mut self, port: u16) -> Self {
        self.address = self.address.with_port(port);
        self
    }

    /// Where the app is.
    pub(super) fn address(&self) -> &UpstreamAddress {
        &self.address
    }

    /// Whether something takes connections there, whatever it speaks.
    pub(super) async fn is_taken(&self) -> bool {
        let reached = async {
            match &self.address.endpoint {
                Endpoint::Unix(path) => UnixStream::connect(path).await.is_ok(),
                Endpoint::Tcp { host, port } => {
                    TcpStream::connect((host.trim_matches(['[', ']']), *port)).await.is_ok()
                }
            }
        };
        tokio::time::timeout(self.timeout, reached).await.unwrap_or(false)
    }

    /// Makes a connection, and says which version of HTTP it is for.
    ///
    /// # Errors
    /// The system's, or TLS's; [`io::ErrorKind::TimedOut`] when the app did not take it in time.
    pub(super) async fn connect(&self, wanted: Wanted) -> io::Result<(Connection, Wanted)> {
        match tokio::time::timeout(self.timeout, self.dial(wanted)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {:?}", self.timeout),
            )),
        }
    }

    async fn dial(&self, wanted: Wanted) -> io::Result<(Connection, Wanted)> {
        let (host, port) = match &self.address.endpoint {
            Endpoint::Unix(path) => {
                return Ok((Connection::Unix(UnixStream::connect(path).await?), wanted));
            }
            Endpoint::Tcp { host, port } => (host.trim_matches(['[', ']']), *port),
        };
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        // An app may take its time over what it was sent.
        notice_loss(&tcp, None)?;
        let Some(tls) = &self.tls else { return Ok((Connection::Tcp(tcp), wanted)) };
        let config = match wanted {
            Wanted::Http1 => &tls.http1,
            Wanted::Http2 => &tls.http2,
            Wanted::Negotiated => &tls.either,
        };
        let stream = TlsConnector::from(Arc::clone(config)).connect(tls.name.clone(), tcp).await?;
        let agreed = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Wanted::Http2,
            _ => Wanted::Http1,
        };
        Ok((Connection::Tls(Box::new(stream)), agreed))
    }
}

impl Tls {
    fn new(host: &str, ca: Option<&Path>) -> Result<Self, String> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| format!("{host:?} is no name of a TLS server: {error}"))?;
        let mut roots = RootCertStore::empty();
        match ca {
            Some(path) => add_file(&mut roots, path)?,
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err("the system has no certificate authorities: give a file of them \
                                with --upstream-ca"
                        .to_owned());
                }
            }
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = |protocols: &[&[u8]]| {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(Arc::clone(&roots))
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Ok::<_, String>(Arc::new(config))
        };
        Ok(Self {
            name,
            http1: config(&[b"http/1.1"])?,
            http2: config(&[b"h2"])?,
            either: config(&[b"h2", b"http/1.1"])?,
        })
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let shown = path.display();
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("file of certificate authorities {shown}: {error}"))?;
    let (added, _) = roots.add_parsable_certificates(certificates);
    match added {
        0 => Err(format!("file of certificate authorities {shown}: it holds no certificate")),
        _ => Ok(()),
    }
}

/// Calls a method of the stream that a connection is.
macro_rules! of_stream {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection.get_mut() {
            Connection::Tcp($stream) => $call,
            Connection::Tls($stream) => $call,
            Connection::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        of_stream!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        of_stream!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of_stream!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
