//! The arguments that say where workers dial tunnels.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use natsway_tunnel::http2;
use natsway_tunnel::tls::Acceptor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::memory::plan::{DEFAULT_PIPES, DEFAULT_TUNNELS};
use crate::settings::{PipeLimits, TunnelCertificate, TunnelSettings};

/// See the module.
#[derive(Args)]
#[command(next_help_heading = "Tunnels")]
pub(super) struct TunnelArgs {
    /// Where workers dial tunnels, by which large and endless bodies go, WebSockets and gRPC;
    /// broker for pipes on the broker alone, off for no tunnels at all
    #[arg(
        long,
        env = "NATSWAY_TUNNEL_LISTEN",
        value_name = "ADDRESS|broker|off",
        default_value = "127.0.0.1:0"
    )]
    tunnel_listen: TunnelListen,

    /// What workers are told to dial, host or host:port, several with commas between [default: what
    /// --tunnel-listen says, or every address of this machine]
    #[arg(long, env = "NATSWAY_TUNNEL_ADDRESS", value_name = "ADDRESSES", value_delimiter = ',')]
    tunnel_address: Vec<String>,

    /// Certificate for tunnels, PEM, leaf first; workers trust it by its hash, so it may be signed
    /// by anybody [default: one is made at each start]
    #[arg(long, env = "NATSWAY_TUNNEL_CERT", value_name = "FILE", requires = "tunnel_key")]
    tunnel_cert: Option<PathBuf>,

    /// Its private key, PEM
    #[arg(long, env = "NATSWAY_TUNNEL_KEY", value_name = "FILE", requires = "tunnel_cert")]
    tunnel_key: Option<PathBuf>,

    /// Tunnels without TLS. Workers on other machines take them only if they are told to
    #[arg(long, env = "NATSWAY_TUNNEL_CLEARTEXT", conflicts_with = "tunnel_cert")]
    tunnel_cleartext: bool,

    /// Bytes that a worker may send of one body before the client has taken them. The rate of a
    /// body is at most this by round trip: 262144 at 10 ms are 25 MiB/s
    #[arg(
        long, env = "NATSWAY_TUNNEL_WINDOW", value_name = "BYTES", default_value = "262144",
        value_parser = clap::value_parser!(u32).range(65_536..=4_194_304)
    )]
    tunnel_window: u32,

    /// Tunnels at a time for each thread: so many for streams, and so many for whole requests. One
    /// subject has three quarters of them at the most; the one that carried nothing for longest
    /// gives way to the next [default: 1024, fewer where the memory is small]
    #[arg(long, env = "NATSWAY_MAX_TUNNELS", value_name = "COUNT")]
    max_tunnels: Option<NonZeroU16>,

    /// Pipes on the broker at a time for each thread, for workers that cannot reach the address for
    /// tunnels; 0 for none [default: 32, fewer where the memory is small]
    #[arg(
        long, env = "NATSWAY_TUNNEL_PIPES", value_name = "COUNT",
        value_parser = clap::value_parser!(u16)
    )]
    tunnel_pipes: Option<u16>,

    /// Bytes that one end of a pipe may be ahead of the other's reader. A broker drops a client for
    /// which 64 MiB wait, so this by the pipes of a thread is 32 MiB at the most
    #[arg(
        long, env = "NATSWAY_TUNNEL_PIPE_WINDOW", value_name = "BYTES", default_value = "524288",
        value_parser = clap::value_parser!(u32).range(65_536..=4_194_304)
    )]
    tunnel_pipe_window: u32,

    /// Bytes a second that all pipes of a thread may carry, both ways together, so that they leave
    /// room at the broker, 1048576 at the least; 0 for no bound
    #[arg(
        long,
        env = "NATSWAY_TUNNEL_PIPE_RATE",
        value_name = "BYTES",
        default_value = "33554432"
    )]
    tunnel_pipe_rate: u64,
}

