//! Readers and writers of different versions: what is added is skipped, what is missing is empty,
//! and what must be understood but is not is refused as unsupported. The messages are written by a
//! MessagePack library that knows nothing of ours, as a worker in another language would.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{
    NotRun, Reply, Request, Response, Signal, decode_reply, decode_request,
};
use natsway_wire::{Error, ErrorKind, Limits};
use rmpv::Value;
use support::{reference, request_get, request_post, response_ok, response_trailers};

fn write(elements: Vec<Value>) -> Bytes {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, &Value::Array(elements)).unwrap();
    out.into()
}

fn read_request(elements: Vec<Value>) -> Result<Request, Error> {
    decode_request(&write(elements), Limits::DEFAULT)
}

fn read_reply(elements: Vec<Value>) -> Result<Reply, Error> {
    decode_reply(&write(elements), Limits::DEFAULT)
}

fn read_command(elements: Vec<Value>) -> Result<WorkerCommand, Error> {
    WorkerCommand::decode(&write(elements))
}

fn pairs(headers: &HeaderMap) -> Value {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Value::Array(vec![Value::from(name.as_str()), Value::from(value.as_bytes())])
    };
    Value::Array(headers.iter().map(pair).collect())
}

fn request_elements(request: &Request) -> Vec<Value> {
    vec![
        Value::from(1),
        Value::from(0),
        Value::from(request.deadline_ms),
        Value::from(request.sent_ms),
        Value::from(request.method.as_str()),
        Value::from(request.path_and_query.as_str()),
        pairs(&request.headers),
        Value::from(&request.body[..]),
    ]
}

fn response_elements(response: &Response) -> Vec<Value> {
    vec![
        Value::from(1),
        Value::from(0),
        Value::from(response.status.as_u16()),
        pairs(&response.headers),
        pairs(&response.trailers),
        Value::from(&response.body[..]),
    ]
}

fn signal_elements(code: u64, detail: &str) -> Vec<Value> {
    vec![Value::from(1), Value::from(1), Value::from(code), Value::from(detail)]
}

/// What a later version might add: one of each form.
fn additions() -> Vec<Value> {
    vec![
        Value::Nil,
        Value::Boolean(true),
        Value::from(-5),
        Value::from(u64::MAX),
        Value::F32(1.5),
        Value::F64(2.5),
        Value::from("x".repeat(40)),
        Value::from(vec![0u8; 70_000]),
        Value::Ext(7, vec![0; 16]),
        Value::Ext(7, vec![0; 300]),
        Value::Map(vec![(Value::from("a"), Value::Array(vec![Value::from(1); 20]))]),
    ]
}

