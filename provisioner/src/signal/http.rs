//! One GET over a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long all of it may take.
const WITHIN: Duration = Duration::from_secs(2);

/// More than a broker with thousands of connections says.
const LONGEST_BYTES: usize = 32 << 20;

/// What `http://host:port/path` answers, as JSON.
///
/// # Errors
/// A sentence: not reachable, another status than 200, or no JSON.
pub(crate) async fn get_json<T: serde::de::DeserializeOwned>(uri: &Uri) -> Result<T, String> {
    match tokio::time::timeout(WITHIN, get(uri)).await {
        Ok(answer) => serde_json::from_slice(&answer?).map_err(|error| format!("{uri}: {error}")),
        Err(_) => Err(format!("{uri}: no answer within {WITHIN:?}")),
    }
}

async fn get(uri: &Uri) -> Result<Bytes, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{uri}: {error}");
    let host = uri.host().ok_or_else(|| failed(&"expected http://host:port"))?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| failed(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_BYTES).collect().await;
        let body = body.map_err(|error| failed(&error))?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(failed(&status)) }
    };
    tokio::pin!(connection);
    tokio::select! {
        answer = exchange => answer,
        // The answer comes first, unless there is none.
        ended = &mut connection => Err(failed(&ended.err().map_or("it hung up".to_owned(), |error| error.to_string()))),
    }
}
