//! What a stream says to a message: its acknowledgement, or why it does not store it. Pure.

use natsway_wire::native::NativeReply;
use serde::Deserialize;

use crate::attempt::{Answer, AttemptError};

/// A message that is in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The stream.
    pub stream: String,
    /// The message's place in it: of a duplicate, that of the first.
    pub sequence: u64,
    /// The stream had a message of that id before this one was sent.
    pub duplicate: bool,
}

/// Why a message was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// There is no connection to the broker, so nothing was published.
    NotConnected,
    /// No stream listens on the subject, or none that has a leader.
    NoStream,
    /// Nothing came back, or the connection broke.
    NotAcknowledged,
    /// Somebody who is no stream answered.
    NotAnAck,
    /// Another stream than the expected one listens on the subject.
    WrongStream,
    /// The stream, or what JetStream has for it, is full.
    StreamFull,
    /// The stream takes no message as large.
    TooLarge,
    /// The stream is there and cannot store now.
    Unavailable,
    /// A message of the same id is on its way into the stream.
    InProcess,
    /// The stream expects another message before this one.
    Conflict,
    /// Any other refusal.
    Refused,
}

impl PublishError {
    /// Every kind, for metrics.
    pub const ALL: [Self; 11] = [
        Self::NotConnected,
        Self::NoStream,
        Self::NotAcknowledged,
        Self::NotAnAck,
        Self::WrongStream,
        Self::StreamFull,
        Self::TooLarge,
        Self::Unavailable,
        Self::InProcess,
        Self::Conflict,
        Self::Refused,
    ];

    /// Whether the message may be in a stream all the same.
    pub fn may_be_stored(self) -> bool {
        matches!(self, Self::NotAcknowledged | Self::NotAnAck | Self::InProcess)
    }

    /// Whether the next attempt may do better.
    pub(super) fn is_passing(self) -> bool {
        matches!(
            self,
            Self::NotConnected
                | Self::NoStream
                | Self::NotAcknowledged
                | Self::Unavailable
                | Self::InProcess
        )
    }

    /// The name that metrics and problems use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::NoStream => "no_stream",
            Self::NotAcknowledged => "not_acknowledged",
            Self::NotAnAck => "not_an_ack",
            Self::WrongStream => "wrong_stream",
            Self::StreamFull => "stream_full",
            Self::TooLarge => "too_large",
            Self::Unavailable => "stream_unavailable",
            Self::InProcess => "in_process",
            Self::Conflict => "stream_conflict",
            Self::Refused => "stream_refused",
        }
    }

    /// Reads the error of an acknowledgement; the numbers are JetStream's own.
    fn of(error: &ApiError) -> Self {
        match error.err_code {
            10_060 => Self::WrongStream,
            // Limits of the account, of the servers' memory and disks.
            10_002 | 10_023 | 10_028 | 10_047 => Self::StreamFull,
            // Any failure to store: of a full stream, "maximum messages exceeded" and its like.
            10_077 if error.description.starts_with("maximum ") => Self::StreamFull,
            10_077 | 10_008 | 10_009 | 10_118 | 10_167 => Self::Unavailable,
            10_054 | 10_097 => Self::TooLarge,
            10_158 => Self::InProcess,
            10_070 | 10_071 => Self::Conflict,
            _ => Self::Refused,
        }
    }
}

/// Read tolerantly: newer brokers say more.
#[derive(Deserialize)]
struct Ack {
    error: Option<ApiError>,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// Reads what came back for a message.
pub(super) fn read(answer: &Answer) -> Result<Stored, PublishError> {
    match answer {
        Answer::Replied(NativeReply::Response(response)) => read_ack(&response.body),
        Answer::Failed(AttemptError::NotConnected) => Err(PublishError::NotConnected),
        Answer::Failed(AttemptError::NoResponders) => Err(PublishError::NoStream),
        Answer::Failed(_) => Err(PublishError::NotAcknowledged),
        Answer::Replied(NativeReply::ServiceError { .. })
        | Answer::Continues(_)
        | Answer::Streamed(_)
        | Answer::Unreadable(_) => Err(PublishError::NotAnAck),
    }
}

/// Reads an acknowledgement.
///
/// # Errors
/// The stream's refusal, or [`PublishError::NotAnAck`].
pub fn read_ack(payload: &[u8]) -> Result<Stored, PublishError> {
    let ack: Ack = serde_json::from_slice(payload).map_err(|_| PublishError::NotAnAck)?;
    if let Some(error) = ack.error {
        return Err(PublishError::of(&error));
    }
    if ack.stream.is_empty() || ack.seq == 0 {
        return Err(PublishError::NotAnAck);
    }
    Ok(Stored { stream: ack.stream, sequence: ack.seq, duplicate: ack.duplicate })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(err_code: u32, description: &str) -> PublishError {
        let error = serde_json::json!({
            "error": { "code": 503, "err_code": err_code, "description": description },
            "stream": "HOOKS", "seq": 0,
        });
        read_ack(error.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn an_ack_says_where_the_message_is() {
        let stored = |duplicate| Stored { stream: "HOOKS".to_owned(), sequence: 7, duplicate };
        assert_eq!(read_ack(br#"{"stream":"HOOKS","seq":7}"#), Ok(stored(false)));
        let duplicate = br#"{"stream":"HOOKS","seq":7,"duplicate":true,"domain":"x","val":"1"}"#;
        assert_eq!(read_ack(duplicate), Ok(stored(true)));
    }

    #[test]
    fn what_is_no_ack_is_not_taken_for_one() {
        for payload in ["", "ok", "{}", "[]", r#"{"stream":"HOOKS"}"#, r#"{"seq":7}"#, "\u{91}"] {
            assert_eq!(read_ack(payload.as_bytes()), Err(PublishError::NotAnAck), "{payload:?}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        for (code, description, kind) in [
            (10_060, "expected stream does not match", PublishError::WrongStream),
            (10_077, "maximum messages exceeded", PublishError::StreamFull),
            (10_077, "maximum bytes exceeded", PublishError::StreamFull),
            (10_077, "raft: not leader", PublishError::Unavailable),
            (10_047, "insufficient storage resources available", PublishError::StreamFull),
            (10_054, "message size exceeds maximum allowed", PublishError::TooLarge),
            (10_158, "duplicate message id is in process", PublishError::InProcess),
            (10_071, "wrong last sequence: 1", PublishError::Conflict),
            (10_109, "invalid operation on sealed stream", PublishError::Refused),
            (0, "", PublishError::Refused),
        ] {
            assert_eq!(refused(code, description), kind, "{code} {description}");
        }
    }

    #[test]
    fn what_may_be_stored_is_known_by_its_kind() {
        let unknown = PublishError::ALL.into_iter().filter(|error| error.may_be_stored());
        let names: Vec<&str> = unknown.map(PublishError::as_str).collect();
        assert_eq!(names, ["not_acknowledged", "not_an_ack", "in_process"]);
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(stored) = read_ack(&payload) {
                prop_assert!(stored.sequence > 0 && !stored.stream.is_empty());
            }
        }
    }
}
