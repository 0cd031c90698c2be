//! An offer of a tunnel that can be read is written again and reads the same.

use natsway_wire::offer::Offer;

/// See the module.
pub fn check(data: &[u8]) {
    if let Ok(offer) = Offer::decode(data) {
        assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
    }
}
