//! The network between a client and its broker breaks as told, and mends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use natsway_testkit::{TcpLink, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_secs(20);
const A_MOMENT: Duration = Duration::from_millis(150);

/// A server that sends back what it gets, and ends when its client does.
async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ended = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    port
}

async fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, text);
}

#[tokio::test]
async fn bytes_and_the_end_pass_in_both_directions() {
    let link = TcpLink::to_port(echo_server().await).await;
    let mut stream = TcpStream::connect(("127.0.0.1", link.port())).await.unwrap();
    echo(&mut stream, &[7; 100_000][..10_000]).await;
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_paused_link_holds_bytes_and_gives_them_back() {
    let mut link = TcpLink::to_port(echo_server().await).await;
    let mut stream = TcpStream::connect(("127.0.0.1", link.port())).await.unwrap();
    echo(&mut stream, b"before").await;
    link.pause();
    stream.write_all(b"held").await.unwrap();
    let mut answer = [0; 4];
    assert!(
        tokio::time::timeout(A_MOMENT, stream.read_exact(&mut answer)).await.is_err(),
        "nothing comes through"
    );
    link.resume().await;
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"held");
}

#[tokio::test]
async fn a_cut_link_resets_and_refuses_until_it_is_mended() {
    let mut link = TcpLink::to_port(echo_server().await).await;
    let address = ("127.0.0.1", link.port());
    let mut stream = TcpStream::connect(address).await.unwrap();
    echo(&mut stream, b"before").await;
    link.cut().await;
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let error = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    link.resume().await;
    echo(&mut TcpStream::connect(address).await.unwrap(), b"after").await;
}

#[tokio::test]
async fn a_slow_link_takes_its_time() {
    let mut link = TcpLink::to_port(echo_server().await).await;
    let mut stream = TcpStream::connect(("127.0.0.1", link.port())).await.unwrap();
    link.slow(std::num::NonZeroU32::new(20_000).unwrap());
    let start = Instant::now();
    echo(&mut stream, &[7; 6_000]).await;
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "6,000 bytes at 20,000 a second, both ways at once"
    );
    link.resume().await;
    echo(&mut stream, &[7; 6_000]).await;
}

#[tokio::test]
async fn a_nats_client_comes_back_through_a_mended_link() {
    let broker = natsway_testkit::TestBroker::start().await;
    let mut link = TcpLink::to_port(broker.port()).await;
    let client = async_nats::connect(link.url()).await.unwrap();
    link.cut().await;
    eventually(DEADLINE, async || {
        client.connection_state() != async_nats::connection::State::Connected
    })
    .await;
    link.resume().await;
    eventually(DEADLINE, async || {
        client.connection_state() == async_nats::connection::State::Connected
    })
    .await;
    client.flush().await.unwrap();
}
