//! Apps that listen somewhere, as a service: each way to speak to them, and each way in which they
//! fail.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request as AppRequest;
use axum::routing::{any, get};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use natsway_testkit::{eventually, free_port};
use natsway_worker::Body;
use natsway_worker::upstream::{HostHeader, Upstream, UpstreamBody, UpstreamOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// Generous: for a hang, not for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn options(address: &str) -> UpstreamOptions {
    UpstreamOptions::new(address.parse().unwrap())
}

fn upstream(address: &str) -> Upstream {
    Upstream::new(options(address)).unwrap()
}

async fn ask(upstream: &Upstream, request: Request<Body>) -> Response<UpstreamBody> {
    let asked = tokio::time::timeout(PATIENCE, upstream.clone().oneshot(request));
    asked.await.expect("an answer in time").unwrap_or_else(|error| match error {})
}

async fn text(response: Response<UpstreamBody>) -> String {
    let collected = tokio::time::timeout(PATIENCE, response.into_body().collect());
    let bytes = collected.await.expect("a body in time").unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn to(method: Method, path: &str, body: &'static str) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path).header("host", "shop.example");
    builder.body(Body::from(body)).unwrap()
}

/// The code of a problem document.
async fn problem(response: Response<UpstreamBody>) -> (StatusCode, String) {
    let status = response.status();
    let document: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    (status, document["code"].as_str().unwrap().to_owned())
}

/// Says what it sees.
fn mirror() -> Router {
    let seen = async |request: AppRequest| {
        let (head, body) = request.into_parts();
        let host = head.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
        let host = host.or_else(|| head.uri.authority().map(ToString::to_string));
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        format!(
            "{:?} {} {} {} {}",
            head.version,
            head.method,
            head.uri.path(),
            host.unwrap(),
            body.len()
        )
    };
    Router::new().route("/trailers", get(trailers)).fallback(any(seen))
}

async fn trailers() -> Response<axum::body::Body> {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", "0".parse().unwrap());
    let frames: Vec<Result<_, Infallible>> =
        vec![Ok(Frame::data(Bytes::from_static(b"data"))), Ok(Frame::trailers(fields))];
    Response::new(axum::body::Body::new(StreamBody::new(futures_util::stream::iter(frames))))
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Reads a request's head and what came with it, if there is one.
async fn read_head(socket: &mut TcpStream) -> Option<String> {
    let (mut head, mut piece) = (Vec::new(), [0; 4_096]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match socket.read(&mut piece).await {
            Ok(count @ 1..) => head.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn each_kind_of_address_is_reached() {
    let address = serve(mirror()).await;
    for (address, version) in
        [(format!("http://{address}"), "HTTP/1.1"), (format!("h2c://{address}"), "HTTP/2.0")]
    {
        let seen = text(ask(&upstream(&address), to(Method::POST, "/a", "four")).await).await;
        assert_eq!(seen, format!("{version} POST /a shop.example 4"));
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("app.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, mirror()).await.unwrap() });
    let app = upstream(&format!("unix:{}", socket.display()));
    let seen = text(ask(&app, to(Method::GET, "/b", "")).await).await;
    assert_eq!(seen, "HTTP/1.1 GET /b shop.example 0");
}

#[tokio::test]
async fn the_apps_own_host_is_sent_where_that_is_wanted() {
    let address = serve(mirror()).await;
    for scheme in ["http", "h2c"] {
        let options = options(&format!("{scheme}://{address}")).host_header(HostHeader::Upstream);
        let app = Upstream::new(options).unwrap();
        let seen = text(ask(&app, to(Method::GET, "/", "")).await).await;
        assert!(seen.ends_with(&format!("{address} 0")), "{seen}");
    }
}

#[tokio::test]
async fn calls_by_grpc_go_by_http_2_and_their_trailers_come_back() {
    let app = upstream(&format!("http://{}", serve(mirror()).await));
    let mut request = to(Method::GET, "/trailers", "");
    request.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    let response = ask(&app, request).await;
    assert_eq!(response.version(), Version::HTTP_2);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn grpc_web_goes_by_http_1() {
    let app = upstream(&format!("http://{}", serve(mirror()).await));
    let mut request = to(Method::POST, "/", "");
    request.headers_mut().insert("content-type", "application/grpc-web+proto".parse().unwrap());
    let seen = text(ask(&app, request).await).await;
    assert!(seen.starts_with("HTTP/1.1 "), "{seen}");
}

/// Answers by HTTP/2 without TLS, save on the connections that are to be silent behind their first
/// answer. Gives its address, and how many connections are open.
async fn serve_http2(is_silent: fn(usize) -> bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("h2c://{}", listener.local_addr().unwrap());
    let open = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&open);
    tokio::spawn(async move {
        for number in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                counted.fetch_add(1, Ordering::SeqCst);
                let answered = AtomicUsize::new(0);
                let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                    let is_first = answered.fetch_add(1, Ordering::SeqCst) == 0;
                    async move {
                        if !is_first && is_silent(number) {
                            std::future::pending::<()>().await;
                        }
                        let body = Full::new(Bytes::from(number.to_string()));
                        Ok::<_, Infallible>(Response::new(body))
                    }
                });
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                http2.serve_connection(TokioIo::new(socket), answer).await.ok();
                counted.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

#[tokio::test]
async fn a_check_leaves_no_connection_behind() {
    let (address, open) = serve_http2(|_| false).await;
    let app = upstream(&address);
    for _ in 0..5 {
        assert_eq!(app.check("/health").await.unwrap(), StatusCode::OK);
    }
    eventually(PATIENCE, async || match open.load(Ordering::SeqCst) {
        0 => Ok(()),
        open => Err(format!("{open} connections are open")),
    })
    .await;
    assert_eq!(app.stats().connections, 0, "checks are not counted");
}

#[tokio::test]
async fn a_connection_of_http_2_that_gives_no_answer_gets_no_more_requests() {
    let (address, _) = serve_http2(|number| number == 0).await;
    let limit = Duration::from_millis(500);
    let options = options(&address).idle_timeout(PATIENCE).response_timeout(limit);
    let app = Upstream::new(options).unwrap();
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "0");
    let late = problem(ask(&app, to(Method::GET, "/", "")).await).await;
    assert_eq!(late, (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout".to_owned()));
    for _ in 0..2 {
        assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "1");
    }
}

#[tokio::test]
async fn a_connection_of_http_2_without_streams_is_kept_no_longer_than_its_time() {
    let (address, open) = serve_http2(|_| false).await;
    let idle = Duration::from_millis(200);
    let app = Upstream::new(options(&address).idle_timeout(idle)).unwrap();
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "0");
    eventually(PATIENCE, async || match open.load(Ordering::SeqCst) {
        0 => Ok(()),
        open => Err(format!("{open} connections are open")),
    })
    .await;
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "1");
}

#[tokio::test]
async fn an_app_that_is_found_unhealthy_gets_its_next_requests_on_fresh_connections() {
    let (address, _) = serve_http2(|_| false).await;
    let app = Upstream::new(options(&address).idle_timeout(PATIENCE)).unwrap();
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "0");
    app.suspend();
    app.resume();
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "1");
}

#[tokio::test]
async fn an_app_that_moved_is_asked_where_it_is_now() {
    let (first, second) = (serve(mirror()).await, serve(mirror()).await);
    let port = |address: &str| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let options = options(&format!("http://{first}")).host_header(HostHeader::Upstream);
    let app = Upstream::new(options).unwrap();
    assert!(text(ask(&app, to(Method::GET, "/", "")).await).await.contains(&first));
    app.move_to(port(&second));
    assert_eq!(app.address().to_string(), format!("http://{second}"));
    assert!(text(ask(&app, to(Method::GET, "/", "")).await).await.contains(&second));
    assert!(app.is_taken().await);
    app.move_to(free_port());
    assert!(!app.is_taken().await);
}

#[tokio::test]
async fn an_app_whose_tls_has_http_2_alone_is_seen_to_take_connections() {
    let directory = tempfile::tempdir().unwrap();
    let (address, ca) = serve_tls(directory.path(), &[b"h2"]).await;
    let app = Upstream::new(options(&address).certificate_authorities(ca)).unwrap();
    app.connects().await.unwrap();
}

#[tokio::test]
async fn who_speaks_http_1_by_tls_is_dialled_by_several_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let taken = Arc::<Notify>::default();
    let silent = Some((1, Arc::clone(&taken)));
    let (address, ca) = serve_tls_but(directory.path(), &[b"http/1.1"], silent).await;
    let options = options(&address).certificate_authorities(ca).connect_timeout(2 * PATIENCE);
    // No connection waits, so that each request makes one.
    let app = Upstream::new(options.idle_timeout(Duration::ZERO)).unwrap();
    assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "HTTP/1.1");
    let held = tokio::spawn({
        let app = app.clone();
        async move { ask(&app, to(Method::GET, "/", "")).await }
    });
    tokio::time::timeout(PATIENCE, taken.notified()).await.expect("it makes a connection");
    for _ in 0..3 {
        assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, "HTTP/1.1");
    }
    assert!(!held.is_finished());
    held.abort();
}

/// A server with a certificate of its own, and the file of that.
async fn serve_tls(directory: &Path, protocols: &[&[u8]]) -> (String, std::path::PathBuf) {
    serve_tls_but(directory, protocols, None).await
}

/// The same, which takes the connection of this number, tells of it, and says nothing there.
async fn serve_tls_but(
    directory: &Path,
    protocols: &[&[u8]],
    silent: Option<(usize, Arc<Notify>)>,
) -> (String, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = directory.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        for number in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            if let Some((_, taken)) = silent.as_ref().filter(|(silent, _)| *silent == number) {
                held.push(socket);
                taken.notify_one();
                continue;
            }
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(version))))
                });
                let io = TokioIo::new(stream);
                let served = match is_http2 {
                    true => {
                        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        http2.serve_connection(io, answer).await
                    }
                    false => {
                        let http1 = hyper::server::conn::http1::Builder::new();
                        http1.serve_connection(io, answer).await
                    }
                };
                served.ok();
            });
        }
    });
    (format!("https://localhost:{port}"), file)
}