fn with_flags(mut elements: Vec<Value>, flags: u64) -> Vec<Value> {
    elements[1] = Value::from(flags);
    elements
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn a_strangers_messages_are_read() {
    for request in [request_get(), request_post()] {
        assert_eq!(read_request(request_elements(&request)).unwrap(), request);
    }
    let response = response_trailers();
    assert_eq!(read_reply(response_elements(&response)).unwrap(), Reply::Response(response));
    let accepted = Signal::Accepted { instance: "a-B_9".to_owned() };
    assert_eq!(read_reply(signal_elements(0, "a-B_9")).unwrap(), Reply::Signal(accepted));
    assert_eq!(read_command(vec![1.into(), 1.into(), "".into()]).unwrap(), WorkerCommand::Ping);
}

#[test]
fn other_forms_of_the_same_value_are_read() {
    let mut elements = request_elements(&request_post());
    let request = read_request(elements.clone()).unwrap();
    // Binary where we write a string, a string where we write binary.
    elements[4] = Value::from(&b"POST"[..]);
    elements[5] = Value::from(request.path_and_query.as_str().as_bytes());
    elements[7] = Value::from("hello");
    assert_eq!(read_request(elements).unwrap(), request);
    // Each integer as wide as the format has it, signed: [1, 0, 1500, ...].
    let golden = support::golden("request_get");
    let mut signed = vec![0x98, 0xd1, 0, 1, 0xd2, 0, 0, 0, 0, 0xd3, 0, 0, 0, 0, 0, 0, 5, 0xdc];
    signed.extend_from_slice(&golden[8..]);
    assert_eq!(decode_request(&signed.into(), Limits::DEFAULT).unwrap(), request_get());
    // An array's count as wide as the format has it.
    let wide: Vec<u8> = [&[0xdd, 0, 0, 0, 8], &golden[1..]].concat();
    assert_eq!(decode_request(&wide.into(), Limits::DEFAULT).unwrap(), request_get());
}

#[test]
fn negative_and_fractional_numbers_are_malformed() {
    for number in
        [Value::from(-1), Value::from(-200), Value::from(i64::MIN), Value::F64(1.0), Value::Nil]
    {
        for place in [0, 1, 2, 3] {
            let mut elements = request_elements(&request_get());
            elements[place] = number.clone();
            assert_eq!(kind(read_request(elements)), ErrorKind::Malformed, "{number} at {place}");
        }
    }
}

#[test]
fn added_elements_are_skipped() {
    for request in [request_get(), request_post()] {
        let elements = [request_elements(&request), additions()].concat();
        assert_eq!(read_request(elements).unwrap(), request);
    }
    let response = response_trailers();
    let elements = [response_elements(&response), additions()].concat();
    assert_eq!(read_reply(elements).unwrap(), Reply::Response(response));
    let elements = [signal_elements(2, ""), additions()].concat();
    assert_eq!(read_reply(elements).unwrap(), Reply::Signal(Signal::NotRun(NotRun::Moved)));
    let elements = [vec![1.into(), 1.into(), "".into()], additions()].concat();
    assert_eq!(read_command(elements).unwrap(), WorkerCommand::Ping);
}

#[test]
fn elements_added_to_a_header_are_skipped() {
    let field = [vec!["x-a".into(), "1".into()], additions()].concat();
    let mut elements = request_elements(&request_get());
    elements[6] = Value::Array(vec![Value::Array(field)]);
    let request = read_request(elements).unwrap();
    assert_eq!((request.headers.len(), &request.headers["x-a"]), (1, &"1".parse().unwrap()));
}

#[test]
fn what_is_missing_at_the_end_is_empty() {
    let get = request_get();
    for kept in [6, 7, 8] {
        let elements = request_elements(&get)[..kept].to_vec();
        assert_eq!(read_request(elements).unwrap(), get, "the first {kept}");
    }
    let no_content = Response {
        status: StatusCode::NO_CONTENT,
        headers: HeaderMap::new(),
        trailers: HeaderMap::new(),
        body: Bytes::new(),
        join: None,
    };
    for kept in [3, 4, 5, 6] {
        let elements = response_elements(&no_content)[..kept].to_vec();
        assert_eq!(
            read_reply(elements).unwrap(),
            Reply::Response(no_content.clone()),
            "the first {kept}"
        );
    }
    let expired = Reply::Signal(Signal::NotRun(NotRun::Expired));
    assert_eq!(read_reply(signal_elements(3, "")[..3].to_vec()).unwrap(), expired);
    assert_eq!(read_command(vec![1.into(), 1.into()]).unwrap(), WorkerCommand::Ping);
}

#[test]
fn what_no_message_can_do_without_is_malformed() {
    for kept in 0..6 {
        let elements = request_elements(&request_get())[..kept].to_vec();
        assert_eq!(
            kind(read_request(elements)),
            ErrorKind::Malformed,
            "the first {kept} of a request"
        );
    }
    for kept in 0..3 {
        let elements = response_elements(&response_trailers())[..kept].to_vec();
        assert_eq!(
            kind(read_reply(elements)),
            ErrorKind::Malformed,
            "the first {kept} of a response"
        );
        let elements = signal_elements(1, "")[..kept].to_vec();
        let read = read_reply(elements).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::Malformed), "the first {kept} of a signal");
    }
    assert_eq!(
        kind(read_reply(signal_elements(0, ""))),
        ErrorKind::Malformed,
        "accepted by nobody"
    );
    assert_eq!(kind(read_command(vec![1.into()])), ErrorKind::Malformed);
}

