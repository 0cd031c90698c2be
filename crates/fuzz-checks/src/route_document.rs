//! A route's document that can be read is written again and reads the same; whether it is valid
//! does not change by that.

use natsway_routes::document::RouteDocument;

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(mut document) = RouteDocument::from_json(data) else { return };
    // What is written says every weight.
    document.fill_in_weights(None);
    let again = RouteDocument::from_json(document.to_json().as_bytes()).expect("it is ours");
    assert_eq!(again, document);
    for prefix in [None, Some("svc")] {
        assert_eq!(document.check(prefix).is_ok(), again.check(prefix).is_ok());
    }
}
