//! HTTP/1 by its bytes: each line of `http1_cases.jsonl` is what a client sends, what it must get,
//! and by which RFC.
//!
//! A case has
//! - `rfc`: the section that rules it, `name`, and `send`: each character is the byte of its
//!   number, and an ellipsis stands for `fill` times the letter x;
//! - `expect`: the answers in their order, each a status and what it carries: the code of a
//!   problem, or the worker's word. That is method, path and query, bytes of the body, and the
//!   fields that `x-show` asks for, `-` for none;
//! - `end`: `close` if the gateway closes behind them, otherwise the same connection must serve one
//!   more request;
//! - `shut`: the client ends its side once it has sent.
//!
//! `nginx` there is what nginx answers where that differs: `prove http` asks it.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use natsway_testkit::TestBroker;
use natsway_wire::envelope::Request;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::backend::{Backend, response};
use crate::client::{Client, Reply};
use crate::fixture::Gateway;

const CASES: &str = include_str!("http1_cases.jsonl");

/// Bounds that short cases can reach.
const LIMITS: [&str; 10] = [
    "--tunnel-listen",
    "off",
    "--max-path-bytes",
    "256",
    "--max-header-bytes",
    "2048",
    "--max-header-fields",
    "50",
    "--body-timeout",
    "700ms",
];

const ROUTES: &str = r#"
    [defaults]
    max_body_bytes = 1000
    [[route]]
    name = "test"
    path = "/{*rest}"
    target = [{ version = "blue", subject = "svc.test.blue" }]
    [[route]]
    name = "read"
    path = "/read"
    methods = ["GET"]
    target = [{ version = "blue", subject = "svc.test.blue" }]
"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    rfc: String,
    name: String,
    send: String,
    expect: Vec<String>,
    #[serde(default)]
    end: End,
    #[serde(default)]
    shut: bool,
    #[serde(default)]
    fill: usize,
    /// What nginx answers, for whoever compares.
    #[serde(default, rename = "nginx")]
    _nginx: Option<Vec<u16>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum End {
    #[default]
    Keep,
    Close,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let byte = |letter: char| u8::try_from(u32::from(letter)).expect("a case is made of bytes");
        self.send.replace('\u{2026}', &"x".repeat(self.fill)).chars().map(byte).collect()
    }
}

fn cases() -> Vec<Case> {
    let case =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    CASES.lines().map(case).collect()
}

/// The worker's word of a request.
fn word(request: &Request) -> String {
    let mut word = format!("{} {} {}", request.method, request.path_and_query, request.body.len());
    let shown = request.headers.get("x-show").map_or("", |shown| shown.to_str().unwrap());
    for name in shown.split_whitespace() {
        word += &format!(" {name}={}", all(&request.headers, name));
    }
    word
}

/// It goes in a field as well, since an answer to HEAD has no body.
fn answer(request: &Request) -> Bytes {
    let word = word(request);
    response(200, &[("x-word", &word)], &word)
}

fn all(headers: &HeaderMap, name: &str) -> String {
    let values =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let values = values.collect::<Vec<_>>().join("|");
    if values.is_empty() { "-".to_owned() } else { values }
}

fn shown(reply: &Reply) -> String {
    let carried = match (reply.header("x-word"), reply.header("content-type")) {
        (Some(word), _) => {
            assert!(reply.body.is_empty() || reply.text() == word, "{reply:?}");
            word.to_owned()
        }
        (None, Some("application/problem+json")) if !reply.body.is_empty() => reply.problem(),
        (None, _) => String::new(),
    };
    format!("{} {carried}", reply.status).trim_end().to_owned()
}

/// What a case gets, and how it ends.
async fn play(gateway: &Gateway, case: &Case, in_two: bool) -> (Vec<String>, End) {
    let mut client = gateway.client().await;
    let bytes = case.bytes();
    // Refused before all is sent, it may be cut off.
    if in_two {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        client.stream.write_all(first).await.ok();
        tokio::time::sleep(Duration::from_millis(2)).await;
        client.stream.write_all(second).await.ok();
    } else {
        client.stream.write_all(&bytes).await.ok();
    }
    if case.shut {
        client.stream.shutdown().await.ok();
    }
    let mut got = Vec::new();
    for _ in &case.expect {
        match client.reply(case.send.contains("HEAD")).await {
            Ok(reply) => got.push(shown(&reply)),
            Err(error) => {
                got.push(format!("{:?}", error.kind()));
                return (got, End::Close);
            }
        }
    }
    let end = match case.end {
        End::Close => is_closed(&mut client).await,
        End::Keep => is_kept(&mut client).await,
    };
    (got, end)
}

async fn is_closed(client: &mut Client) -> End {
    // An answer that nobody expects keeps it open, and so does silence.
    match timeout(Duration::from_secs(5), client.reply(false)).await {
        Ok(Err(_)) => End::Close,
        Ok(Ok(_)) | Err(_) => End::Keep,
    }
}

async fn is_kept(client: &mut Client) -> End {
    match client.get("/alive").await {
        Ok(reply) if shown(&reply) == "200 GET /alive 0" => End::Keep,
        _ => End::Close,
    }
}

#[tokio::test]
async fn every_case_of_http1_is_answered_as_its_rfc_has_it() {
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, request| vec![answer(request)]).await;
    let gateway = Gateway::start(&broker, ROUTES, &LIMITS).await;
    let mut wrong = Vec::new();
    for case in &cases {
        for in_two in [false, true] {
            let before = backend.seen.count();
            let (got, end) = play(&gateway, case, in_two).await;
            // Nothing reaches a worker that is not answered: what is smuggled would.
            let answers = got.iter().filter(|got| got.starts_with("200 ")).count();
            let alive = case.end == End::Keep && end == End::Keep;
            let reached = backend.seen.count() - before - usize::from(alive);
            if got != case.expect || end != case.end || reached != answers {
                let pieces = if in_two { ", in two pieces" } else { "" };
                wrong.push(format!(
                    "{} ({}){pieces}: {got:?} then {end:?}, {reached} at the worker; expected {:?} \
                     then {:?}",
                    case.name, case.rfc, case.expect, case.end
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