/// What the windows of a thread's pipes may be together: half of what a broker has waiting for a
/// client before it drops that.
const MOST_PIPE_BYTES: u64 = 32 << 20;

/// The least that pipes may carry in a second: each of the usual ones has its turn twice in that.
const LEAST_PIPE_RATE: u64 = 1 << 20;

#[derive(Clone, Copy)]
enum TunnelListen {
    Off,
    Broker,
    At(SocketAddr),
}

impl FromStr for TunnelListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "broker" => Ok(Self::Broker),
            text => super::address(text).map(Self::At),
        }
    }
}

impl TunnelArgs {
    /// Returns the settings that the arguments make; nothing when there are to be no tunnels.
    ///
    /// # Errors
    /// What has to be changed.
    pub(super) fn settings(&self) -> anyhow::Result<Option<TunnelSettings>> {
        let listen = match self.tunnel_listen {
            TunnelListen::Off => return Ok(None),
            TunnelListen::Broker => None,
            TunnelListen::At(listen) => Some(listen),
        };
        if self.tunnel_address.len() > natsway_wire::offer::Offer::ADDRESSES {
            bail!(
                "--tunnel-address names {} addresses, and may name {}",
                self.tunnel_address.len(),
                natsway_wire::offer::Offer::ADDRESSES
            );
        }
        let certificate = match (&self.tunnel_cert, &self.tunnel_key) {
            (Some(certificate), Some(key)) => TunnelCertificate::Given(read(certificate, key)?),
            _ if self.tunnel_cleartext => TunnelCertificate::Cleartext,
            _ => TunnelCertificate::Generated,
        };
        let http2 = http2::Settings {
            stream_window_bytes: self.tunnel_window,
            ..http2::Settings::default()
        };
        let addresses = self.tunnel_address.clone();
        let pipes = self.pipe_limits()?;
        let takes_pipes = pipes.is_some() && !matches!(certificate, TunnelCertificate::Cleartext);
        if listen.is_none() && !takes_pipes {
            bail!(
                "--tunnel-listen broker: expected pipes, and --tunnel-pipes 0 or \
                 --tunnel-cleartext leaves none; say off for no tunnels"
            );
        }
        let most = self.tunnels().unwrap_or(DEFAULT_TUNNELS);
        Ok(Some(TunnelSettings { listen, addresses, certificate, http2, most, pipes }))
    }

    /// Returns how many tunnels each thread may have, where that was said.
    pub(super) fn tunnels(&self) -> Option<NonZeroUsize> {
        self.max_tunnels.map(NonZeroUsize::from)
    }

    /// Returns how many pipes each thread may have, where that was said.
    pub(super) fn pipes(&self) -> Option<usize> {
        self.tunnel_pipes.map(usize::from)
    }

    fn pipe_limits(&self) -> anyhow::Result<Option<PipeLimits>> {
        let most = self.pipes().unwrap_or(DEFAULT_PIPES);
        if most == 0 {
            return Ok(None);
        }
        let together = most as u64 * u64::from(self.tunnel_pipe_window);
        if together > MOST_PIPE_BYTES {
            bail!(
                "--tunnel-pipes {most} by --tunnel-pipe-window {}: expected {MOST_PIPE_BYTES} \
                 bytes together at the most",
                self.tunnel_pipe_window
            );
        }
        if (1..LEAST_PIPE_RATE).contains(&self.tunnel_pipe_rate) {
            bail!(
                "--tunnel-pipe-rate {}: expected {LEAST_PIPE_RATE} or more, or 0 for no bound",
                self.tunnel_pipe_rate
            );
        }
        Ok(Some(PipeLimits {
            most,
            window_bytes: self.tunnel_pipe_window,
            bytes_per_second: NonZeroU64::new(self.tunnel_pipe_rate),
        }))
    }
}

fn read(certificate: &Path, key: &Path) -> anyhow::Result<Acceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("certificate for tunnels, {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("key for tunnels, {}", key.display()))?;
    Ok(Acceptor::new(chain, key)?)
}
