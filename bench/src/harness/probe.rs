//! One request, and whether it is answered byte for byte.

use anyhow::ensure;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::scenario::Load;

/// What is asked, and what must come back.
#[derive(Clone, Debug)]
pub struct Question {
    /// A port on 127.0.0.1.
    pub port: u16,
    path: String,
    post: Option<String>,
    answer: String,
}

impl Question {
    /// What a load asks of a port.
    pub fn new(port: u16, load: &Load) -> Question {
        Question {
            port,
            path: load.path.clone(),
            post: load.body(),
            answer: load.expected_body().unwrap_or_default(),
        }
    }

    /// The greeting.
    pub fn greeting(port: u16) -> Question {
        let (path, answer) = ("/".to_owned(), crate::service::GREETING.to_owned());
        Question { port, path, post: None, answer }
    }
}

/// Asks over a connection of its own.
///
/// # Errors
/// Nobody answers, or something else comes back.
pub async fn ask(question: &Question) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", question.port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = match &question.post {
        None => http::Request::get(&question.path).body(Full::<Bytes>::default()),
        Some(body) => {
            let request = http::Request::post(&question.path).header("content-type", "application/json");
            request.body(Full::from(body.clone()))
        }
    };
    let mut request = request?;
    request.headers_mut().insert("host", http::HeaderValue::from_static("localhost"));
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    let right = status == 200 && body == question.answer.as_bytes();
    let beginning = String::from_utf8_lossy(&body[..body.len().min(200)]);
    ensure!(right, "{} is answered {status} {beginning:?}, of {} bytes", question.path, body.len());
    Ok(())
}

/// Sends JSON to an address that answers 200.
///
/// # Errors
/// Nobody answers, or another status comes back.
pub async fn put(port: u16, path: &str, json: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        http::Request::put(path).header("host", "localhost").body(Full::<Bytes>::from(json.to_owned()))?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "{path} is answered {}", response.status());
    Ok(())
}
