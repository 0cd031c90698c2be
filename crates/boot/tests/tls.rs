//! TLS and credentials between us and a real broker, and what is said when they do not fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natsway_boot::{BrokerConfig, Credentials, Dial, DialError, DialErrorKind, Dialer, Tls};
use natsway_testkit::TestBroker as Server;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const PASSWORD: &str = "correct-horse";

/// An authority, what it signed, and where that is.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("a certificate is made");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a certificate is made");
        let certificate = params.self_signed(&key).expect("a certificate is made");
        let directory = tempfile::tempdir().expect("a certificate is made");
        fs::write(directory.path().join("ca.pem"), certificate.pem())
            .expect("a certificate is made");
        Self { directory, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The certificate for `name` and its key.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a certificate is made");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a certificate is made");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate is made");
        let path = |end: &str| self.directory.path().join(format!("{name}-{end}.pem"));
        let (certificate_path, key_path) = (path("certificate"), path("key"));
        fs::write(&certificate_path, certificate.pem()).expect("a certificate is made");
        fs::write(&key_path, key.serialize_pem()).expect("a certificate is made");
        (certificate_path, key_path)
    }

    /// The `tls` block of a server with a certificate for `name`, with `more` in it.
    fn tls(&self, name: &str, more: &str) -> String {
        let (certificate, key) = self.sign(name);
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        format!(
            "tls {{ cert_file: {}, key_file: {}, ca_file: {}, {more} }}",
            quoted(&certificate),
            quoted(&key),
            quoted(&self.ca())
        )
    }

    /// A server with a certificate for `name`; `more` stands in its `tls` block.
    async fn serve(&self, name: &str, more: &str) -> Server {
        // The testkit looks for a greeting in the clear, which a server with handshake_first gives
        // after a moment.
        Server::builder().config_lines(&self.tls(name, more)).start().await
    }
}

async fn dial(url: &str, credentials: Credentials, tls: Tls) -> Result<(), DialError> {
    let dial = Dial {
        name: "test".to_owned(),
        inbox_prefix: "_INBOX_test".to_owned(),
        subscription_messages: 16,
        publish_messages: 16,
    };
    let broker = BrokerConfig::with(url, credentials, tls).expect("a certificate is made");
    Dialer::new(broker, dial).dial_once(None).await.map(drop)
}

async fn refused(url: &str, credentials: Credentials, tls: Tls) -> (DialErrorKind, String) {
    let error = dial(url, credentials, tls).await.expect_err("the connection is refused");
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    (error.kind(), error.to_string())
}

fn trust(authority: &Authority) -> Tls {
    Tls { ca: Some(authority.ca()), ..Tls::default() }
}

#[tokio::test]
async fn a_server_is_believed_by_its_own_authority_and_by_no_other() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.serve("127.0.0.1", "").await;
    let tls_url = server.url().replace("nats://", "tls://");
    for url in [server.url(), tls_url.clone()] {
        dial(&url, Credentials::None, trust(&authority)).await.unwrap();
        let (kind, told) = refused(&url, Credentials::None, trust(&stranger)).await;
        assert_eq!(kind, DialErrorKind::Untrusted);
        assert!(told.contains("give the authority's certificate by NATS_CA"), "{told}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let server = authority.serve("broker.example", "").await;
    let (kind, told) = refused(&server.url(), Credentials::None, trust(&authority)).await;
    assert_eq!(kind, DialErrorKind::Untrusted);
    assert!(told.contains("not for the name in NATS_URL"), "{told}");
}

#[tokio::test]
async fn a_server_in_the_clear_is_not_spoken_to_where_tls_was_asked_for() {
    let authority = Authority::new();
    let server = Server::start().await;
    let (kind, told) = refused(&server.url(), Credentials::None, trust(&authority)).await;
    assert_eq!(kind, DialErrorKind::Untrusted);
    assert!(told.contains("speaks no TLS"), "{told}");
}

#[tokio::test]
async fn mutual_tls_wants_a_certificate_that_the_server_knows() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.serve("127.0.0.1", "verify: true").await;
    let with = |identity| Tls { ca: Some(authority.ca()), identity, first: false };
    dial(&server.url(), Credentials::None, with(Some(authority.sign("gateway")))).await.unwrap();
    for (identity, words) in [
        (None, "give NATS_CERTIFICATE and NATS_KEY"),
        (Some(stranger.sign("x")), "refuses our certificate"),
    ] {
        let (kind, told) = refused(&server.url(), Credentials::None, with(identity)).await;
        assert_eq!(kind, DialErrorKind::Untrusted, "{told}");
        assert!(told.contains(words), "{told}");
    }
}

#[tokio::test]
async fn tls_can_come_before_the_servers_greeting() {
    let authority = Authority::new();
    let server = authority.serve("127.0.0.1", "handshake_first: \"500ms\"").await;
    let first = Tls { first: true, ..trust(&authority) };
    dial(&server.url(), Credentials::None, first.clone()).await.unwrap();
    let plain = Server::start().await;
    let (kind, told) = refused(&plain.url(), Credentials::None, first).await;
    assert_eq!(kind, DialErrorKind::Untrusted);
    assert!(told.contains("NATS_TLS_FIRST"), "{told}");
}