#[test]
fn critical_flags_that_are_unknown_are_unsupported() {
    for bit in 0..8 {
        let flags = 1 << bit;
        let request = with_flags(request_elements(&request_get()), flags);
        match bit {
            1 => assert!(read_request(request).unwrap().is_stream),
            _ => {
                let kind = kind(read_request(request));
                assert_eq!(kind, ErrorKind::Unsupported, "bit {bit} of a request");
            }
        }
        if bit == 0 {
            continue;
        }
        let response = with_flags(response_elements(&response_trailers()), flags);
        assert_eq!(kind(read_reply(response)), ErrorKind::Unsupported, "bit {bit} of a response");
        let signal = with_flags(signal_elements(1, ""), flags | 1);
        assert_eq!(kind(read_reply(signal)), ErrorKind::Unsupported, "bit {bit} of a signal");
    }
}

#[test]
fn other_flags_that_are_unknown_are_ignored() {
    for bit in 8..64 {
        let flags = 1 << bit;
        let request = request_get();
        assert_eq!(read_request(with_flags(request_elements(&request), flags)).unwrap(), request);
        let response = response_trailers();
        let read = read_reply(with_flags(response_elements(&response), flags)).unwrap();
        assert_eq!(read, Reply::Response(response));
        let read = read_reply(with_flags(signal_elements(4, ""), flags | 1)).unwrap();
        assert_eq!(read, Reply::Signal(Signal::NotRun(NotRun::Unsupported)));
    }
}

#[test]
fn another_version_is_unsupported_whatever_follows() {
    for version in [0u64, 2, 255, u64::MAX] {
        let message = vec![Value::from(version), Value::Map(vec![])];
        assert_eq!(kind(read_request(message.clone())), ErrorKind::Unsupported, "{version}");
        assert_eq!(kind(read_reply(message.clone())), ErrorKind::Unsupported, "{version}");
        assert_eq!(kind(read_command(message)), ErrorKind::Unsupported, "{version}");
    }
}

#[test]
fn signals_and_commands_that_are_unknown_are_unsupported() {
    assert_eq!(kind(read_reply(signal_elements(6, ""))), ErrorKind::Unsupported);
    assert_eq!(kind(read_reply(signal_elements(u64::MAX, ""))), ErrorKind::Unsupported);
    assert_eq!(kind(read_command(vec![1.into(), 2.into(), "".into()])), ErrorKind::Unsupported);
}

/// Where the body should be: something that no version writes yet.
#[test]
fn a_body_that_is_neither_inline_nor_a_reference_is_unsupported() {
    let unknown = Value::Map(vec![(Value::from("stream"), Value::from("s1"))]);
    for body in [unknown, Value::Nil, Value::from(7)] {
        let mut request = request_elements(&request_get());
        request[7] = body.clone();
        assert_eq!(kind(read_request(request)), ErrorKind::Unsupported, "{body}");
        let mut response = response_elements(&response_trailers());
        response[5] = body.clone();
        assert_eq!(kind(read_reply(response)), ErrorKind::Unsupported, "{body}");
    }
}

#[test]
fn a_newer_reference_is_read_and_one_that_lacks_something_is_not() {
    let (token, first, secret) = (vec![0x70; 16], b"{\"sum\":6}".to_vec(), vec![0x5e; 16]);
    let whole = [token, first, secret].map(Value::Binary);
    let read = |reference: &[Value]| {
        let mut response = response_elements(&response_ok());
        response[5] = Value::Array(reference.to_vec());
        read_reply(response)
    };
    let newer = [&whole[..], &[Value::from("more")]].concat();
    assert_eq!(read(&newer).unwrap(), Reply::Reference(response_ok(), reference()));
    for count in 0..whole.len() {
        assert_eq!(kind(read(&whole[..count])), ErrorKind::Malformed, "the first {count}");
    }
    let mut short = whole;
    short[2] = Value::Binary(vec![0x5e; 15]);
    assert_eq!(kind(read(&short)), ErrorKind::Malformed);
}

#[test]
fn what_is_no_offer_is_passed_over() {
    let get = request_get();
    for (nothing, offer) in [(Value::Nil, Value::Nil), (Value::from(7), Value::from("later"))] {
        let elements = [request_elements(&get), vec![nothing, offer]].concat();
        assert_eq!(read_request(elements).unwrap(), get);
    }
}
