//! Fields that concern one connection only: RFC 9110 section 7.6.1.

use http::header::{self, HeaderMap, HeaderName};

/// Whether `Connection` names a field, which makes it hop-by-hop.
pub(super) fn is_listed(connection: &str, name: &HeaderName) -> bool {
    connection.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(name.as_str()))
}

/// Everything that `Connection` lists, in one string; empty as a rule.
pub(super) fn connection_lists(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.filter(|value| !is_plain_connection(value)).collect::<Vec<_>>().join(",")
}

fn is_plain_connection(value: &str) -> bool {
    value.eq_ignore_ascii_case("keep-alive") || value.eq_ignore_ascii_case("close")
}

/// Whether somebody says `TE: trailers`.
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}
