//! The golden messages, and the values that they stand for.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary takes its part"
)]

use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{
    NotRun, Reference, Reply, Request, RequestEncoder, Response, Signal, encode_reference,
    encode_response, encode_signal, with_join, with_reply_subject,
};
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, Hello};
use natsway_wire::offer::{Join, Offer, StreamToken, TunnelSecret};
use natsway_wire::pipe::{PipeMessage, ResetReason, Status};

/// The bytes that text in hexadecimal stands for, less comments (`#` to the end of a line) and
/// white space.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter_map(|line| line.split('#').next()).collect();
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "a digit too few or too many");
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

pub fn golden_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The checked-in bytes of the message of this name.
pub fn golden(name: &str) -> Bytes {
    let path = golden_directory().join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    from_hex(&text).into()
}

pub fn fields(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    map
}

pub fn request_get() -> Request {
    Request {
        deadline_ms: 1_500,
        sent_ms: 1_700_000_000_000,
        method: Method::GET,
        path_and_query: "/".parse().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        is_stream: false,
        reply_subject: None,
        offer: None,
    }
}

pub fn offer() -> Offer {
    Offer {
        gateway: "Q7Fz".to_owned(),
        shard: 1,
        addresses: vec!["10.0.0.7:7443".to_owned()],
        certificate: Some([0xcd; 32]),
        takes_requests: false,
        takes_pipes: false,
    }
}

pub fn request_pipes() -> Request {
    let offer = Offer { takes_pipes: true, ..offer() };
    Request { offer: Some(offer.encode().into()), ..request_get() }
}

pub fn request_offer() -> Request {
    Request { offer: Some(offer().encode().into()), ..request_get() }
}

pub fn request_stream() -> Request {
    Request {
        is_stream: true,
        reply_subject: Some("_INBOX_apiproxy.7".to_owned()),
        ..request_offer()
    }
}

pub fn request_across() -> Request {
    Request { reply_subject: Some("_INBOX_apiproxy.7".to_owned()), ..request_get() }
}

pub fn request_post() -> Request {
    Request {
        deadline_ms: 60_000,
        sent_ms: 1_700_000_000_001,
        method: Method::POST,
        path_and_query: "/sum?n=1%20".parse().unwrap(),
        headers: fields(&[
            ("content-type", b"text/plain"),
            ("x-tag", b"one"),
            ("x-tag", b"two\xe9"),
        ]),
        body: Bytes::from_static(b"hello"),
        is_stream: false,
        reply_subject: None,
        offer: None,
    }
}

pub fn response_ok() -> Response {
    Response {
        status: StatusCode::OK,
        headers: fields(&[("content-type", b"application/json")]),
        trailers: HeaderMap::new(),
        body: Bytes::from_static(b"{\"sum\":6}"),
        join: None,
    }
}

pub fn response_trailers() -> Response {
    Response {
        status: StatusCode::NOT_FOUND,
        headers: fields(&[("set-cookie", b"a=1"), ("set-cookie", b"b=2")]),
        trailers: fields(&[("x-checksum", b"0f1e")]),
        body: Bytes::new(),
        join: None,
    }
}

pub fn response_join() -> Response {
    let join = Join { secret: TunnelSecret([0x5e; 16]), subject: 1 };
    Response { join: Some(join), ..response_ok() }
}

pub fn reference() -> Reference {
    Reference { token: StreamToken([0x70; 16]), secret: TunnelSecret([0x5e; 16]) }
}

