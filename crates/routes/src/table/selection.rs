//! Which version a particular request gets: by a rule, by a key that sticks, or by weight alone.

use std::fmt;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};

use super::Split;

/// What of a request a rule looks at, or a version sticks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A header field's first value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// The client's address.
    Client,
}

/// Requests with that value of that key get that version, whatever its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where to look.
    pub key: Key,
    /// The value; `None` for any.
    pub value: Option<String>,
    /// The version's place in its [`Split`].
    pub target: usize,
}

/// How a route chooses among its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The first that fits decides.
    pub rules: Vec<Rule>,
    /// Otherwise requests with the same value stay with one version, as far as the weights allow.
    pub sticky: Option<Key>,
}

/// What decides which version a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<'s> {
    /// A rule that it fits.
    Rule(&'s Rule),
    /// The value that it has of the route's sticky key.
    Sticky(&'s Key, String),
    /// Chance, by the weights.
    Weight,
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Rule(Rule { key, value: Some(value), .. }) => {
                write!(f, "a rule for {key} = {value}")
            }
            Cause::Rule(Rule { key, value: None, .. }) => write!(f, "a rule for any {key}"),
            Cause::Sticky(key, value) => write!(f, "sticky to {key}, here {value}"),
            Cause::Weight => f.write_str("the weights"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Client => f.write_str("the client's address"),
        }
    }
}

impl Key {
    /// Its value in a request.
    fn value(&self, headers: &HeaderMap, client: Option<IpAddr>) -> Option<String> {
        match self {
            Self::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
            Self::Cookie(name) => cookie(headers, name).map(str::to_owned),
            Self::Client => client.map(|client| client.to_canonical().to_string()),
        }
    }
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    let mut pairs =
        fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(have, _)| *have == name).map(|(_, value)| value)
}

impl Selection {
    /// The version's place, by rule, by the sticky key, or by the random number; `None` when none
    /// takes traffic. `client` is the client's address, where there is one.
    pub fn choose(
        &self,
        split: &Split,
        headers: &HeaderMap,
        client: impl Into<Option<IpAddr>>,
        random: u32,
    ) -> Option<usize> {
        match self.cause(headers, client) {
            Cause::Rule(rule) => Some(rule.target),
            Cause::Sticky(_, value) => split.pick(spread(&value)),
            Cause::Weight => split.pick(random),
        }
    }

    /// What decides which version a request gets.
    pub fn cause(&self, headers: &HeaderMap, client: impl Into<Option<IpAddr>>) -> Cause<'_> {
        let client = client.into();
        let fits = |rule: &&Rule| match (rule.key.value(headers, client), &rule.value) {
            (Some(have), Some(wanted)) => have == *wanted,
            (have, None) => have.is_some(),
            (None, Some(_)) => false,
        };
        if let Some(rule) = self.rules.iter().find(fits) {
            return Cause::Rule(rule);
        }
        let sticky = self.sticky.as_ref().and_then(|key| Some((key, key.value(headers, client)?)));
        sticky.map_or(Cause::Weight, |(key, value)| Cause::Sticky(key, value))
    }
}

/// A hash that is the same at every gateway and in every release: FNV-1a, then mixed so that all of
/// its bits count.
fn spread(value: &str) -> u32 {
    let fnv = value
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mixed = (fnv ^ fnv >> 16).wrapping_mul(0x85eb_ca6b);
    let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use natsway_wire::QueueGroup;

    use super::super::Target;
    use super::*;

    fn split(weights: [u32; 2]) -> Split {
        let target = |(index, weight): (usize, u32)| Target {
            version: ["blue", "green"][index].to_owned(),
            subject: format!("svc.x.{index}").parse().unwrap(),
            queue_group: QueueGroup::default(),
            weight,
        };
        Split::new(weights.into_iter().enumerate().map(target).collect()).unwrap()
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())
        };
        fields.iter().map(pair).collect()
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_rule_chooses_even_a_version_without_weight() {
        let always = Rule {
            key: Key::Header("x-canary".parse().unwrap()),
            value: Some("always".to_owned()),
            target: 1,
        };
        let any = Rule { key: Key::Cookie("beta".to_owned()), value: None, target: 1 };
        let selection = Selection { rules: vec![always, any], sticky: None };
        let choose =
            |fields: &[(&str, &str)]| selection.choose(&split([1, 0]), &headers(fields), CLIENT, 0);
        assert_eq!(choose(&[("x-canary", "always")]), Some(1));
        assert_eq!(choose(&[("x-canary", "never")]), Some(0));
        assert_eq!(choose(&[("cookie", "a=1; beta=2")]), Some(1));
        assert_eq!(choose(&[("cookie", "alpha=beta")]), Some(0));
    }

    #[test]
    fn a_key_sticks_and_stays_where_it_is_when_its_version_grows() {
        let selection =
            Selection { rules: vec![], sticky: Some(Key::Header("x-user".parse().unwrap())) };
        let choose = |weights, user: usize, random| {
            selection.choose(
                &split(weights),
                &headers(&[("x-user", &user.to_string())]),
                CLIENT,
                random,
            )
        };
        let mut green = 0;
        for user in 0..10_000 {
            let small = choose([90, 10], user, 0);
            assert_eq!(small, choose([90, 10], user, u32::MAX), "whatever the random number");
            if small == Some(1) {
                green += 1;
                assert_eq!(choose([50, 50], user, 0), Some(1), "growing takes nobody back");
            }
        }
        assert!((800..1_200).contains(&green), "{green} of 10,000 with a tenth of the weight");
    }

    #[test]
    fn without_its_key_a_request_goes_by_weight() {
        let selection =
            Selection { rules: vec![], sticky: Some(Key::Cookie("session".to_owned())) };
        let choose = |random| selection.choose(&split([1, 1]), &HeaderMap::new(), CLIENT, random);
        assert_eq!((choose(0), choose(u32::MAX)), (Some(0), Some(1)));
    }

    #[test]
    fn without_a_client_nothing_sticks_to_its_address() {
        let selection = Selection { rules: vec![], sticky: Some(Key::Client) };
        let choose =
            |client, random| selection.choose(&split([1, 1]), &HeaderMap::new(), client, random);
        assert_eq!((choose(None, 0), choose(None, u32::MAX)), (Some(0), Some(1)));
        assert_eq!(choose(Some(CLIENT), 0), choose(Some(CLIENT), u32::MAX));
    }

    #[test]
    fn the_hash_is_the_same_in_every_release() {
        assert_eq!(
            [spread(""), spread("user-1"), spread("127.0.0.1")],
            [0xab3e_7c0b, 0x778f_8aec, 0x8db9_64bf]
        );
    }
}
