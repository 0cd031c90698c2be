//! A reply that can be read is written again and reads the same; its body lies inside the message.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use natsway_wire::Limits;
use natsway_wire::envelope::{Reply, decode_reply, encode_response, encode_signal};

fuzz_target!(|data: &[u8]| {
    let message = Bytes::copy_from_slice(data);
    let Ok(reply) = decode_reply(&message, Limits::DEFAULT) else { return };
    let again = match &reply {
        Reply::Signal(signal) => encode_signal(signal),
        Reply::Response(response) => {
            let (outer, inner) = (message.as_ptr_range(), response.body.as_ptr_range());
            assert!(response.body.is_empty() || (outer.start <= inner.start && inner.end <= outer.end));
            encode_response(response.status, &response.headers, &response.trailers, &response.body)
                .expect("what was read is within the limits")
        }
    };
    assert_eq!(decode_reply(&again, Limits::DEFAULT), Ok(reply));
});
