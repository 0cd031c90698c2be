//! What sockets are told, so that a peer that vanished without a word is missed: one whose network
//! is gone, or that was switched off. Nothing of HTTP asks after it as long as nobody sends.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long nothing may come before the peer's kernel is asked whether it is there, how often it is
/// asked then, and how many answers may be missing: gone after a minute.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long a peer may acknowledge nothing of what it was sent. Its kernel does that, be its
/// program as slow as it likes; but not once it has as much as it holds for a program that reads
/// nothing.
pub const UNACKNOWLEDGED_FOR: Duration = Duration::from_secs(30);

/// What the kernel may hold of what was not sent yet. HTTP/2 cannot put a small frame before what
/// the kernel has already.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 << 10;

/// Has a socket be closed a minute after its peer has vanished, and earlier if `unacknowledged`
/// says so while something was sent. What a listener is told holds for what it accepts.
///
/// # Errors
/// The system's.
pub fn notice_loss<'s>(
    socket: impl Into<SockRef<'s>>,
    unacknowledged: Option<Duration>,
) -> io::Result<()> {
    let socket = socket.into();
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(unacknowledged)?;
    #[cfg(not(target_os = "linux"))]
    drop(unacknowledged);
    Ok(())
}

/// Makes a connection one for a tunnel: small frames leave at once and before what is large, and a
/// peer that vanished is noticed.
///
/// # Errors
/// The system's: most likely the connection is lost already.
pub fn for_tunnel(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    notice_loss(stream, Some(UNACKNOWLEDGED_FOR))?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn notices_loss(stream: &TcpStream) -> io::Result<(bool, Duration, Duration, u32)> {
        let socket = SockRef::from(stream);
        Ok((
            socket.keepalive()?,
            socket.tcp_keepalive_time()?,
            socket.tcp_keepalive_interval()?,
            socket.tcp_keepalive_retries()?,
        ))
    }

    #[tokio::test]
    async fn what_is_accepted_or_dialled_misses_a_peer_that_vanished() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let patient = Duration::from_secs(45);
        notice_loss(&listener, Some(patient))?;
        let dialled = TcpStream::connect(listener.local_addr()?).await?;
        let (accepted, _) = listener.accept().await?;
        for_tunnel(&dialled)?;
        for stream in [&dialled, &accepted] {
            let (ten, thirty) = (Duration::from_secs(10), Duration::from_secs(30));
            assert_eq!(notices_loss(stream)?, (true, thirty, ten, 3));
        }
        assert_eq!(SockRef::from(&accepted).tcp_user_timeout()?, Some(patient));
        assert_eq!(SockRef::from(&dialled).tcp_user_timeout()?, Some(UNACKNOWLEDGED_FOR));
        assert_eq!(SockRef::from(&dialled).tcp_notsent_lowat()?, UNSENT_BYTES);
        assert!(dialled.nodelay()?);
        Ok(())
    }
}
