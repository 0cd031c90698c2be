//! What decoding takes from the heap is bounded by the message and by the limits, whatever the
//! bytes say.

mod support;

use allocation_counter::measure;
use bytes::Bytes;
use natsway_wire::Limits;
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{Reply, RequestEncoder, decode_reply, decode_request};
use proptest::collection::vec;
use proptest::prelude::*;
use support::golden;

/// A field of four bytes on the wire becomes one entry of a `HeaderMap`: 104 bytes, and with its
/// index and the map's doubling below 256.
const BYTES_PER_FIELD: u64 = 256;
const FIXED_BYTES: u64 = 512;

fn bound(message: &Bytes) -> u64 {
    let length = message.len() as u64;
    // Headers and trailers are counted apart.
    let fields = (length / 4).min(2 * Limits::DEFAULT.header_fields as u64);
    FIXED_BYTES + BYTES_PER_FIELD * fields + 2 * length
}

/// The most bytes that any decoder held at a time.
fn peak(message: &Bytes) -> u64 {
    let request = measure(|| drop(decode_request(message, Limits::DEFAULT)));
    let reply = measure(|| drop(decode_reply(message, Limits::DEFAULT)));
    let command = measure(|| drop(WorkerCommand::decode(message)));
    [request, reply, command].map(|info| info.bytes_max).into_iter().max().unwrap_or_default()
}

#[test]
fn counts_and_lengths_that_lie_allocate_nothing() {
    let get = golden("request_get");
    let head = &get[..get.len() - 5];
    let lies: [&[u8]; 5] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdd, 0, 0, 2, 0],
        &[0xdc, 2, 0, 0x92, 0xa1, b'a', 0xa0],
        &[0x90, 0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0x90, 0xc4, 0, 0xdd, 0xff, 0xff, 0xff, 0xff],
    ];
    for lie in lies {
        let message = Bytes::from([head, lie].concat());
        let decoded = measure(|| assert!(decode_request(&message, Limits::DEFAULT).is_err()));
        // The path, which was read before.
        assert!(decoded.bytes_total <= 64, "{lie:x?}: {} bytes", decoded.bytes_total);
    }
}

#[test]
fn a_body_is_a_slice_of_its_message() {
    let body = vec![b'x'; 1 << 20];
    let message = RequestEncoder::new(1, 1, "POST", "/", 0).unwrap().finish(&body);
    let decoded = measure(|| {
        let request = decode_request(&message, Limits::DEFAULT).unwrap();
        let (outer, inner) = (message.as_ptr_range(), request.body.as_ptr_range());
        assert!(outer.start <= inner.start && inner.end <= outer.end);
        assert_eq!(request.body, body);
    });
    assert!(decoded.bytes_total < 256, "{} bytes", decoded.bytes_total);

    let empty = http::HeaderMap::new();
    let status = http::StatusCode::OK;
    let message = natsway_wire::envelope::encode_response(status, &empty, &empty, &body).unwrap();
    let decoded = measure(|| {
        let Ok(Reply::Response(response)) = decode_reply(&message, Limits::DEFAULT) else {
            panic!("a response")
        };
        let (outer, inner) = (message.as_ptr_range(), response.body.as_ptr_range());
        assert!(outer.start <= inner.start && inner.end <= outer.end);
        assert_eq!(response.body, body);
    });
    assert!(decoded.bytes_total < 256, "{} bytes", decoded.bytes_total);
}

#[test]
fn an_encoder_that_guessed_right_allocates_once() {
    let encoded = measure(|| {
        let mut encoder = RequestEncoder::new(1, 1, "GET", "/", 256).unwrap();
        encoder.header("accept", b"text/plain").unwrap();
        drop(encoder.finish(b"body"));
    });
    // The buffer, and the count of its owners.
    assert!(encoded.count_total <= 2, "{} allocations", encoded.count_total);
}

#[test]
fn the_worst_headers_stay_within_the_bound() {
    let Limits { header_fields, .. } = Limits::DEFAULT;
    for fields in [header_fields / 2 + 1, header_fields] {
        let mut encoder = RequestEncoder::new(1, 1, "GET", "/", 0).unwrap();
        for field in 0..fields {
            encoder.header(&format!("{field:x}"), b"").unwrap();
        }
        let message = encoder.finish(b"");
        assert!(peak(&message) <= bound(&message), "{} > {}", peak(&message), bound(&message));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_take_more_than_the_bound(
        first in 0x90u8..=0x9f,
        flags in 0u8..2,
        rest in vec(any::<u8>(), 0..512),
    ) {
        let message = Bytes::from([&[first, 1, flags][..], &rest].concat());
        prop_assert!(peak(&message) <= bound(&message));
    }

    #[test]
    fn no_headers_take_more_than_the_bound(fields in vec(vec(any::<u8>(), 0..40), 0..300), count in any::<u16>()) {
        let get = golden("request_get");
        let mut message = get[..get.len() - 5].to_vec();
        message.push(0xdc);
        let count = if count % 4 == 0 { count } else { fields.len() as u16 };
        message.extend(count.to_be_bytes());
        for field in fields {
            message.extend([0x92, 0xa2, b'x', b'a' + field.len() as u8 % 26, 0xc4, field.len() as u8]);
            message.extend(field.iter().map(|byte| 0x20 | byte & 0x5f));
        }
        let message = Bytes::from(message);
        prop_assert!(peak(&message) <= bound(&message));
    }
}
