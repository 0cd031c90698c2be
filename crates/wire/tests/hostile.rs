//! No bytes make a decoder panic, and what is above a limit is refused by name.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use bytes::Bytes;
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{
    Reply, RequestEncoder, decode_reply, decode_request, encode_response,
};
use natsway_wire::native::decode_reply as decode_native_reply;
use natsway_wire::{Error, ErrorKind, Limits};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::golden;

/// Hands the bytes to every decoder of the envelope; only their return matters.
fn decode_as_everything(message: &Bytes) -> [Result<(), Error>; 3] {
    [
        decode_request(message, Limits::DEFAULT).map(drop),
        decode_reply(message, Limits::DEFAULT).map(drop),
        WorkerCommand::decode(message).map(drop),
    ]
}

fn every_golden_message() -> Vec<Bytes> {
    let names = support::requests().map(|(name, _)| name).into_iter();
    let names = names.chain(support::replies().map(|(name, _)| name));
    names.chain(support::commands().map(|(name, _)| name)).map(golden).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// `request_get` up to its headers, with these headers and what follows them.
fn request_with_headers(headers: &[u8]) -> Bytes {
    let get = golden("request_get");
    [&get[..get.len() - 5], headers].concat().into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        let _results = decode_as_everything(&bytes.into());
    }

    /// Arbitrary bytes rarely get past the first; these begin as our messages do.
    #[test]
    fn arbitrary_elements_never_panic(
        first in 0x90u8..=0x9f,
        flags in 0u8..2,
        rest in vec(any::<u8>(), 0..512),
    ) {
        let _results = decode_as_everything(&[&[first, 1, flags][..], &rest].concat().into());
    }

    #[test]
    fn mutated_messages_never_panic(
        message in select(every_golden_message()),
        changes in vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = message.to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _results = decode_as_everything(&bytes.into());
    }

    #[test]
    fn arbitrary_native_replies_never_panic(
        fields in vec(("\\PC{0,20}|Natsway-Status|Nats-Service-Error(-Code)?", "\\PC{0,20}|[0-9]{1,6}"), 0..8),
    ) {
        let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        decode_native_reply(fields, Bytes::new()).map(drop).unwrap_or_default();
    }
}

#[test]
fn every_prefix_of_a_message_is_truncated() {
    let is_command = |message: &Bytes| WorkerCommand::decode(message).is_ok();
    for message in every_golden_message() {
        for length in 0..message.len() {
            let prefix = message.slice(..length);
            let [request, reply, command] = decode_as_everything(&prefix);
            if decode_request(&message, Limits::DEFAULT).is_ok() {
                assert_eq!(kind(request), ErrorKind::Truncated, "{length} bytes of {message:x?}");
            } else if is_command(&message) {
                assert_eq!(kind(command), ErrorKind::Truncated, "{length} bytes of {message:x?}");
            } else {
                assert_eq!(kind(reply), ErrorKind::Truncated, "{length} bytes of {message:x?}");
            }
        }
    }
}

#[test]
fn bytes_behind_the_message_are_malformed() {
    for message in every_golden_message() {
        let longer: Bytes = [&message[..], &[0xc0]].concat().into();
        for result in decode_as_everything(&longer) {
            assert!(result.is_err(), "{longer:x?}");
        }
    }
    let longer = [&golden("request_get")[..], &[0]].concat().into();
    assert_eq!(kind(decode_request(&longer, Limits::DEFAULT)), ErrorKind::Malformed);
}

#[test]
fn nesting_deeper_than_any_stack_is_skipped() {
    let mut deep = golden("request_get").to_vec();
    deep[0] = 0x99;
    deep.extend(std::iter::repeat_n(0x91, 1_000_000));
    assert_eq!(
        kind(decode_request(&Bytes::from(deep.clone()), Limits::DEFAULT)),
        ErrorKind::Truncated
    );
    deep.push(0xc0);
    assert!(decode_request(&deep.into(), Limits::DEFAULT).is_ok());
}

