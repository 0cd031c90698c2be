//! What one side writes is what the other reads, for any message that HTTP allows.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use natsway_wire::Limits;
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{
    NotRun, Reference, Reply, Request, Response, Signal, decode_reply, decode_request,
    restamp_request,
};
use natsway_wire::native::{NativeReply, canonical_name, decode_reply as decode_native_reply};
use natsway_wire::offer::{StreamToken, TunnelSecret};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{encode_reply, encode_request, offer};

prop_compose! {
    fn headers()(fields in vec((field_name(), field_value()), 0..40)) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, value);
        }
        map
    }
}

/// Few enough names that repeats are common, and lengths on both sides of MessagePack's 31 and 255.
fn field_name() -> impl Strategy<Value = HeaderName> {
    let name = prop_oneof![
        4 => "(accept|set-cookie|content-type|x-[a-d])",
        1 => "[!#$%&'*+.^_`|~0-9a-z-]{1,40}",
        1 => "x[a-z]{250,260}",
    ];
    name.prop_map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap())
}

/// Any byte that a header value may have, the ones above ASCII too.
fn field_value() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![8 => 0x20u8..0x7f, 1 => 0x80u8..=0xff, 1 => Just(b'\t')];
    let lengths = prop_oneof![8 => 0usize..60, 1 => 250usize..260, 1 => 65_530usize..=65_536];
    let repeated = (byte.clone(), lengths).prop_map(|(byte, length)| vec![byte; length]);
    let bytes = prop_oneof![3 => vec(byte, 0..60), 1 => repeated];
    bytes.prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

fn body() -> impl Strategy<Value = Bytes> {
    let sizes = prop_oneof![4 => 0usize..300, 1 => 65_530usize..65_540];
    let filled = (any::<u8>(), sizes).prop_map(|(byte, size)| vec![byte; size]);
    prop_oneof![vec(any::<u8>(), 0..300), filled].prop_map(Bytes::from)
}

fn path_and_query() -> impl Strategy<Value = PathAndQuery> {
    let text = prop_oneof![
        Just("*".to_owned()),
        "/[a-z0-9/%.~é-]{0,60}",
        "/[a-z]{0,20}\\?[a-z0-9=&/?%+-]{0,300}"
    ];
    text.prop_map(|text| PathAndQuery::try_from(text).unwrap())
}

fn method() -> impl Strategy<Value = Method> {
    let name = prop_oneof!["(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT)", "[A-Z]{1,40}"];
    name.prop_map(|name| Method::from_bytes(name.as_bytes()).unwrap())
}

prop_compose! {
    fn request()(
        deadline_ms in any::<u32>(),
        sent_ms in any::<u64>(),
        method in method(),
        path_and_query in path_and_query(),
        headers in headers(),
        body in body(),
        (is_stream, offer) in prop_oneof![
            Just((false, None)),
            any::<bool>().prop_map(|is_stream| (is_stream, Some(offer().encode().into()))),
        ],
    ) -> Request {
        let body = if is_stream { Bytes::new() } else { body };
        let reply_subject = None;
        Request {
            deadline_ms,
            sent_ms,
            method,
            path_and_query,
            headers,
            body,
            is_stream,
            reply_subject,
            offer,
        }
    }
}

prop_compose! {
    fn response()(
        status in 100u16..1000,
        headers in headers(),
        trailers in headers(),
        body in body(),
    ) -> Response {
        Response { status: StatusCode::from_u16(status).unwrap(), headers, trailers, body, join: None }
    }
}

