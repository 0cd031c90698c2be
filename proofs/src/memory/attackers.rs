//! Who attacks a gateway's memory: each takes connections and does its worst until it is stopped.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use natsway_testkit::http2::{
    self, INITIAL_WINDOW_SIZE, PREFACE, flag, frame, kind, put_field, put_indexed, settings,
    window_update,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where an attack goes.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// The gateway's port.
    pub port: u16,
    /// Connections to make.
    pub connections: usize,
    /// Seed of what is chosen by chance.
    pub seed: u64,
}

/// Somebody who means harm.
#[derive(Clone, Copy)]
pub struct Attacker {
    /// The name of what it does.
    pub name: &'static str,
    /// Connections that it makes, unless there are fewer to be had.
    pub connections: usize,
    /// What it does, for ever.
    pub attack: fn(Ground) -> BoxFuture<'static, ()>,
}

/// A list of attackers from what each connection does.
macro_rules! attackers {
    ($($name:ident, $connections:literal;)*) => {
        /// All of them.
        pub const ATTACKERS: &[Attacker] = &[$(Attacker {
            name: stringify!($name),
            connections: $connections,
            attack: |ground| Box::pin(crowd(ground, $name)),
        }),*];
    };
}

attackers! {
    shut_windows, 64;
    windows_opened_by_a_byte, 64;
    large_answers_unread, 2000;
    answers_read_by_the_byte, 500;
    pipelined_answers_left_unread, 500;
    large_answers_at_once, 400;
    large_answers_of_new_kinds, 400;
    native_answers_left_unread, 1000;
    native_shut_windows, 32;
    refusals_left_unread, 500;
    bodies_by_the_byte, 2000;
    chunks_of_a_byte, 500;
    http2_bodies_by_the_byte, 50;
    bodies_that_end_never, 1000;
    long_heads_that_end_never, 2000;
    tiny_indexed_fields, 200;
    long_http2_heads, 50;
    rapid_reset, 20;
    pings, 50;
    settings_without_end, 50;
    continuations_without_end, 50;
    empty_data, 50;
    idle_connections, 16000;
    half_a_request_line, 16000;
    half_a_preface, 16000;
    idle_http2_connections, 16000;
    connections_that_come_and_go, 200;
}

/// Runs what each connection does, for ever: who is cut off comes again. They come a few at a time,
/// so that the listener's backlog is not what is attacked.
async fn crowd<F, A>(ground: Ground, act: A)
where
    F: Future<Output = std::io::Result<()>> + Send,
    A: Fn(TcpStream, fastrand::Rng) -> F + Send + Copy,
{
    let each = (0..ground.connections).map(|number| async move {
        let mut choices = fastrand::Rng::with_seed(ground.seed ^ (number as u64) << 20);
        tokio::time::sleep(Duration::from_micros(200 * number as u64)).await;
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", ground.port)).await {
                // How it was cut off is the gateway's to count.
                act(stream, choices.fork()).await.ok();
            }
            tokio::time::sleep(Duration::from_millis(200 + choices.u64(..200))).await;
        }
    });
    join_all(each).await;
}

/// Keeps a connection until it is closed, and reads nothing of it that is not needed to see that.
async fn hold(stream: TcpStream) -> std::io::Result<()> {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.try_write(&[])?;
        if stream.take_error()?.is_some() {
            return Ok(());
        }
    }
}

/// Reads all that comes.
async fn drink(mut stream: TcpStream) -> std::io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

/// A request head of HTTP/2.
fn head(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | flags, stream, block)
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    head(stream, flag::END_STREAM, &http2::request("GET", path))
}

/// The numbers of a connection's first streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

/// HTTP/2 that asks for much and has no window for it.
fn asking_without_window(path: &str) -> Vec<u8> {
    let begin = [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0)])].concat();
    begin.into_iter().chain(streams(100).flat_map(|stream| get(stream, path))).collect()
}

async fn shut_windows(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&asking_without_window("/large")).await?;
    drink(stream).await
}

async fn native_shut_windows(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&asking_without_window("/native/large")).await?;
    drink(stream).await
}

async fn windows_opened_by_a_byte(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&asking_without_window("/large")).await?;
    let (mut reading, mut writing) = stream.into_split();
    let opening = async {
        loop {
            let all: Vec<u8> = streams(100).flat_map(|stream| window_update(stream, 1)).collect();
            writing.write_all(&all).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let mut sink = tokio::io::sink();
    tokio::select! {
        ended = opening => ended,
        read = tokio::io::copy(&mut reading, &mut sink) => read.map(|_| ()),
    }
}

async fn large_answers_unread(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    hold(stream).await
}

async fn native_answers_left_unread(
    mut stream: TcpStream,
    _: fastrand::Rng,
) -> std::io::Result<()> {
    stream.write_all(b"GET /native/large HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    hold(stream).await
}

async fn answers_read_by_the_byte(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(8)).await?;
    let mut few = [0; 16];
    while stream.read(&mut few).await? > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn pipelined_answers_left_unread(
    mut stream: TcpStream,
    _: fastrand::Rng,
) -> std::io::Result<()> {
    stream.write_all(&b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200)).await?;
    hold(stream).await
}

async fn large_answers_at_once(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    drink(stream).await
}

async fn large_answers_of_new_kinds(
    mut stream: TcpStream,
    mut choices: fastrand::Rng,
) -> std::io::Result<()> {
    let name: String = std::iter::repeat_with(|| choices.lowercase()).take(12).collect();
    let request = format!("GET /large/{name} HTTP/1.1\r\nhost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    hold(stream).await
}

/// Requests that are refused at once, with no window for the refusal.
async fn refusals_left_unread(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    let begin = [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0)])].concat();
    let connect = http2::request("TRACE", "/%zz");
    let all: Vec<u8> = begin
        .into_iter()
        .chain(streams(128).flat_map(|stream| head(stream, flag::END_STREAM, &connect)))
        .collect();
    stream.write_all(&all).await?;
    drink(stream).await
}