/// A broker that waits for TLS from us closes the connection after two seconds, without a word.
#[tokio::test]
async fn a_server_that_waits_for_tls_is_told_from_one_that_is_not_there() {
    let authority = Authority::new();
    let mut server = authority.serve("127.0.0.1", "handshake_first: false").await;
    dial(&server.url(), Credentials::None, trust(&authority)).await.unwrap();
    for (wait, words) in
        [("true", "closed it without a word"), ("\"9s\"", "did not answer in time")]
    {
        let tls = authority.tls("127.0.0.1", &format!("handshake_first: {wait}"));
        server.reload(&tls).await;
        let (kind, told) = refused(&server.url(), Credentials::None, trust(&authority)).await;
        assert_eq!(kind, DialErrorKind::Unavailable);
        assert!(told.contains(words) && told.contains("NATS_TLS_FIRST=true"), "{told}");
        let first = Tls { first: true, ..trust(&authority) };
        dial(&server.url(), Credentials::None, first).await.unwrap();
    }
    server.stop().await;
    let (_, told) = refused(&server.url(), Credentials::None, trust(&authority)).await;
    assert!(told.contains("is not reachable") && !told.contains("NATS_TLS_FIRST"), "{told}");
}

#[test]
fn a_key_of_another_certificate_is_refused_before_anything_is_dialled() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("gateway");
    let (_, other_key) = authority.sign("worker");
    let with = |key: &Path| {
        let identity = Some((certificate.clone(), key.to_owned()));
        BrokerConfig::with("127.0.0.1", Credentials::None, Tls { identity, ..Tls::default() })
    };
    with(&key).unwrap();
    let error = with(&other_key).unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().contains("worker-key.pem"), "{error}");
    assert!(
        reason.contains("another certificate") && reason.contains("gateway-certificate.pem"),
        "{reason}"
    );
}

#[tokio::test]
async fn credentials_that_do_not_fit_are_told_without_secrets() {
    let lines = format!("authorization {{ users: [{{ user: me, password: \"{PASSWORD}\" }}] }}");
    let server = Server::builder().config_lines(&lines).start().await;
    let user = |password: &str| Credentials::UserPassword("me".to_owned(), password.to_owned());
    dial(&server.url(), user(PASSWORD), Tls::default()).await.unwrap();
    let (kind, told) = refused(&server.url(), user("wrong"), Tls::default()).await;
    assert_eq!(kind, DialErrorKind::Refused);
    assert!(told.contains("user \"me\"") && !told.contains("wrong"), "{told}");
    let (kind, told) = refused(&server.url(), Credentials::None, Tls::default()).await;
    assert_eq!(kind, DialErrorKind::Refused);
    assert!(told.contains("asks who we are") && told.contains("NATS_CREDS"), "{told}");
}

#[tokio::test]
async fn tokens_and_nkeys_are_accepted() {
    let server = Server::builder()
        .config_lines(&format!("authorization {{ token: \"{PASSWORD}\" }}"))
        .start()
        .await;
    dial(&server.url(), Credentials::Token(PASSWORD.to_owned()), Tls::default()).await.unwrap();
    let pair = nkeys::KeyPair::new_user();
    let lines = format!("authorization {{ users: [{{ nkey: {} }}] }}", pair.public_key());
    let server = Server::builder().config_lines(&lines).start().await;
    dial(&server.url(), Credentials::NKey(pair.seed().unwrap()), Tls::default()).await.unwrap();
    let (kind, told) = refused(
        &server.url(),
        Credentials::NKey(nkeys::KeyPair::new_user().seed().unwrap()),
        Tls::default(),
    )
    .await;
    assert_eq!(kind, DialErrorKind::Refused);
    assert!(told.contains("refuses nkey U"), "{told}");
}

#[tokio::test]
async fn inboxes_are_where_the_user_may_have_them() {
    let lines = "authorization { users: [{ user: me, password: p, permissions: { \
                 publish: [\"a\", \"_INBOX_mine.>\"], subscribe: [\"_INBOX_mine.>\", \"a\"] } }] }";
    let server = Server::builder().config_lines(lines).start().await;
    let credentials = Credentials::UserPassword("me".to_owned(), "p".to_owned());
    let broker = BrokerConfig::with(&server.url(), credentials, Tls::default()).unwrap();
    let broker = broker.with_inbox_prefix("_INBOX_mine").unwrap();
    let client = broker.connect("test", "_INBOX_role").await.unwrap();
    let mut questions = client.subscribe("a").await.unwrap();
    client.flush().await.unwrap();
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.request("a", "?".into()).await }
    });
    let question = tokio::time::timeout(
        Duration::from_secs(20),
        futures_util::StreamExt::next(&mut questions),
    );
    let reply = question.await.unwrap().unwrap().reply.unwrap();
    assert!(reply.starts_with("_INBOX_mine."), "{reply}");
    client.publish(reply, "!".into()).await.unwrap();
    asked.await.unwrap().unwrap();
}
