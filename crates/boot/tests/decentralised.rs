//! A credentials file of a decentralised account: operator, account and user are JWTs, as `nsc`
//! writes them.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use natsway_boot::{
    BrokerConfig, Credentials, Dial, DialError, DialErrorKind, Dialer, Session, Tls,
};
use natsway_testkit::{TestBroker as Server, eventually};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// A JWT about `subject`, signed by `issuer` (version 2 of NATS's claims).
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, mut nats: Value) -> String {
    nats["version"] = json!(2);
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": nats,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("the key has its seed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A broker with one account, and the key of that account.
async fn serve() -> (Server, KeyPair) {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let operators = jwt(&operator, &operator, "operator", json!({ "type": "operator" }));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1,
    });
    let accounts =
        jwt(&operator, &account, "natsway", json!({ "type": "account", "limits": limits }));
    let lines = format!(
        "operator: {operators}\nresolver: MEMORY\nresolver_preload: {{ {}: {accounts} }}",
        account.public_key()
    );
    (Server::builder().config_lines(&lines).start().await, account)
}

/// A credentials file of a user that may do nothing but have inboxes of its own.
fn credentials(account: &KeyPair) -> tempfile::NamedTempFile {
    let user = KeyPair::new_user();
    let nats = json!({
        "type": "user", "subs": -1, "data": -1, "payload": -1,
        "pub": { "allow": ["_INBOX_test.>"] }, "sub": { "allow": ["_INBOX_test.>"] },
    });
    let token = jwt(account, &user, "gateway", nats);
    let seed = user.seed().expect("it has its seed");
    let file = tempfile::NamedTempFile::new().expect("a file is made");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    fs::write(&file, text).expect("it is written");
    file
}

async fn dial(server: &Server, file: &tempfile::NamedTempFile) -> Result<Session, DialError> {
    let broker = BrokerConfig::with(
        &server.url(),
        Credentials::File(file.path().to_owned()),
        Tls::default(),
    );
    let dial = Dial {
        name: "test".to_owned(),
        inbox_prefix: "_INBOX_test".to_owned(),
        subscription_messages: 16,
        publish_messages: 16,
    };
    Dialer::new(broker.expect("the file is sound"), dial).dial_once(None).await
}

#[tokio::test]
async fn a_user_of_the_account_is_let_in_with_what_its_jwt_permits() {
    let (server, account) = serve().await;
    let session = dial(&server, &credentials(&account)).await.unwrap();
    let mut own = session.client().subscribe(session.client().new_inbox()).await.unwrap();
    let inbox = session.client().new_inbox();
    let mut heard = session.client().subscribe(inbox.clone()).await.unwrap();
    session.client().publish(inbox, "!".into()).await.unwrap();
    let message = tokio::time::timeout(
        std::time::Duration::from_secs(20),
        futures_util::StreamExt::next(&mut heard),
    );
    assert_eq!(&message.await.unwrap().unwrap().payload[..], b"!");
    own.unsubscribe().await.unwrap();

    session.client().publish("svc.demo.blue", "?".into()).await.unwrap();
    session.client().flush().await.unwrap();
    let objected = async || match server.log().contains("Publish Violation") {
        true => Ok(()),
        false => Err("the broker does not object"),
    };
    eventually(std::time::Duration::from_secs(20), objected).await;
}

#[tokio::test]
async fn a_user_of_another_account_is_refused_by_the_name_of_its_file() {
    let (server, _) = serve().await;
    let file = credentials(&KeyPair::new_account());
    let error = dial(&server, &file).await.expect_err("the broker knows no such account");
    assert_eq!(error.kind(), DialErrorKind::Refused);
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
}
