//! A reply that can be read is written again and reads the same; its body, or what it says of it,
//! lies inside the message.

use bytes::Bytes;
use natsway_wire::Limits;
use natsway_wire::envelope::{
    Reply, Response, decode_reply, encode_reference, encode_response, encode_signal, with_join,
};

/// See the module.
pub fn check(data: &[u8]) {
    let message = Bytes::copy_from_slice(data);
    let Ok(reply) = decode_reply(&message, Limits::DEFAULT) else { return };
    let again = match &reply {
        Reply::Signal(signal) => encode_signal(signal),
        Reply::Response(Response { status, headers, trailers, body, join }) => {
            assert!(lies_inside(&message, body));
            let again = encode_response(*status, headers, trailers, body)
                .expect("what was read is within the limits");
            join.map_or(again.clone(), |join| with_join(&again, join).expect("it is ours"))
        }
        Reply::Reference(Response { status, headers, trailers, body, join }, reference) => {
            assert!(lies_inside(&message, body));
            if !trailers.is_empty() || join.is_some() {
                // Trailers come behind the body, and who streams joins by the reference.
                return;
            }
            encode_reference(*status, headers, body, *reference)
                .expect("what was read is within the limits")
        }
    };
    assert_eq!(decode_reply(&again, Limits::DEFAULT), Ok(reply));
}

fn lies_inside(message: &Bytes, body: &Bytes) -> bool {
    let (outer, inner) = (message.as_ptr_range(), body.as_ptr_range());
    body.is_empty() || (outer.start <= inner.start && inner.end <= outer.end)
}
