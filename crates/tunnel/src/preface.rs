//! What a worker says first on a connection that it dialled, before and inside TLS.
//!
//! ```text
//! in the clear  "natsway-tunnel/1" | kind u8 | flags u8 | shard u16 | reserved u32      24 bytes
//! inside TLS    the secret that the worker said in its answer                           16 bytes
//! back          a welcome                                                                1 byte
//! ```
//!
//! The first part says which of the gateway's threads the connection is for, and nothing that is
//! worth hearing. The gateway's words wait until it has heard the secret by the broker as well.

use std::io;

use natsway_wire::offer::TunnelSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What every connection begins with.
const MAGIC: [u8; 16] = *b"natsway-tunnel/1";

/// What a connection is for, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// What runs on it.
    pub kind: Kind,
    /// The thread of the gateway, as its offer says.
    pub shard: u16,
}

/// What runs on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Streams: HTTP/2 with its roles reversed.
    Streams,
    /// Whole requests: [`natsway_wire::frame`].
    Unary,
}

/// Whether a connection is a tunnel now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// It is; the gateway speaks next.
    Accepted,
    /// The secret was not said in any answer, not lately, or on another connection already.
    Unknown,
    /// The gateway has as many tunnels as it may.
    Full,
    /// What the preface says is not known here.
    Unsupported,
}

/// What is no preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    /// Something else speaks.
    #[error("the connection does not begin as a tunnel does")]
    NoTunnel,
    /// A later version speaks.
    #[error("the connection is of a kind that is not known here")]
    Unsupported,
}

impl Preface {
    /// Its length.
    pub const BYTES: usize = 24;

    /// Writes it.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16] = match self.kind {
            Kind::Streams => 1,
            Kind::Unary => 2,
        };
        bytes[18..20].copy_from_slice(&self.shard.to_be_bytes());
        bytes
    }

    /// Reads it. What is reserved must be zero, so that it can mean something later.
    ///
    /// # Errors
    /// [`PrefaceError`].
    pub fn decode(bytes: [u8; Self::BYTES]) -> Result<Self, PrefaceError> {
        if bytes[..16] != MAGIC {
            return Err(PrefaceError::NoTunnel);
        }
        let kind = match bytes[16] {
            1 => Kind::Streams,
            2 => Kind::Unary,
            _ => return Err(PrefaceError::Unsupported),
        };
        if bytes[17] != 0 || bytes[20..] != [0; 4] {
            return Err(PrefaceError::Unsupported);
        }
        Ok(Self { kind, shard: u16::from_be_bytes([bytes[18], bytes[19]]) })
    }
}

impl Welcome {
    fn code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Unknown => 1,
            Self::Full => 2,
            Self::Unsupported => 3,
        }
    }
}

/// Shows a secret. The deadline is the caller's.
///
/// # Errors
/// If the connection ends.
pub async fn show(io: &mut (impl AsyncWrite + Unpin), secret: TunnelSecret) -> io::Result<()> {
    io.write_all(&secret.0).await?;
    io.flush().await
}

/// Reads the secret that a worker shows. The deadline is the caller's.
///
/// # Errors
/// If the connection ends.
pub async fn shown(io: &mut (impl AsyncRead + Unpin)) -> io::Result<TunnelSecret> {
    let mut secret = [0; 16];
    io.read_exact(&mut secret).await?;
    Ok(TunnelSecret(secret))
}

/// Says whether the connection is a tunnel. The deadline is the caller's.
///
/// # Errors
/// If the connection ends.
pub async fn welcome(io: &mut (impl AsyncWrite + Unpin), welcome: Welcome) -> io::Result<()> {
    io.write_all(&[welcome.code()]).await?;
    io.flush().await
}

/// Waits until the gateway has said whether the connection is a tunnel. The deadline is the
/// caller's.
///
/// # Errors
/// If the connection ends.
pub async fn welcomed(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Welcome> {
    let code = io.read_u8().await?;
    let all = [Welcome::Accepted, Welcome::Unknown, Welcome::Full, Welcome::Unsupported];
    Ok(all.into_iter().find(|welcome| welcome.code() == code).unwrap_or(Welcome::Unsupported))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_documents() {
        let preface = Preface { kind: Kind::Streams, shard: 0x0102 };
        assert_eq!(&preface.encode(), b"natsway-tunnel/1\x01\0\x01\x02\0\0\0\0");
    }

    #[test]
    fn what_is_reserved_is_refused() {
        let bytes = Preface { kind: Kind::Unary, shard: 7 }.encode();
        for at in [16, 17, 20, 23] {
            let mut other = bytes;
            other[at] |= 0x40;
            assert_eq!(Preface::decode(other), Err(PrefaceError::Unsupported), "byte {at}");
        }
        for at in 0..16 {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(Preface::decode(other), Err(PrefaceError::NoTunnel), "byte {at}");
        }
    }

    #[tokio::test]
    async fn a_welcome_is_heard_as_it_was_said() {
        let (mut gateway, mut worker) = tokio::io::duplex(64);
        for said in [Welcome::Accepted, Welcome::Unknown, Welcome::Full, Welcome::Unsupported] {
            welcome(&mut gateway, said).await.expect("said");
            assert_eq!(welcomed(&mut worker).await.expect("heard"), said);
        }
        show(&mut worker, TunnelSecret([9; 16])).await.expect("shown");
        assert_eq!(shown(&mut gateway).await.expect("seen"), TunnelSecret([9; 16]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_preface_or_none(bytes: [u8; Preface::BYTES]) {
            if let Ok(preface) = Preface::decode(bytes) {
                prop_assert_eq!(preface.encode(), bytes);
            }
        }
    }
}