async fn bodies_by_the_byte(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(b"POST /little HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n").await?;
    loop {
        stream.write_all(b"x").await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn chunks_of_a_byte(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream
        .write_all(b"POST /little HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    loop {
        stream.write_all(&b"1\r\nx\r\n".repeat(20)).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn http2_bodies_by_the_byte(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    let post = http2::request("POST", "/little");
    let begin = [PREFACE, &settings(&[])].concat();
    let heads = streams(100).flat_map(|stream| head(stream, 0, &post));
    stream.write_all(&begin.into_iter().chain(heads).collect::<Vec<u8>>()).await?;
    loop {
        let bytes = streams(100).flat_map(|stream| frame(kind::DATA, 0, stream, b"x"));
        stream.write_all(&bytes.collect::<Vec<u8>>()).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn bodies_that_end_never(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(b"POST /little HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n").await?;
    stream.write_all(&[b'x'; 65_000]).await?;
    hold(stream).await
}

async fn long_heads_that_end_never(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(30_000));
    stream.write_all(head.as_bytes()).await?;
    hold(stream).await
}

async fn tiny_indexed_fields(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    let mut taught = http2::request("POST", "/little");
    (0..60).for_each(|number| put_field(&mut taught, true, &format!("x{number}"), "1"));
    let mut told = http2::request("POST", "/little");
    (62..122).for_each(|number| put_indexed(&mut told, number));
    let begin = [PREFACE, &settings(&[]), &head(1, 0, &taught)].concat();
    let heads = streams(128).skip(1).flat_map(|stream| head(stream, 0, &told));
    stream.write_all(&begin.into_iter().chain(heads).collect::<Vec<u8>>()).await?;
    drink(stream).await
}

async fn long_http2_heads(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    let mut block = http2::request("POST", "/little");
    put_field(&mut block, false, "x", &"y".repeat(15_000));
    let heads = streams(100).flat_map(|stream| head(stream, 0, &block));
    stream.write_all(&[PREFACE, &settings(&[])].concat()).await?;
    stream.write_all(&heads.collect::<Vec<u8>>()).await?;
    drink(stream).await
}

/// Writes without end, and reads nothing.
async fn flood(mut stream: TcpStream, again: impl Fn(u32) -> Vec<u8>) -> std::io::Result<()> {
    stream.write_all(&[PREFACE, &settings(&[])].concat()).await?;
    for number in 0.. {
        stream.write_all(&again(number)).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn rapid_reset(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    flood(stream, |number| {
        let reset = |stream| frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        let ten = (0..10).map(|step| 20 * number + 2 * step + 1);
        ten.flat_map(|stream| [get(stream, "/large"), reset(stream)].concat()).collect()
    })
    .await
}

async fn pings(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    flood(stream, |_| frame(kind::PING, 0, 0, &[0; 8]).repeat(100)).await
}

async fn settings_without_end(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    flood(stream, |number| settings(&[(INITIAL_WINDOW_SIZE, number)]).repeat(100)).await
}

async fn continuations_without_end(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    flood(stream, |number| match number {
        0 => frame(kind::HEADERS, 0, 1, &http2::request("GET", "/little")),
        _ => {
            let mut block = Vec::new();
            put_field(&mut block, false, "x", &"y".repeat(4_000));
            frame(kind::CONTINUATION, 0, 1, &block)
        }
    })
    .await
}

async fn empty_data(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    flood(stream, |number| match number {
        0 => head(1, 0, &http2::request("POST", "/little")),
        _ => frame(kind::DATA, 0, 1, &[]).repeat(100),
    })
    .await
}

async fn idle_connections(stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    hold(stream).await
}

async fn half_a_request_line(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(b"GET /litt").await?;
    hold(stream).await
}

async fn half_a_preface(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&PREFACE[..12]).await?;
    hold(stream).await
}

async fn idle_http2_connections(mut stream: TcpStream, _: fastrand::Rng) -> std::io::Result<()> {
    stream.write_all(&[PREFACE, &settings(&[]), &get(1, "/little")].concat()).await?;
    hold(stream).await
}

async fn connections_that_come_and_go(
    mut stream: TcpStream,
    _: fastrand::Rng,
) -> std::io::Result<()> {
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await
}
