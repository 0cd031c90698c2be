//! The service without anything before it: what all else is compared with.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::any;

/// What the demonstration worker answers at `/`, byte for byte.
pub const GREETING: &str = r#"{"service":"demo","message":"it works"}"#;

/// Serves [`GREETING`] at `/` until killed.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let greet = async || ([(CONTENT_TYPE, "application/json")], GREETING);
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    axum::serve(listener, Router::new().route("/", any(greet))).await?;
    Ok(())
}
