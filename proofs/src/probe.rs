//! One plain request over a connection of its own, to see what something answers.

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Gives the status and body of `GET http://127.0.0.1:<port><path>`.
///
/// # Errors
/// Nobody answers, or not in HTTP.
pub async fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let (status, body) = exchange(port, Request::get(path).body(Full::default())?).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A figure of a `/metrics` page, by its name and labels as they stand there; 0 when it is not.
///
/// # Errors
/// Nobody answers at the port.
pub async fn metric(admin_port: u16, sample: &str) -> anyhow::Result<f64> {
    let (_, page) = get(admin_port, "/metrics").await?;
    let value =
        page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    Ok(value.unwrap_or(0.0))
}

/// Gives the status and body of any request to a port of 127.0.0.1.
///
/// # Errors
/// As for [`get`].
pub async fn exchange(
    port: u16,
    mut request: Request<Full<Bytes>>,
) -> anyhow::Result<(u16, Bytes)> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
