//! An axum `Router` as a worker: no sidecar, no port, one line other than with `axum::serve`.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example axum`

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use natsway_worker::{BrokerConfig, Options, serve, shutdown_signal};

type Todos = Arc<Mutex<BTreeMap<u32, String>>>;

fn router() -> Router {
    Router::new()
        .route("/", get(list))
        .route("/{number}", get(read).put(write))
        .with_state(Todos::default())
}

async fn list(State(todos): State<Todos>) -> Json<BTreeMap<u32, String>> {
    Json(todos.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

async fn read(
    State(todos): State<Todos>,
    Path(number): Path<u32>,
) -> Result<Json<String>, StatusCode> {
    let todos = todos.lock().unwrap_or_else(PoisonError::into_inner);
    todos.get(&number).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn write(
    State(todos): State<Todos>,
    Path(number): Path<u32>,
    Json(text): Json<String>,
) -> StatusCode {
    todos.lock().unwrap_or_else(PoisonError::into_inner).insert(number, text);
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let options = Options::new("svc.todos.blue").broker(BrokerConfig::from_env()?);
    // Before: axum::serve(listener, router()).await?;
    serve(options, router(), shutdown_signal()?).await?;
    Ok(())
}
