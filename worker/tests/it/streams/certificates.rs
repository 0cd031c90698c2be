//! What tunnels are secured by: a certificate of the operator's, or nothing where that was said.

use axum::Router;
use axum::routing::get;

use super::Stage;
use super::client::get as ask;

/// More than goes in a message.
const BYTES: usize = 300_000;

fn router() -> Router {
    Router::new().route("/large", get(async || vec![b'x'; BYTES]))
}

async fn downloads(arguments: &[&str]) {
    let stage = Stage::with(arguments, |options| options, router()).await;
    let (status, body) = ask(stage.port, "/large").await.unwrap();
    assert_eq!((status, body.len()), (200, BYTES), "{arguments:?}");
    assert_eq!(stage.metric("natsway_tunnels_opened_total").await, Ok(1));
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_certificate_is_trusted_by_its_hash_whoever_signed_it() {
    let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    downloads(&["--shards", "1", "--tunnel-cert", certificate, "--tunnel-key", key]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_on_one_machine_may_go_in_the_clear() {
    downloads(&["--shards", "1", "--tunnel-cleartext"]).await;
}
