//! The network between a client and its broker breaks as told, and mends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use natsway_testkit::{LinkShape, TcpLink, eventually};
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

/// A server that counts what it gets, and says at the end of it how much that was.
async fn sink() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let count = tokio::io::copy(&mut from, &mut tokio::io::sink()).await.unwrap();
                to.write_u64(count).await.unwrap();
            });
        }
    });
    port
}

/// Sends so many bytes to a [`sink`] and waits until it has them.
async fn upload(link: &TcpLink, bytes: usize) {
    let mut stream = connect(link).await;
    stream.write_all(&vec![7; bytes]).await.unwrap();
    stream.shutdown().await.unwrap();
    let received = tokio::time::timeout(DEADLINE * 3, stream.read_u64()).await.unwrap().unwrap();
    assert_eq!(received, bytes as u64);
}

async fn connect(link: &TcpLink) -> TcpStream {
    TcpStream::connect(("127.0.0.1", link.port())).await.unwrap()
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
async fn a_narrow_link_takes_its_time() {
    let link = TcpLink::to_port(echo_server().await).await;
    let mut stream = connect(&link).await;
    link.shape(LinkShape::default().with_rate(20_000));
    let start = Instant::now();
    echo(&mut stream, &[7; 6_000]).await;
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "6,000 bytes at 20,000 a second, both ways at once"
    );
    link.shape(LinkShape::default());
    echo(&mut stream, &[7; 6_000]).await;
}

#[tokio::test]
async fn all_connections_share_the_rate() {
    let link = TcpLink::to_port(sink().await).await;
    link.shape_up(LinkShape::default().with_rate(10_000_000 / 8));
    let start = Instant::now();
    let uploads = (0..4).map(|_| upload(&link, 256 * 1024));
    futures_util::future::join_all(uploads).await;
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?} for 1 MiB", start.elapsed());
}

#[tokio::test]
async fn a_byte_is_on_the_way_as_long_as_the_delay() {
    let link = TcpLink::to_port(echo_server().await).await;
    let mut stream = connect(&link).await;
    for delay_ms in [20, 50, 100] {
        link.shape(LinkShape::delayed(Duration::from_millis(delay_ms)));
        let start = Instant::now();
        echo(&mut stream, b"ping").await;
        let round_trip = start.elapsed();
        assert!(round_trip >= Duration::from_millis(2 * delay_ms), "{round_trip:?}");
        assert!(round_trip < Duration::from_secs(5), "{round_trip:?}");
    }
}

#[tokio::test]
async fn each_direction_has_a_shape_of_its_own() {
    let link = TcpLink::to_port(echo_server().await).await;
    let mut stream = connect(&link).await;
    let slow = LinkShape::delayed(Duration::from_millis(300));
    for shape in [TcpLink::shape_up, TcpLink::shape_down] {
        link.shape(LinkShape::default());
        shape(&link, slow);
        let start = Instant::now();
        echo(&mut stream, b"ping").await;
        assert!(start.elapsed() >= slow.delay);
    }
    // Only the way back is narrow, and little goes there.
    let link = TcpLink::to_port(sink().await).await;
    link.shape_down(LinkShape::default().with_rate(1_000));
    let start = Instant::now();
    upload(&link, 1_000_000).await;
    assert!(start.elapsed() < DEADLINE, "at 1,000 bytes a second it would take 1,000 s");
}

#[tokio::test]
async fn a_delay_does_not_bound_what_gets_through() {
    let link = TcpLink::to_port(sink().await).await;
    link.shape(LinkShape::delayed(Duration::from_millis(100)));
    let start = Instant::now();
    upload(&link, 32 * 1024 * 1024).await;
    assert!(start.elapsed() < DEADLINE, "one read of the link after the other would take 51 s");
}

#[tokio::test]
async fn a_long_link_takes_no_more_than_it_may_hold() {
    let link = TcpLink::to_port(sink().await).await;
    link.shape(LinkShape::delayed(Duration::from_secs(3_600)));
    let mut stream = connect(&link).await;
    let (chunk, mut sent) = (vec![7; 64 * 1024], 0);
    // Nothing arrives, so the sender has to wait in the end.
    while let Ok(written) = tokio::time::timeout(A_MOMENT, stream.write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < 32 * 1024 * 1024, "16 MiB and what the kernel holds");
    }
}

#[tokio::test]
async fn bytes_are_whole_and_in_order_while_the_link_changes() {
    let link = TcpLink::to_port(echo_server().await).await;
    let mut random = fastrand::Rng::with_seed(17);
    let bytes: Vec<u8> = (0..400_000).map(|_| random.u8(..)).collect();
    let (mut from, mut to) = connect(&link).await.into_split();
    let sending = async {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(random.usize(1..=rest.len().min(9_000)));
            to.write_all(chunk).await.unwrap();
            rest = after;
            let shape = LinkShape::delayed(Duration::from_millis(random.u64(0..30)));
            match random.u32(..4) {
                0 => link.shape_up(shape),
                1 => link.shape_down(shape.with_rate(random.u64(500_000..50_000_000))),
                2 => link.shape(shape),
                _ => tokio::task::yield_now().await,
            }
        }
        to.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let receiving = tokio::time::timeout(DEADLINE, from.read_to_end(&mut received));
    let ((), count) = tokio::join!(sending, receiving);
    assert_eq!(count.unwrap().unwrap(), bytes.len());
    assert!(received == bytes, "the same bytes");
}

#[tokio::test]
async fn a_cut_loses_what_is_on_the_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = TcpLink::to_port(listener.local_addr().unwrap().port()).await;
    let mut client = connect(&link).await;
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"before").await.unwrap();
    let mut received = [0; 6];
    server.read_exact(&mut received).await.unwrap();
    link.shape(LinkShape::delayed(Duration::from_secs(3_600)));
    client.write_all(b"lost").await.unwrap();
    let early = tokio::time::timeout(A_MOMENT, server.read_u8()).await;
    assert!(early.is_err(), "it is on the way: {early:?}");
    link.cut().await;
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_comes_behind_the_bytes_and_is_none_of_a_clean_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = TcpLink::to_port(listener.local_addr().unwrap().port()).await;
    let mut client = connect(&link).await;
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"?").await.unwrap();
    server.read_u8().await.unwrap();
    link.shape(LinkShape::delayed(Duration::from_millis(100)));
    server.write_all(b"half of it").await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let mut received = Vec::new();
    let end = tokio::time::timeout(DEADLINE, client.read_to_end(&mut received)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(received, b"half of it");
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
