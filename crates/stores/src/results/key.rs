//! Where the result of a stored request is kept, by the id that its stream knows it by.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

use crate::definitions::RESULTS;

/// Bytes of the hash that a token shows: nobody finds a token without the id, nor two ids of one.
const TOKEN_BYTES: usize = 16;

/// Letters of a token.
const TOKEN_LETTERS: usize = 2 * TOKEN_BYTES;

/// The longest name of a route.
const ROUTE_LETTERS: usize = 64;

/// What the subjects begin with by which gateways hear that a result is there.
const NEWS_PREFIX: &str = "natsway.result";

/// The place of one result: the route's name, and a token that only the request's id gives.
///
/// Both are checked, so they are a whole token of a subject each and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResultKey {
    route: String,
    token: String,
}

impl ResultKey {
    /// Returns the key of the request that its stream knows by `message_id`: the route's name, `/`
    /// or `:`, and more. `None` for any other id.
    pub fn of_message(message_id: &str) -> Option<Self> {
        let mark = message_id.find(['/', ':'])?;
        let (route, rest) = message_id.split_at(mark);
        let hash = digest(&SHA256, message_id.as_bytes());
        let token = hash.as_ref()[..TOKEN_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        (is_route(route) && rest.len() > 1).then(|| Self { route: route.to_owned(), token })
    }

    /// Returns the key that a status URL of a route names, if `token` can be one.
    pub fn of_status(route: &str, token: &str) -> Option<Self> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_token = token.len() == TOKEN_LETTERS && token.bytes().all(is_hex);
        (is_token && is_route(route))
            .then(|| Self { route: route.to_owned(), token: token.to_owned() })
    }

    /// The name of the route.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// What a status URL ends with: 32 hexadecimal digits.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The subject of the bucket's stream that has the result.
    pub fn subject(&self) -> String {
        format!("$KV.{RESULTS}.{self}")
    }

    /// The subject on which a worker says that the result is there.
    pub fn news_subject(&self) -> String {
        format!("{NEWS_PREFIX}.{self}")
    }
}

impl fmt::Display for ResultKey {
    /// The key in the bucket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.route, self.token)
    }
}

fn is_route(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=ROUTE_LETTERS).contains(&name.len()) && name.bytes().all(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_an_id_is_the_one_that_the_page_of_the_wire_shows() {
        let key = ResultKey::of_message("reports/8e03978e-40d5-43dd-bc93-6894a57f9324").unwrap();
        assert_eq!(key.route(), "reports");
        assert_eq!(key.token(), "4fc17aacb0fd71a383c95925d8660e56");
        assert_eq!(key.subject(), format!("$KV.natsway-results.reports.{}", key.token()));
        assert_eq!(key.news_subject(), format!("natsway.result.reports.{}", key.token()));
        assert_eq!(ResultKey::of_status("reports", key.token()), Some(key));
    }

    #[test]
    fn the_ids_of_two_routes_and_of_two_requests_never_share_a_place() {
        let key = |id: &str| ResultKey::of_message(id).unwrap();
        assert_ne!(key("a/x"), key("b/x"));
        assert_ne!(key("a/x").token(), key("b/x").token(), "a token is its route's alone");
        assert_ne!(key("a/x").token(), key("a:x").token());
        assert_eq!(key("a/b/c").route(), "a", "what follows the first mark is the client's");
    }

    #[test]
    fn what_is_no_id_of_a_route_has_no_place() {
        for id in ["", "a", "a/", "a:", "/x", ":x", "a.b/x", "a b/x", "*/x", ">/x", "\u{e9}/x"] {
            assert_eq!(ResultKey::of_message(id), None, "{id:?}");
        }
        let long = "a".repeat(ROUTE_LETTERS + 1);
        assert_eq!(ResultKey::of_message(&format!("{long}/x")), None);
    }

    #[test]
    fn what_a_client_says_is_a_place_only_as_hexadecimal_digits() {
        let token = "0123456789abcdef0123456789abcdef";
        assert!(ResultKey::of_status("a", token).is_some());
        for wrong in [
            "",
            "*",
            ">",
            "0123456789abcdef0123456789abcde",
            "0123456789abcdef0123456789abcdef0",
            "0123456789ABCDEF0123456789abcdef",
            "0123456789abcdef.0123456789abcde",
            "0123456789abcdef0123456789abcde*",
            "%30123456789abcdef0123456789abcde",
        ] {
            assert_eq!(ResultKey::of_status("a", wrong), None, "{wrong:?}");
        }
        assert_eq!(ResultKey::of_status("a.b", token), None);
    }
}