#[tokio::test]
async fn tls_is_spoken_in_the_version_that_is_agreed_on() {
    let directory = tempfile::tempdir().unwrap();
    for (protocols, version) in [
        (&[&b"h2"[..], b"http/1.1"][..], "HTTP/2.0"),
        (&[b"http/1.1"], "HTTP/1.1"),
        (&[], "HTTP/1.1"),
    ] {
        let (address, ca) = serve_tls(directory.path(), protocols).await;
        let app = Upstream::new(options(&address).certificate_authorities(ca)).unwrap();
        for _ in 0..2 {
            assert_eq!(text(ask(&app, to(Method::GET, "/", "")).await).await, version);
        }
        assert_eq!((app.stats().connections, app.stats().connections_reused), (1, 1));
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let (address, _) = serve_tls(directory.path(), &[]).await;
    let (_, other) = serve_tls(directory.path(), &[]).await;
    let app = Upstream::new(options(&address).certificate_authorities(other)).unwrap();
    let refused = problem(ask(&app, to(Method::GET, "/", "")).await).await;
    assert_eq!(refused, (StatusCode::BAD_GATEWAY, "upstream_down".to_owned()));
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let error = Upstream::new(options(&address).certificate_authorities(empty)).unwrap_err();
    assert!(error.to_string().contains("it holds no certificate"), "{error}");
}

#[tokio::test]
async fn connections_serve_one_request_after_the_other_and_no_longer_than_their_time() {
    let address = serve(mirror()).await;
    let idle = Duration::from_millis(300);
    let app = Upstream::new(options(&format!("http://{address}")).idle_timeout(idle)).unwrap();
    for _ in 0..5 {
        text(ask(&app, to(Method::GET, "/", "")).await).await;
        // It is free as soon as its task has run.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((app.stats().connections, app.stats().connections_reused), (1, 4));
    tokio::time::sleep(2 * idle).await;
    text(ask(&app, to(Method::GET, "/", "")).await).await;
    assert_eq!(app.stats().connections, 2);
}

/// Answers the first request of each connection, and closes at the second without a word, as an app
/// does whose own time-out has come just then.
async fn closes_at_the_second() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                for is_first in [true, false] {
                    if read_head(&mut socket).await.is_none() {
                        return;
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    if is_first {
                        socket.write_all(OK).await.unwrap();
                    }
                }
            });
        }
    });
    (format!("http://{address}"), seen)
}

