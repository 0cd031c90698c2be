//! Messages that cannot be read: with headers that are not UTF-8, or no `Name: value`. The client
//! library ends the connection on which such a one comes, each time that it comes, so nothing
//! behind it would ever be read. No producer of ours sends any, but whoever may publish to the
//! subject can.

use async_nats::{Client, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

/// What the broker, or what it said, was wrong with.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The broker's answer about a message. It has the headers in Base64, which never end a connection.
#[derive(Deserialize)]
struct Answer {
    /// None where there is no such message.
    message: Option<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    seq: u64,
    #[serde(default)]
    hdrs: String,
}

/// The sequence of the first message for `filter` from sequence `from` on, if that one cannot be
/// read.
///
/// # Errors
/// The broker does not answer in time, or what it says is no answer.
pub(super) async fn first_unreadable(
    client: &Client,
    stream: &str,
    filter: &str,
    from: u64,
) -> Result<Option<u64>, Failure> {
    let question = json!({ "seq": from, "next_by_subj": filter }).to_string();
    let answer =
        client.request(format!("$JS.API.STREAM.MSG.GET.{stream}"), question.into()).await?;
    read_answer(&answer.payload)
}

/// The sequence of the message of an answer, if it cannot be read.
pub(super) fn read_answer(answer: &[u8]) -> Result<Option<u64>, Failure> {
    let Some(stored) = serde_json::from_slice::<Answer>(answer)?.message else { return Ok(None) };
    let headers = STANDARD.decode(&stored.hdrs)?;
    Ok((!is_readable(&headers)).then_some(stored.seq))
}

/// Whether the client library takes these headers.
fn is_readable(headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else { return false };
    let mut lines = text.split("\r\n").flat_map(|line| line.split('\n'));
    let is_field = |line: &str| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.parse::<HeaderName>().is_ok() && !value.contains('\r')
        })
    };
    // None at all is as readable as can be.
    lines.next().is_none_or(|version| version.is_empty() || version.starts_with("NATS/1.0"))
        && lines
            .all(|line| line.is_empty() || line.starts_with(char::is_whitespace) || is_field(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_utf8_with_a_name_and_a_value_each() {
        for headers in
            ["", "NATS/1.0\r\n\r\n", "NATS/1.0\r\nA: b\r\nC:\r\n d\r\n\r\n", "NATS/1.0 503\r\n\r\n"]
        {
            assert!(is_readable(headers.as_bytes()), "{headers:?}");
        }
        let wrong: [&[u8]; 4] = [b"A: caf\xe9", b"A b: c", b"none", b"A: b\rc"];
        for line in wrong {
            assert!(!is_readable(&[b"NATS/1.0\r\n", line, b"\r\n\r\n"].concat()), "{line:?}");
        }
        assert!(!is_readable(b"HTTP/1.1\r\nA: b\r\n\r\n"));
    }
}
