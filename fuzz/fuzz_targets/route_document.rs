//! A route's document that can be read is written again and reads the same; whether it is valid
//! does not change by that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use natsway_routes::document::RouteDocument;

fuzz_target!(|data: &[u8]| {
    let Ok(document) = RouteDocument::from_json(data) else { return };
    let again = RouteDocument::from_json(document.to_json().as_bytes()).expect("it is ours");
    assert_eq!(again, document);
    for prefix in [None, Some("svc")] {
        assert_eq!(document.check(prefix).is_ok(), again.check(prefix).is_ok());
    }
});
