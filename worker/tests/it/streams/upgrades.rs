//! Connections that a request becomes: WebSockets, and other protocols, by either version of HTTP.

use axum::Router;
use axum::extract::Request;
use axum::extract::ws::{Message as ServerMessage, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::client::{Client, VERSIONS, Version, read, whole};
use super::{DEADLINE, Stage};

fn router() -> Router {
    let chat = async |upgrade: WebSocketUpgrade| {
        upgrade.protocols(["chat"]).max_message_size(4 << 20).on_upgrade(echo)
    };
    let refuse = async || (StatusCode::FORBIDDEN, [("x-why", "rules")], "not for you");
    Router::new()
        .route("/chat", get(chat))
        .route("/refuse", get(refuse))
        .route("/page", get(async || "a page"))
        .route("/shout", get(shout))
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, ServerMessage::Text(_) | ServerMessage::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// A protocol of its own: what comes goes back in capitals, until its end.
async fn shout(mut request: Request) -> Response {
    let connection = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut connection = TokioIo::new(connection.await.unwrap());
        let mut piece = [0; 1_024];
        while let Ok(count @ 1..) = connection.read(&mut piece).await {
            let loud = piece[..count].to_ascii_uppercase();
            connection.write_all(&loud).await.unwrap();
        }
        connection.write_all(b" END").await.unwrap();
        connection.shutdown().await.unwrap();
    });
    let fields = [("connection", "upgrade"), ("upgrade", "shout")];
    (StatusCode::SWITCHING_PROTOCOLS, fields).into_response()
}

/// Asks that a request become a connection.
async fn ask(
    client: &mut Client,
    version: Version,
    protocol: &'static str,
    path: &str,
) -> http::Response<Incoming> {
    let mut request = http::Request::get(path).body(whole("")).unwrap();
    let headers = request.headers_mut();
    if protocol == "websocket" {
        headers.insert("sec-websocket-version", "13".parse().unwrap());
        headers.insert("sec-websocket-protocol", "other, chat".parse().unwrap());
    }
    match version {
        Version::Http1 => {
            headers.insert("connection", "Upgrade".parse().unwrap());
            headers.insert("upgrade", protocol.parse().unwrap());
            headers.insert("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        }
        Version::Http2 => {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
    }
    client.send(request).await.unwrap()
}

/// A client that has seen the gateway's settings, and so may ask for connections.
async fn connect(stage: &Stage, version: Version) -> Client {
    let mut client = Client::connect(stage.port, version).await;
    let request = http::Request::get("/page").body(whole("")).unwrap();
    let page = read(client.send(request).await.unwrap()).await;
    assert_eq!(page.text(), "a page");
    client
}

fn accepted(version: Version) -> StatusCode {
    match version {
        Version::Http1 => StatusCode::SWITCHING_PROTOCOLS,
        Version::Http2 => StatusCode::OK,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_opens_over_either_version_of_http() {
    let stage = Stage::new(router()).await;
    for version in VERSIONS {
        let mut client = connect(&stage, version).await;
        let response = ask(&mut client, version, "websocket", "/chat").await;
        assert_eq!(response.status(), accepted(version));
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        let accept = response.headers().get("sec-websocket-accept");
        let expected = (version == Version::Http1).then_some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept.map(|accept| accept.to_str().unwrap()), expected);
        let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        for bytes in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            let message = Message::binary(vec![b'm'; bytes]);
            socket.send(message.clone()).await.unwrap();
            let answer = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
            assert_eq!(answer.unwrap().unwrap(), message, "{version:?}, {bytes} bytes");
        }
        socket.close(None).await.unwrap();
        let closed = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
        let is_answered = match &closed {
            Some(Ok(Message::Close(frame))) => {
                frame.as_ref().is_none_or(|frame| frame.code == CloseCode::Normal)
            }
            _ => false,
        };
        assert!(is_answered, "{version:?}: {closed:?}");
    }
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_the_client_as_it_is() {
    let stage = Stage::new(router()).await;
    for version in VERSIONS {
        let mut client = connect(&stage, version).await;
        let refused = read(ask(&mut client, version, "websocket", "/refuse").await).await;
        assert_eq!((refused.status.as_u16(), refused.text()), (403, "not for you"), "{version:?}");
        assert_eq!(refused.headers["x-why"], "rules");
        let missing = read(ask(&mut client, version, "websocket", "/missing").await).await;
        assert_eq!(missing.status, 404, "{version:?}");
        let again = http::Request::get("/page").body(whole("")).unwrap();
        let again = read(client.send(again).await.unwrap()).await;
        assert_eq!(again.text(), "a page", "{version:?}: the connection goes on");
    }
    stage.all_let_go().await;
}

/// In HTTP/1.1 a service may pass an upgrade over. In HTTP/2 a status of success would be one of
/// the upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_instead_of_an_upgrade_is_not_taken_for_one() {
    let stage = Stage::new(router()).await;
    let mut client = connect(&stage, Version::Http1).await;
    let page = read(ask(&mut client, Version::Http1, "websocket", "/page").await).await;
    assert_eq!((page.status.as_u16(), page.text()), (200, "a page"));
    let mut client = connect(&stage, Version::Http2).await;
    let page = read(ask(&mut client, Version::Http2, "websocket", "/page").await).await;
    assert_eq!((page.status.as_u16(), page.code().as_str()), (502, "not_upgraded"), "{page:?}");
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_passes_and_is_closed_in_one_direction_at_a_time() {
    let stage = Stage::new(router()).await;
    for version in VERSIONS {
        let mut client = connect(&stage, version).await;
        let response = ask(&mut client, version, "shout", "/shout").await;
        assert_eq!(response.status(), accepted(version));
        if version == Version::Http1 {
            assert_eq!(response.headers()["upgrade"], "shout");
        }
        let mut connection = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        connection.write_all(b"hello").await.unwrap();
        let mut loud = [0; 5];
        tokio::time::timeout(DEADLINE, connection.read_exact(&mut loud)).await.unwrap().unwrap();
        assert_eq!(&loud, b"HELLO", "{version:?}");
        connection.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(DEADLINE, connection.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), " END", "{version:?}");
    }
    stage.all_let_go().await;
}
