//! What a client takes, the lines of `Accept` behind a line with the query, is one of what there
//! is, or is refused; a function's name can be nothing but a name.

use http::{HeaderMap, HeaderValue, Method, header};
use natsway_args::Options;
use natsway_args::accept::{Rendering, rendering};

/// See the module.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let query = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let fields = lines.filter_map(|line| HeaderValue::from_bytes(line).ok());
    let head: HeaderMap = fields.map(|value| (header::ACCEPT, value)).collect();
    let options = Options { jsonp: true, ..Options::default() };
    match rendering(&options, &Method::GET, query, &head) {
        Ok(Rendering::Script(name)) => {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.$".contains(&byte);
            assert!(!name.is_empty() && name.len() <= 128 && name.bytes().all(is_plain), "{name}");
        }
        Ok(_) => {
            // A type that is refused by its name is never chosen.
            let none =
                HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*;q=0"))]);
            assert!(rendering(&options, &Method::POST, query, &none).is_err());
        }
        Err(problem) => assert!([400, 406].contains(&problem.status.as_u16()), "{problem:?}"),
    }
}
