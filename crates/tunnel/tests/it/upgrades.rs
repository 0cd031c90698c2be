//! Streams that become connections: what a handler writes is fit for the tunnel, and what becomes
//! of a stream becomes of its connection.

use std::convert::Infallible;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use natsway_tunnel::http2::{
    self, Protocol, RecvBody, Settings, StreamPermit, StreamSender, handler_end,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::ends::PATIENCE;

/// A tunnel whose handlers get their ends of streams as workers give them, and what breaks it.
pub(crate) async fn connect<F>(
    handler: impl Fn(TokioIo<Upgraded>) -> F + Clone + Send + Sync + 'static,
) -> (StreamSender, AbortHandle)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(1 << 20);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let stream = request.extensions_mut().remove::<OnUpgrade>().unwrap();
            let (upgrade, end) = handler_end(stream, std::future::pending()).await.unwrap();
            if request.uri().path() == "/refused" {
                drop(end);
                assert!(upgrade.await.is_err(), "there is none");
                return Ok(Response::builder().status(400).body(String::new()).unwrap());
            }
            tokio::spawn(async move { handler(TokioIo::new(upgrade.await.unwrap())).await });
            end.accept();
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let serving = tokio::spawn(async move {
        http2::serve(far, service, &Settings::default(), CancellationToken::new()).await
    });
    let (sender, connection) = http2::connect(near, &Settings::default()).await.unwrap();
    tokio::spawn(connection);
    (sender, serving.abort_handle())
}

async fn open(sender: &mut StreamSender, path: &str) -> (Response<RecvBody>, StreamPermit) {
    let request = Request::connect(format!("http://worker{path}"));
    let mut request = request.body(Empty::<Bytes>::new()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let permit = sender.streams().try_take().unwrap();
    tokio::time::timeout(PATIENCE, sender.open(request, permit)).await.unwrap().unwrap()
}

pub(crate) async fn upgraded(sender: &mut StreamSender) -> (http2::Upgraded, StreamPermit) {
    let (response, permit) = open(sender, "/").await;
    (response.into_body().into_upgraded().unwrap(), permit)
}

/// Each frame that nobody reads costs the gateway some 256 bytes, however short it is.
#[tokio::test]
async fn what_a_handler_writes_byte_by_byte_is_no_flood_of_frames() {
    let begun = Instant::now();
    let (mut sender, _whole) = connect(async |mut connection| {
        for _ in 0..50_000 {
            connection.write_all(b"x").await.unwrap();
            connection.flush().await.unwrap();
        }
        connection.shutdown().await.unwrap();
    })
    .await;
    let (mut connection, _permit) = upgraded(&mut sender).await;
    let (mut bytes, mut frames, mut piece) = (0, 0, vec![0; 64 << 10]);
    // A read takes no more than one frame.
    loop {
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut piece)).await;
        match read.unwrap().unwrap() {
            0 => break,
            count => (bytes, frames) = (bytes + count, frames + 1),
        }
    }
    let paid = begun.elapsed().as_millis() as usize / 5;
    let most = 64 + paid + bytes / 256 + 2;
    assert!(bytes == 50_000 && frames <= most, "{bytes} bytes in {frames} frames, of {most}");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (mut sender, _whole) = connect(async |mut connection| {
        let mut heard = Vec::new();
        connection.read_to_end(&mut heard).await.unwrap();
        connection.write_all(&heard).await.unwrap();
        connection.shutdown().await.unwrap();
    })
    .await;
    let (mut connection, permit) = upgraded(&mut sender).await;
    let said = b"0123456789".repeat(10_000);
    connection.write_all(&said).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut heard = Vec::new();
    tokio::time::timeout(PATIENCE, connection.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == said, "{} bytes", heard.len());
    drop((connection, permit));
    assert_eq!(sender.streams().open(), 0);
}

#[tokio::test]
async fn a_handler_that_refuses_has_no_connection() {
    let (mut sender, _whole) = connect(async |_| unreachable!("it was refused")).await;
    let (response, _permit) = open(&mut sender, "/refused").await;
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn a_tunnel_that_is_lost_does_not_look_like_an_end_to_its_handler() {
    let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let (mut sender, lost) = connect(move |mut connection: TokioIo<Upgraded>| {
        let said = said.clone();
        async move {
            connection.write_all(b"begun").await.unwrap();
            let read = connection.read_to_end(&mut Vec::new()).await;
            said.send(read.is_ok()).unwrap();
        }
    })
    .await;
    let (mut connection, permit) = upgraded(&mut sender).await;
    let mut begun = [0; 5];
    connection.read_exact(&mut begun).await.unwrap();
    lost.abort();
    let looks_whole = tokio::time::timeout(PATIENCE, hears.recv()).await.unwrap();
    assert_eq!(looks_whole, Some(false));
    drop((connection, permit));
}
