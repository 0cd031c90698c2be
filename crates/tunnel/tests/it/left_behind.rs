//! Clients that leave behind full windows: there is no room on the stream for a word of that, and
//! neither end may wait for any.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use natsway_tunnel::http2::{self, Settings};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ends::{PATIENCE, STUCK, TestBody};
use crate::upgrades::{connect, upgraded};

const PIECE: &[u8] = &[b'x'; 10_000];

/// Says so when it is dropped.
struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

/// A body without an end, until it is dropped.
fn endless(told: Option<Told>) -> TestBody {
    let pieces = stream::repeat_with(move || {
        let _held = &told;
        Ok::<_, io::Error>(Frame::data(Bytes::from_static(PIECE)))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

#[tokio::test]
async fn a_handler_that_reads_nothing_learns_that_its_connection_is_left() {
    let (said, mut hears) = mpsc::unbounded_channel();
    let (mut sender, _whole) = connect(move |mut connection| {
        let _told = Told(said.clone());
        async move {
            let _told = _told;
            while connection.write_all(PIECE).await.is_ok() {}
        }
    })
    .await;
    let (mut connection, permit) = upgraded(&mut sender).await;
    let filling = async { while connection.write_all(PIECE).await.is_ok() {} };
    tokio::time::timeout(STUCK, filling).await.expect_err("the window is full");
    drop((connection, permit));
    tokio::time::timeout(PATIENCE, hears.recv()).await.expect("the handler hangs").unwrap();
}

#[tokio::test]
async fn a_response_whose_request_goes_unread_ends_with_its_reader() {
    let (said, mut hears) = mpsc::unbounded_channel();
    let (near, far) = tokio::io::duplex(1 << 20);
    let service = service_fn(move |request: Request<Incoming>| {
        let told = Told(said.clone());
        async move {
            // As a handler that answers first, and would read later.
            let held = endless(Some(told));
            let body = held.map_frame(move |frame| {
                let _unread = &request;
                frame
            });
            Ok::<_, Infallible>(Response::new(BodyExt::boxed(body)))
        }
    });
    tokio::spawn(async move {
        http2::serve(far, service, &Settings::default(), CancellationToken::new()).await
    });
    let (mut sender, connection) = http2::connect(near, &Settings::default()).await.unwrap();
    tokio::spawn(connection);
    let permit = sender.streams().try_take().unwrap();
    let request = Request::post("http://worker/").body(endless(None)).unwrap();
    let (mut response, _permit) = sender.open(request, permit).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    tokio::time::sleep(STUCK).await;
    assert!(hears.try_recv().is_err(), "it goes on, as long as somebody may read it");
    drop(response);
    tokio::time::timeout(PATIENCE, hears.recv()).await.expect("the handler hangs").unwrap();
}