#[test]
fn counts_that_lie_end_with_the_message() {
    // Nested arrays and maps of 2^32 - 1, in the place of an element that is skipped.
    for marker in [0xdd, 0xdf] {
        let mut lie = golden("request_get").to_vec();
        lie[0] = 0x99;
        for _ in 0..10 {
            lie.extend([marker, 0xff, 0xff, 0xff, 0xff]);
        }
        assert_eq!(kind(decode_request(&lie.into(), Limits::DEFAULT)), ErrorKind::Truncated);
    }
    let endless = request_with_headers(&[0xdd, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(kind(decode_request(&endless, Limits::DEFAULT)), ErrorKind::TooLarge);
    let more_than_there_is = request_with_headers(&[0xdc, 0x02, 0x00, 0x92, 0xa1, b'a', 0xa0]);
    assert_eq!(kind(decode_request(&more_than_there_is, Limits::DEFAULT)), ErrorKind::Truncated);
    let body_of_4_gib = request_with_headers(&[0x90, 0xc6, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(kind(decode_request(&body_of_4_gib, Limits::DEFAULT)), ErrorKind::Truncated);
}

/// `HeaderMap` panics above 32,768 fields when asked carelessly; limits wider than that must not
/// let it.
#[test]
fn limits_above_what_a_header_map_holds_are_safe() {
    let wide = Limits { header_fields: usize::MAX, field_bytes: usize::MAX };
    for count in [24_576u32, 24_577, 32_769, 70_000] {
        let mut fields = vec![0xdd];
        fields.extend(count.to_be_bytes());
        for field in 0..count {
            fields.extend([0x92, 0xa6]);
            fields.extend(format!("x{field:05}").bytes());
            fields.push(0xa0);
        }
        fields.extend([0xc4, 0]);
        let result = decode_request(&request_with_headers(&fields), wide);
        match count {
            24_576 => assert_eq!(result.unwrap().headers.len(), 24_576),
            _ => assert_eq!(kind(result), ErrorKind::TooLarge, "{count}"),
        }
    }
}

#[test]
fn headers_at_the_limit_pass_and_one_above_is_refused_both_ways() {
    let Limits { header_fields, field_bytes } = Limits::DEFAULT;
    let longest = vec![b'v'; field_bytes];
    let mut encoder = RequestEncoder::new(1, 1, "GET", "/", 0).unwrap();
    encoder.header("x-long", &longest).unwrap();
    for _ in 1..header_fields {
        encoder.header("x-many", b"").unwrap();
    }
    assert_eq!(kind(encoder.header("x-many", b"")), ErrorKind::TooLarge);
    let message = encoder.finish(b"");
    assert_eq!(decode_request(&message, Limits::DEFAULT).unwrap().headers.len(), header_fields);

    let fewer = Limits { header_fields: header_fields - 1, ..Limits::DEFAULT };
    assert_eq!(kind(decode_request(&message, fewer)), ErrorKind::TooLarge);
    let shorter = Limits { field_bytes: field_bytes - 1, ..Limits::DEFAULT };
    assert_eq!(kind(decode_request(&message, shorter)), ErrorKind::TooLarge);

    let mut encoder = RequestEncoder::new(1, 1, "GET", "/", 0).unwrap();
    assert_eq!(
        kind(encoder.header("x-long", &[longest, vec![b'v']].concat())),
        ErrorKind::TooLarge
    );
    encoder.header("x-next", b"fits").unwrap();
    let request = decode_request(&encoder.finish(b""), Limits::DEFAULT).unwrap();
    assert_eq!(request.headers.len(), 1, "what was refused left nothing behind");
}

#[test]
fn responses_and_request_lines_have_the_same_limits() {
    let Limits { header_fields, field_bytes } = Limits::DEFAULT;
    let many = support::fields(&vec![("x-many", &b""[..]); header_fields]);
    let none = http::HeaderMap::new();
    let status = http::StatusCode::OK;
    let message = encode_response(status, &many, &many, b"").unwrap();
    let Ok(Reply::Response(response)) = decode_reply(&message, Limits::DEFAULT) else {
        panic!("a response")
    };
    assert_eq!((response.headers.len(), response.trailers.len()), (header_fields, header_fields));
    let one_more = support::fields(&vec![("x-many", &b""[..]); header_fields + 1]);
    assert_eq!(kind(encode_response(status, &one_more, &none, b"")), ErrorKind::TooLarge);
    assert_eq!(kind(encode_response(status, &none, &one_more, b"")), ErrorKind::TooLarge);

    let long = "/".repeat(field_bytes + 1);
    assert_eq!(kind(RequestEncoder::new(1, 1, "GET", &long, 0)), ErrorKind::TooLarge);
    assert_eq!(kind(RequestEncoder::new(1, 1, &long, "/", 0)), ErrorKind::TooLarge);
}

#[test]
fn what_http_cannot_carry_is_malformed() {
    let field = |name: &[u8], value: &[u8]| {
        let name = [&[0xa0 | name.len() as u8], name].concat();
        let value = [&[0xc4, value.len() as u8], value].concat();
        request_with_headers(&[&[0x91, 0x92], &name[..], &value, &[0xc4, 0]].concat())
    };
    assert!(decode_request(&field(b"x-a", b"plain"), Limits::DEFAULT).is_ok());
    for (name, value) in [
        (&b"x-a"[..], &b"line\r\nbreak"[..]),
        (b"x-a", b"nul\0"),
        (b"x-a", b"delete\x7f"),
        (b"x a", b"v"),
        (b"x-a:", b"v"),
        (b"x-\xc3\xa9", b"v"),
        (b"", b"v"),
    ] {
        assert_eq!(
            kind(decode_request(&field(name, value), Limits::DEFAULT)),
            ErrorKind::Malformed
        );
    }
    for (method, path) in [("G T", "/"), ("", "/")] {
        let message = RequestEncoder::new(1, 1, method, path, 0).unwrap().finish(b"");
        assert_eq!(
            kind(decode_request(&message, Limits::DEFAULT)),
            ErrorKind::Malformed,
            "{method}"
        );
    }
    // The last three are what the `http` crate would take.
    for path in ["", "a", "/a b", "/\n", "**", "*?a", "?a=1", "#a", "/a#b"] {
        let method = "GET";
        let message = RequestEncoder::new(1, 1, method, path, 0).unwrap().finish(b"");
        assert_eq!(kind(decode_request(&message, Limits::DEFAULT)), ErrorKind::Malformed, "{path}");
    }
    for status in [0u16, 99, 1000, 65_535] {
        let [high, low] = status.to_be_bytes();
        let message = Bytes::from(vec![0x93, 1, 0, 0xcd, high, low]);
        assert_eq!(kind(decode_reply(&message, Limits::DEFAULT)), ErrorKind::Malformed, "{status}");
    }
    let detail = |detail: &str| {
        let instance = detail.to_owned();
        natsway_wire::envelope::encode_signal(&natsway_wire::envelope::Signal::Accepted {
            instance,
        })
    };
    for instance in ["", ".", "a.", ".a", "a.b.c", "a b", "*", ">", "é", &"a".repeat(65)] {
        assert_eq!(
            kind(decode_reply(&detail(instance), Limits::DEFAULT)),
            ErrorKind::Malformed,
            "{instance}"
        );
    }
}
