//! What there is to scale: names that match a pattern, looked up live.

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde::Deserialize;

use super::ANSWER_WITHIN;
use super::services::gather;

/// A name in which each `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Whether it stands for more than one name.
    pub fn is_wild(&self) -> bool {
        self.0.contains('*')
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for `name`.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut last = None;
        for part in parts {
            if let Some(part) = last.replace(part) {
                match rest.find(part) {
                    Some(at) => rest = &rest[at + str::len(part)..],
                    None => return false,
                }
            }
        }
        match last {
            Some(last) => rest.ends_with(last),
            None => rest.is_empty(),
        }
    }
}

/// The consumers of `stream` that match, in order.
///
/// # Errors
/// A sentence, when the broker does not say.
pub async fn consumers(
    client: &Client,
    stream: &str,
    pattern: &Pattern,
) -> Result<Vec<String>, String> {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER_WITHIN);
    let list = async {
        let stream = context.get_stream(stream).await.map_err(|error| error.to_string())?;
        stream
            .consumer_names()
            .try_collect::<Vec<String>>()
            .await
            .map_err(|error| error.to_string())
    };
    let names = tokio::time::timeout(2 * ANSWER_WITHIN, list).await;
    let names = names.map_err(|_| "the broker does not answer".to_owned())?;
    let mut names = names.map_err(|error| format!("consumers of stream {stream}: {error}"))?;
    names.retain(|name| pattern.matches(name));
    names.sort();
    Ok(names)
}

/// The services (ADR-32) that match and have an instance that answers, in order.
///
/// # Errors
/// A sentence, when nobody can be asked.
pub async fn services(client: &Client, pattern: &Pattern) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Pong {
        name: String,
    }
    if client.connection_state() != State::Connected {
        return Err("the broker is away".to_owned());
    }
    let pongs: Vec<Pong> = gather(client, "$SRV.PING".to_owned(), 0).await?.answers;
    // Whoever answers says what it likes; names become subjects and paths, so only those of ADR-32
    // count.
    let is_name = |name: &String| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let names = pongs.into_iter().map(|pong| pong.name);
    let mut names: Vec<String> =
        names.filter(|name| is_name(name) && pattern.matches(name)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("", "", true),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("work-*", "work-a", true),
            ("work-*", "rework-a", false),
            ("*-work", "a-work", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} and {name}");
        }
    }
}
