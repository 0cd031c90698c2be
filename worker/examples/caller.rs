//! A worker that calls another one: `/total` asks the service behind the route `demo` for two sums
//! and adds them.
//!
//! With `make run` in another terminal, which has the route `demo` and workers behind it:
//!
//! ```sh
//! target/release/apiproxy routes put worker/examples/caller.json
//! cargo run --package natsway-worker --example caller
//! curl http://127.0.0.1:8080/total
//! ```

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::request::Parts;
use natsway_worker::{
    Body, BrokerConfig, CallError, Client, ClientOptions, Options, serve, shutdown_signal,
};

/// Both calls have the deadline, the trace and the request id of the request that is handled here,
/// and end with it.
async fn total(State(client): State<Client>, request: Parts) -> Response {
    let client = client.within(&request);
    match tokio::try_join!(sum(&client, "n=1&n=2"), sum(&client, "n=3&n=4")) {
        Ok((first, second)) => format!("{first} and {second}\n").into_response(),
        Err(error) => (error.status(), format!("{error}\n")).into_response(),
    }
}

async fn sum(client: &Client, query: &str) -> Result<String, CallError> {
    let uri = format!("http://demo/sum?{query}");
    let call = http::Request::get(uri).body(Body::default()).expect("a sound uri");
    let answer = client.send(call).await?;
    let body = answer.into_body().into_bytes().await?;
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let broker = BrokerConfig::from_env()?; // NATS_URL, NATS_CREDS, ...
    let client = Client::connect(ClientOptions::new("total").broker(broker.clone())).await?;
    let app = Router::new().route("/total", get(total)).with_state(client.clone());
    serve(Options::new("svc.total.blue").broker(broker), app, shutdown_signal()?).await?;
    // After the last handler: tells whoever drains what we called that nothing comes from here any
    // more.
    client.close().await;
    Ok(())
}