fn signal() -> impl Strategy<Value = Signal> {
    let reasons = [
        NotRun::Overloaded,
        NotRun::Moved,
        NotRun::Expired,
        NotRun::Unsupported,
        NotRun::UpstreamDown,
        NotRun::UpstreamBroken,
    ];
    prop_oneof![
        "[A-Za-z0-9_-]{1,64}".prop_map(|instance| Signal::Accepted { instance }),
        ("[A-Za-z0-9_-]{1,64}", any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(
            |(instance, token, secret)| {
                let (token, secret) = (StreamToken(token), TunnelSecret(secret));
                Signal::Ready { instance, token, secret }
            }
        ),
        "_INBOX_[a-z]{1,9}(\\.[A-Za-z0-9]{1,22}){1,3}"
            .prop_map(|subject| Signal::Invite { subject }),
        proptest::sample::select(reasons.to_vec()).prop_map(Signal::NotRun),
    ]
}

proptest! {
    #[test]
    fn requests_come_back(request in request()) {
        let message = encode_request(&request);
        prop_assert_eq!(decode_request(&message, Limits::DEFAULT).unwrap(), request);
    }

    #[test]
    fn responses_come_back(response in response()) {
        let reply = Reply::Response(response);
        prop_assert_eq!(decode_reply(&encode_reply(&reply), Limits::DEFAULT).unwrap(), reply);
    }

    #[test]
    fn references_come_back(mut response in response(), token: [u8; 16], secret: [u8; 16]) {
        response.trailers.clear();
        let reference = Reference { token: StreamToken(token), secret: TunnelSecret(secret) };
        let reply = Reply::Reference(response, reference);
        prop_assert_eq!(decode_reply(&encode_reply(&reply), Limits::DEFAULT).unwrap(), reply);
    }

    #[test]
    fn who_is_in_another_account_says_where_it_is_answered(request in request()) {
        let reply_subject = Some("_INBOX_apiproxy.7".to_owned());
        let across = Request { reply_subject, ..request };
        let message = encode_request(&across);
        prop_assert_eq!(decode_request(&message, Limits::DEFAULT).unwrap(), across);
    }

    #[test]
    fn signals_come_back(signal in signal()) {
        let reply = Reply::Signal(signal);
        prop_assert_eq!(decode_reply(&encode_reply(&reply), Limits::DEFAULT).unwrap(), reply);
    }

    #[test]
    fn commands_come_back(reply in "\\PC{0,300}") {
        let command = WorkerCommand::Cancel { reply };
        prop_assert_eq!(WorkerCommand::decode(&command.encode()).unwrap(), command);
    }

    #[test]
    fn a_restamped_request_differs_in_its_stamp_only(
        request in request(),
        deadline_ms in any::<u32>(),
        sent_ms in any::<u64>(),
    ) {
        let first = encode_request(&request);
        let again = restamp_request(&first, deadline_ms, sent_ms).unwrap();
        let expected = Request { deadline_ms, sent_ms, ..request };
        prop_assert_eq!(&again, &encode_request(&expected));
        prop_assert_eq!(decode_request(&again, Limits::DEFAULT).unwrap(), expected);
    }

    #[test]
    fn only_a_request_is_restamped(reply in response(), noise in vec(any::<u8>(), 0..64)) {
        prop_assert!(restamp_request(&encode_reply(&Reply::Response(reply)), 1, 1).is_err());
        prop_assert!(restamp_request(&noise, 1, 1).is_err() || noise.starts_with(&[0x98, 1, 0, 0xce]));
    }

    #[test]
    fn native_replies_come_back(
        status in 100u16..1000,
        headers in vec(("x-[a-f]{1,8}", "[ -~]{0,40}"), 0..20),
        body in body(),
    ) {
        let status_text = status.to_string();
        let canonical: Vec<(String, String)> =
            headers.iter().map(|(name, value)| (canonical_name(name), value.clone())).collect();
        let pairs = canonical.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let reply = decode_native_reply(pairs.chain([("Natsway-Status", status_text.as_str())]), body.clone());
        let mut expected = HeaderMap::new();
        for (name, value) in &headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            expected.append(name, HeaderValue::from_str(value).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let response = Response { status, headers: expected, trailers: HeaderMap::new(), body, join: None };
        prop_assert_eq!(reply.unwrap(), NativeReply::Response(response));
    }
}
