//! The parts of a form, of which the boundary is `x`, become arguments or are refused.

use natsway_args::Options;

use crate::args_form::{LIMITS, merged};

/// See the module.
pub fn check(data: &[u8]) {
    let options = Options {
        nested: true,
        headers: vec![http::header::AUTHORIZATION],
        limits: LIMITS,
        ..Options::default()
    };
    merged(None, "multipart/form-data; boundary=x", data, &options);
}
