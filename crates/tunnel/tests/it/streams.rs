//! What streams on a tunnel do, one by one.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::service::service_fn;
use natsway_tunnel::http2::{self, Settings};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::ends::{Ends, Gateway, PATIENCE, chunks, empty};

fn open_streams(gateway: &Gateway) -> u32 {
    match gateway {
        Gateway::Ours(sender) => sender.streams().open(),
        Gateway::Bare(..) => unreachable!("the tests here use ours"),
    }
}

#[tokio::test]
async fn a_body_goes_up_and_down_as_it_was() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let opened = gateway.open("/echo", chunks(5_000, b"0123456789")).await.unwrap();
    let body = tokio::time::timeout(PATIENCE, opened.body.collect()).await.unwrap().unwrap();
    assert_eq!(body.to_bytes(), b"0123456789".repeat(5_000));
}

#[tokio::test]
async fn what_is_above_the_limit_is_refused_and_not_queued() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let mut open = Vec::new();
    for _ in 0..Settings::default().max_streams {
        open.push(gateway.open("/large", empty()).await.unwrap());
    }
    let refused = gateway.open("/small", empty()).await.err();
    assert_eq!(refused.as_deref(), Some("all streams are open"));
    drop(open);
    assert_eq!(open_streams(&gateway), 0);
    gateway.answers().await.unwrap();
}

#[tokio::test]
async fn a_leaving_worker_finishes_what_runs_and_takes_nothing_new() {
    let (mut gateway, leaving) = Ends::Ours.connect().await;
    let running = gateway.open("/slow", empty()).await.unwrap();
    leaving.cancel();
    // The next request was not run, as soon as the goodbye has come.
    let refused = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(error) = gateway.answers().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let refused = refused.await.unwrap();
    assert!(refused.contains("NotTaken") || refused.contains("NotSent"), "{refused}");
    let refused = gateway.answers().await.unwrap_err();
    assert!(refused.contains("NotSent"), "{refused}");
    let body = running.body.collect().await.unwrap();
    assert_eq!(body.to_bytes(), b"word ".repeat(20));
}

/// A connection that is read a little at a time, with time between for what is to be said.
struct Slow(TcpStream, bool);

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1 = !self.1;
        if self.1 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut some = [0; 4_096];
        let length = some.len().min(buffer.remaining());
        let mut read = ReadBuf::new(&mut some[..length]);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A socket that is closed drops what its peer has not read, as soon as that says a word.
#[tokio::test]
async fn what_a_worker_has_written_arrives_however_late_its_gateway_reads_it() {
    const STREAMS: usize = 8;
    const REST: &[u8] = &[b'x'; 200 << 10];
    let (leaving, begin) = (CancellationToken::new(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (gateway, _) = listener.accept().await.unwrap();
    let told = begin.clone();
    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
        let (begin, rest) = (told.clone(), Frame::data(Bytes::from_static(REST)));
        let frames = stream::once(async move {
            begin.cancelled().await;
            Ok::<_, io::Error>(rest)
        });
        std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames)))))
    });
    let left = leaving.clone();
    let serving =
        tokio::spawn(
            async move { http2::serve(worker, service, &Settings::default(), left).await },
        );
    let (sender, connection) =
        http2::connect(Slow(gateway, false), &Settings::default()).await.unwrap();
    let mut connection = std::pin::pin!(connection);
    let open = (0..STREAMS).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://worker/").body(empty()).unwrap();
            let permit = sender.streams().try_take().unwrap();
            sender.open(request, permit).await
        }
    });
    let mut opened = tokio::select! {
        opened = try_join_all(open) => opened.unwrap(),
        _ = &mut connection => panic!("the tunnel ended"),
    };
    leaving.cancel();
    // Both say goodbye.
    tokio::time::timeout(Duration::from_millis(300), &mut connection).await.unwrap_err();
    // Now the gateway has no time for this tunnel, until its worker has said all and would be gone.
    begin.cancel();
    tokio::time::timeout(Duration::from_secs(1), serving).await.ok();
    // Its first word is that somebody has left.
    opened.pop();
    let bodies = join_all(opened.into_iter().map(|(response, _)| response.into_body().collect()));
    let (bodies, _) = tokio::time::timeout(PATIENCE, async { tokio::join!(bodies, connection) })
        .await
        .expect("an end");
    for body in bodies {
        assert_eq!(body.expect("it is whole").to_bytes().len(), REST.len());
    }
}

#[tokio::test]
async fn a_response_whose_reader_leaves_is_free_again() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let opened = gateway.open("/large", empty()).await.unwrap();
    assert_eq!((opened.head.status.as_u16(), open_streams(&gateway)), (200, 1));
    drop(opened);
    assert_eq!(open_streams(&gateway), 0);
    gateway.answers().await.unwrap();
}