#[tokio::test]
async fn what_met_a_close_is_sent_once_more_if_it_may_run_twice() {
    let (address, seen) = closes_at_the_second().await;
    let app = upstream(&address);
    for (method, body) in [(Method::GET, ""), (Method::PUT, "four"), (Method::DELETE, "")] {
        let before = (seen.load(Ordering::SeqCst), app.stats().sent_again);
        for _ in 0..2 {
            let answer = ask(&app, to(method.clone(), "/", body)).await;
            assert_eq!(text(answer).await, "ok", "{method}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let again = app.stats().sent_again - before.1;
        assert!(again >= 1, "{method}: no request met the close");
        assert_eq!(seen.load(Ordering::SeqCst) - before.0, 2 + again as usize, "{method}");
    }
}

#[tokio::test]
async fn a_post_is_not_sent_twice() {
    let (address, seen) = closes_at_the_second().await;
    let app = upstream(&address);
    assert_eq!(text(ask(&app, to(Method::POST, "/", "one")).await).await, "ok");
    tokio::time::sleep(Duration::from_millis(10)).await;
    let broken = problem(ask(&app, to(Method::POST, "/", "two")).await).await;
    assert_eq!(broken, (StatusCode::BAD_GATEWAY, "upstream_broken".to_owned()));
    assert_eq!((seen.load(Ordering::SeqCst), app.stats().sent_again), (2, 0));
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_waited_costs_nobody_anything() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            if read_head(&mut socket).await.is_some() {
                socket.write_all(OK).await.unwrap();
            }
        }
    });
    for _ in 0..5 {
        assert_eq!(text(ask(&app, to(Method::POST, "/", "body")).await).await, "ok");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((app.stats().connections, app.stats().broken), (5, 0));
}

