//! One request, and whether it is answered byte for byte.

use anyhow::ensure;
use http::Request;
use http_body_util::Full;
use natsway_proofs::probe::exchange;

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
    pub fn new(port: u16, load: &Load) -> Self {
        Self {
            port,
            path: load.path.clone(),
            post: load.body(),
            answer: load.expected_body().unwrap_or_default(),
        }
    }

    /// The greeting.
    pub fn greeting(port: u16) -> Self {
        let (path, answer) = ("/".to_owned(), crate::service::GREETING.to_owned());
        Self { port, path, post: None, answer }
    }
}

/// Asks over a connection of its own.
///
/// # Errors
/// Nobody answers, or something else comes back.
pub async fn ask(question: &Question) -> anyhow::Result<()> {
    let request = match &question.post {
        None => Request::get(&question.path).body(Full::default())?,
        Some(body) => Request::post(&question.path)
            .header("content-type", "application/json")
            .body(Full::from(body.clone()))?,
    };
    let (status, body) = exchange(question.port, request).await?;
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
    let (status, _) = exchange(port, Request::put(path).body(Full::from(json.to_owned()))?).await?;
    ensure!(status == 200, "{path} is answered {status}");
    Ok(())
}
