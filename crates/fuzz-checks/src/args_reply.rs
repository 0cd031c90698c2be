//! A backend's reply, in the format that the first byte chooses, is what HTTP can carry however it
//! is rendered, or is refused.

use bytes::Bytes;
use http::header;
use natsway_args::accept::Rendering;
use natsway_args::reply::render;
use natsway_args::{Format, Limits};

/// See the module.
pub fn check(data: &[u8]) {
    let Some((first, payload)) = data.split_first() else { return };
    let format = Format::ALL[usize::from(first % 3)];
    let payload = Bytes::copy_from_slice(payload);
    let ways = Format::ALL.map(|format| Rendering::Value(format, format.media_type()));
    let more = [Rendering::Text, Rendering::Form, Rendering::Script("f".to_owned())];
    let mut were_rendered = None;
    for way in ways.iter().chain(&more) {
        let rendered = render(format, &payload, way);
        let all_alike = *were_rendered.get_or_insert(rendered.is_ok()) == rendered.is_ok();
        assert!(all_alike, "how a client takes it decides nothing about whether it is right");
        let Ok(rendered) = rendered else { continue };
        assert!(rendered.status.is_none_or(|status| (200..600).contains(&status.as_u16())));
        for own in [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            assert!(!rendered.headers.contains_key(own));
        }
        let is_ours = rendered.headers.contains_key(header::X_CONTENT_TYPE_OPTIONS);
        if let (true, Rendering::Value(asked, _)) = (is_ours, way) {
            let room = Limits { values: 2 * Limits::REPLY.values, depth: 200 };
            asked.read(&rendered.body, room).expect("what is rendered can be read");
        }
        if let (true, Rendering::Script(_)) = (is_ours, way) {
            assert!(rendered.body.starts_with(b"/**/f(") && rendered.body.ends_with(b");"));
        }
    }
}