/// Every golden request by name.
pub fn requests() -> [(&'static str, Request); 6] {
    [
        ("request_get", request_get()),
        ("request_post", request_post()),
        ("request_across", request_across()),
        ("request_offer", request_offer()),
        ("request_stream", request_stream()),
        ("request_pipes", request_pipes()),
    ]
}

/// Every golden reply by name.
pub fn replies() -> [(&'static str, Reply); 11] {
    let not_run = |reason| Reply::Signal(Signal::NotRun(reason));
    let accepted = Signal::Accepted { instance: "k3v9".to_owned() };
    let invite = Signal::Invite { subject: "_INBOX_worker.k.9".to_owned() };
    let Reference { token, secret } = reference();
    let ready = Signal::Ready { instance: "k3v9".to_owned(), token, secret };
    [
        ("response_ok", Reply::Response(response_ok())),
        ("response_trailers", Reply::Response(response_trailers())),
        ("response_join", Reply::Response(response_join())),
        ("response_reference", Reply::Reference(response_ok(), reference())),
        ("signal_ready", Reply::Signal(ready)),
        ("signal_invite", Reply::Signal(invite)),
        ("signal_accepted", Reply::Signal(accepted)),
        ("signal_overloaded", not_run(NotRun::Overloaded)),
        ("signal_moved", not_run(NotRun::Moved)),
        ("signal_expired", not_run(NotRun::Expired)),
        ("signal_unsupported", not_run(NotRun::Unsupported)),
    ]
}

/// Every golden command by name.
pub fn commands() -> [(&'static str, WorkerCommand); 2] {
    let cancel = WorkerCommand::Cancel { reply: "_INBOX_apiproxy.7".to_owned() };
    [("command_cancel", cancel), ("command_ping", WorkerCommand::Ping)]
}

/// Every golden frame by name.
pub fn frames() -> [(&'static str, Frame); 8] {
    let frame =
        |kind, detail, key, payload| Frame { kind, detail, key, payload: Bytes::from(payload) };
    let (clock_ms, key) = (1_700_000_000_000_u64, 1 << 32 | 3);
    let hello =
        Hello { name: "k3v9".to_owned(), requests: 64, payload_bytes: 1 << 20, heard_ms: 0 };
    let request = encode_request(&request_get());
    let overloaded = encode_signal(&Signal::NotRun(NotRun::Overloaded));
    let pong = (clock_ms + 7).to_le_bytes().to_vec();
    [
        ("frame_hello", frame(FrameKind::Hello, 0, clock_ms, hello.encode().to_vec())),
        ("frame_request", frame(FrameKind::Request, 0, key, request.to_vec())),
        ("frame_reply", frame(FrameKind::Reply, 64, key, overloaded.to_vec())),
        ("frame_cancel", frame(FrameKind::Cancel, 0, key, Vec::new())),
        ("frame_drain", frame(FrameKind::Drain, 0, 0, Vec::new())),
        ("frame_goodbye", frame(FrameKind::Goodbye, 0, 7, Vec::new())),
        ("frame_ping", frame(FrameKind::Ping, 0, clock_ms, Vec::new())),
        ("frame_pong", frame(FrameKind::Pong, 2, clock_ms, pong)),
    ]
}

pub fn encode_frame(Frame { kind, detail, key, payload }: &Frame) -> Bytes {
    let mut queue = FrameQueue::default();
    queue.put(*kind, *detail, *key, payload);
    queue.copy_to_bytes(queue.remaining())
}

/// Every golden message of pipes by name.
pub fn pipe_messages() -> [(&'static str, PipeMessage); 4] {
    let status = Status { sent: 0x1234, credit: 0x8_4000, has_ended: true, is_leaving: false };
    [
        ("pipe_hello", PipeMessage::Hello { window: 512 << 10 }),
        ("pipe_data", PipeMessage::Data { offset: 0x1230, bytes: Bytes::from_static(b"pipe") }),
        ("pipe_status", PipeMessage::Status(status)),
        ("pipe_reset", PipeMessage::Reset(ResetReason::Broken)),
    ]
}

pub fn encode_request(request: &Request) -> Bytes {
    let path_and_query = request.path_and_query.as_str();
    let Request { deadline_ms, sent_ms, method, headers, body, is_stream, .. } = request;
    let mut encoder =
        RequestEncoder::new(*deadline_ms, *sent_ms, method.as_str(), path_and_query, 64).unwrap();
    for (name, value) in headers {
        encoder.header(name.as_str(), value.as_bytes()).unwrap();
    }
    let offer = request.offer.as_deref().unwrap_or_default();
    let message = match offer {
        offer if *is_stream => encoder.finish_as_stream(offer),
        [] => encoder.finish(body),
        offer => encoder.finish_with_offer(body, offer),
    };
    match &request.reply_subject {
        Some(reply_subject) => with_reply_subject(&message, offer, reply_subject).unwrap(),
        None => message,
    }
}

pub fn encode_reply(reply: &Reply) -> Bytes {
    match reply {
        Reply::Response(Response { status, headers, trailers, body, join }) => {
            let message = encode_response(*status, headers, trailers, body).unwrap();
            match join {
                Some(join) => with_join(&message, *join).unwrap(),
                None => message,
            }
        }
        Reply::Reference(Response { status, headers, body, .. }, reference) => {
            encode_reference(*status, headers, body, *reference).unwrap()
        }
        Reply::Signal(signal) => encode_signal(signal),
    }
}
