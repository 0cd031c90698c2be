//! A request that can be read is written again and reads the same; its body lies inside the
//! message.

use bytes::Bytes;
use natsway_wire::Limits;
use natsway_wire::envelope::{RequestEncoder, decode_request, restamp_request, with_reply_subject};
use natsway_wire::offer::Offer;

/// See the module.
pub fn check(data: &[u8]) {
    let message = Bytes::copy_from_slice(data);
    let restamped = restamp_request(&message, 7, 9);
    let Ok(request) = decode_request(&message, Limits::DEFAULT) else { return };
    let (outer, inner) = (message.as_ptr_range(), request.body.as_ptr_range());
    assert!(request.body.is_empty() || (outer.start <= inner.start && inner.end <= outer.end));

    let (method, path) = (request.method.as_str(), request.path_and_query.as_str());
    let mut encoder = RequestEncoder::new(request.deadline_ms, request.sent_ms, method, path, 0)
        .expect("what was read is within the limits");
    for (name, value) in &request.headers {
        let added = encoder.header(name.as_str(), value.as_bytes());
        added.expect("what was read is within the limits");
    }
    let offer = request.offer.as_deref().unwrap_or_default();
    // Ours name an offer with every stream, and no body.
    let as_stream = request.is_stream && !offer.is_empty();
    let mut again = match offer {
        offer if as_stream => encoder.finish_as_stream(offer),
        [] => encoder.finish(&request.body),
        offer => encoder.finish_with_offer(&request.body, offer),
    };
    if let Some(reply_subject) = &request.reply_subject {
        again = with_reply_subject(&again, offer, reply_subject).expect("it is ours");
    }
    let mut expected = request.clone();
    expected.is_stream = as_stream;
    if as_stream {
        expected.body = Bytes::new();
    }
    assert_eq!(decode_request(&again, Limits::DEFAULT), Ok(expected));
    Offer::decode(offer).ok();

    // Where the stamp's form is ours, stamping changes nothing else.
    if let Ok(restamped) = restamped {
        let stamped = decode_request(&restamped, Limits::DEFAULT).expect("only the stamp changed");
        assert_eq!((stamped.deadline_ms, stamped.sent_ms), (7, 9));
        assert_eq!((stamped.method, stamped.headers), (request.method, request.headers));
        assert_eq!(stamped.body, request.body);
    }
}