#[tokio::test]
async fn an_app_that_is_down_late_or_broken_is_told_apart() {
    let refused = format!("http://127.0.0.1:{}", natsway_testkit::free_port());
    let app = upstream(&refused);
    let down = problem(ask(&app, to(Method::POST, "/", "")).await).await;
    assert_eq!(down, (StatusCode::BAD_GATEWAY, "upstream_down".to_owned()));
    assert_eq!(app.stats().down, 1);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let app = options(&address).response_timeout(Duration::from_millis(100));
    let app = Upstream::new(app).unwrap();
    let late = problem(ask(&app, to(Method::GET, "/", "")).await).await;
    assert_eq!(late, (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout".to_owned()));
    assert_eq!(app.stats().timed_out, 1);

    for answer in [&b""[..], b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nconte"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = upstream(&format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(answer).await.unwrap();
        });
        let broken = problem(ask(&app, to(Method::GET, "/", "")).await).await;
        assert_eq!(broken, (StatusCode::BAD_GATEWAY, "upstream_broken".to_owned()));
        assert_eq!(app.stats().broken, 1);
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await.unwrap();
    });
    let response = ask(&app, to(Method::GET, "/", "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(app.stats().broken_bodies, 1);
}

#[tokio::test]
async fn an_app_that_is_suspended_is_not_asked_and_gives_back_what_may_run_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    let (taken, mut is_taken) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut sockets = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_head(&mut socket).await;
            taken.send(()).unwrap();
            sockets.push(socket);
        }
    });
    let held = |method| {
        let app = app.clone();
        tokio::spawn(async move { problem(ask(&app, to(method, "/", "")).await).await })
    };
    let (get, post) = (held(Method::GET), held(Method::POST));
    for _ in 0..2 {
        is_taken.recv().await.unwrap();
    }
    app.suspend();
    assert_eq!(get.await.unwrap(), (StatusCode::BAD_GATEWAY, "upstream_broken".to_owned()));
    let refused = problem(ask(&app, to(Method::POST, "/", "")).await).await;
    assert_eq!(refused, (StatusCode::BAD_GATEWAY, "upstream_down".to_owned()));
    assert!(!post.is_finished(), "it may have run, and goes on");
    post.abort();
    app.resume();
    let asked = held(Method::GET);
    is_taken.recv().await.unwrap();
    asked.abort();
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    let asked = tokio::spawn(async move { ask(&app, to(Method::GET, "/", "")).await });
    let (mut socket, _) = listener.accept().await.unwrap();
    read_head(&mut socket).await.unwrap();
    asked.abort();
    let closed = tokio::time::timeout(PATIENCE, socket.read(&mut [0; 1])).await;
    assert!(matches!(closed.expect("the app is told"), Ok(0) | Err(_)));
}

/// A request whose body comes by a stream.
fn streamed() -> Request<Body> {
    let pieces = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"abc")))];
    let body = Body::wrap(StreamBody::new(futures_util::stream::iter(pieces)));
    Request::post("/").header("host", "shop.example").body(body).unwrap()
}

#[tokio::test]
async fn what_no_other_instance_can_have_waits_for_an_app_that_is_started_again() {
    let address = format!("127.0.0.1:{}", free_port());
    let options = options(&format!("http://{address}")).connect_timeout(PATIENCE);
    let upstream = Upstream::new(options).unwrap();
    upstream.suspend();
    let waits = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, streamed()).await }
    });
    let (status, code) = problem(ask(&upstream, to(Method::GET, "/", "")).await).await;
    assert_eq!((status.as_u16(), code.as_str()), (502, "upstream_down"), "it may go elsewhere");
    assert!(!waits.is_finished());
    let listener = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, mirror()).await });
    upstream.resume();
    assert_eq!(waits.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_app_that_does_not_come_back_is_waited_for_no_longer_than_connecting_may_take() {
    let options = options(&format!("http://127.0.0.1:{}", free_port()));
    let upstream = Upstream::new(options.connect_timeout(Duration::from_millis(200))).unwrap();
    let (status, code) = problem(ask(&upstream, streamed()).await).await;
    assert_eq!((status.as_u16(), code.as_str()), (502, "upstream_down"));
}
