//! Subjects and messages by which gateways and workers keep house, all below [`CONTROL_PREFIX`].
//!
//! What is answered is answered to an inbox ([`is_inbox`]) and nowhere else. What comes with
//! another reply subject is ignored.
//!
//! A command is `[1, command, detail]`: like an envelope without flags, its unknown elements are
//! skipped.
//!
//! | subject | who listens | message |
//! |---|---|---|
//! | `natsway.worker.<instance>` | that worker instance | [`WorkerCommand`] |
//! | `natsway.present.<service subject>` | every worker of that subject | empty, with a reply subject: each that is not leaving answers with its id; an id, without: that instance has come |
//! | `natsway.tombstone.<service subject>` | every gateway | queue group name; each answers once it stands in for the subject |
//! | `natsway.drain.<service subject>` | every worker of that subject | empty; each that serves nothing else leaves, and answers with its id first |
//! | `natsway.scale-out.<service subject>`, `natsway.scale-in...` | one worker of that subject that can obey | a [`Directive`], JSON; it answers how many subscription sets it has then |
//! | `natsway.metrics.<source>.<sender>` | gateways, provisioners, command lines | the metrics of whoever sends requests, each second; JSON |
//! | `natsway.report` | whoever sends requests | empty: each publishes all of its metrics, where it always does |

use bytes::Bytes;

use crate::elements::Elements;
use crate::msgpack::{Reader, put_array, put_str, put_u16};
use crate::{CONTROL_PREFIX, Error, ErrorKind, Limits, Subject, WIRE_VERSION};

/// What a gateway tells one worker instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerCommand {
    /// Drop the request that answers to this reply subject: nobody waits for it.
    Cancel {
        /// The reply subject of the request.
        reply: String,
    },
    /// Answer, to show that the instance lives.
    Ping,
}

/// What one of a service's workers is told to do about its subscription sets.
///
/// The message is `{"directive":"scale-out"}`, the subject says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Open one more.
    ScaleOut,
    /// Drain the newest.
    ScaleIn,
}

const CANCEL: u16 = 0;
const PING: u16 = 1;

/// The subject on which a worker instance takes [`WorkerCommand`]s.
pub fn worker_subject(instance: &str) -> String {
    format!("{CONTROL_PREFIX}.worker.{instance}")
}

/// The subject on which the workers of a service subject that can obey a directive share it.
pub fn directive_subject(directive: Directive, service: &Subject) -> String {
    format!("{CONTROL_PREFIX}.{directive}.{service}")
}

/// The subject on which the members of a service subject say that they are there.
pub fn presence_subject(service: &Subject) -> String {
    format!("{CONTROL_PREFIX}.present.{service}")
}

/// The subject on which gateways are asked to stand in for the last member of a service subject.
pub fn tombstone_subject(service: &Subject) -> String {
    format!("{}.{service}", tombstone_prefix())
}

/// What [`tombstone_subject`] puts before the service subject, without the dot.
pub fn tombstone_prefix() -> String {
    format!("{CONTROL_PREFIX}.tombstone")
}

/// The subject on which the workers of a service subject are asked to leave.
pub fn drain_subject(service: &Subject) -> String {
    format!("{CONTROL_PREFIX}.drain.{service}")
}

/// The source of gateways' metrics: see [`metrics_subject`].
pub const GATEWAY_SOURCE: &str = "gateway";

/// The source of the metrics of services that call others, in the account of the gateways.
pub const CALLER_SOURCE: &str = "caller";

/// The subject on which a sender of requests publishes its metrics; `*` in place of either is all
/// of them.
///
/// Who may publish below a `source` is for the broker to say: by permissions, or by the import that
/// maps what comes out of another account. So the source is what is known of a sender that the
/// sender did not say itself.
pub fn metrics_subject(source: &str, sender: &str) -> String {
    format!("{CONTROL_PREFIX}.metrics.{source}.{sender}")
}

/// Splits what [`metrics_subject`] and [`old_metrics_subject`] make into source and sender; the
/// latter has no source.
pub fn metrics_sender(subject: &str) -> Option<(&str, &str)> {
    let (kind, sender) =
        subject.strip_prefix(CONTROL_PREFIX)?.strip_prefix('.')?.split_once('.')?;
    match kind {
        "metrics" => sender.split_once('.').filter(|(_, sender)| !sender.contains('.')),
        "figures" => Some(("", sender)).filter(|(_, sender)| !sender.contains('.')),
        _ => None,
    }
}

/// The subject on which programs before 0.2 publish their metrics: anybody's, as far as the broker
/// knows.
pub fn old_metrics_subject(sender: &str) -> String {
    format!("{CONTROL_PREFIX}.figures.{sender}")
}

/// The subject on which all senders of requests are asked for their metrics.
pub fn report_subject() -> String {
    format!("{CONTROL_PREFIX}.report")
}

/// Whether a reply subject is an inbox, or what the broker puts in an inbox's place for a question
/// from another account.
///
/// Whoever asks names the subject of the answer, and the broker lets a program publish wherever its
/// own permissions say. So a program that answered anywhere would lend them to whoever may ask: its
/// answer could be a route, or have workers leave. The same goes for what JetStream delivers or
/// answers on a subject that somebody named: it has another reply subject, or none.
///
/// ```
/// use natsway_wire::control::is_inbox;
///
/// assert!(is_inbox("_INBOX_apiproxy.a.b") && is_inbox("_R_.x.y"));
/// assert!(!is_inbox("$KV.natsway-routes.demo") && !is_inbox("natsway.drain.svc.demo.blue"));
/// ```
pub fn is_inbox(reply: &str) -> bool {
    reply.starts_with("_INBOX") || reply.starts_with("_R_.")
}

/// Checks an instance id from the wire, since it becomes a token of a subject, or two:
/// `<namespace>.<instance>`.
pub(crate) fn instance_id(bytes: &[u8]) -> Result<String, Error> {
    const LONGEST: usize = 64;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_token = |token: &[u8]| !token.is_empty() && token.iter().all(plain);
    let mut tokens = bytes.split(|byte| *byte == b'.');
    if bytes.len() > LONGEST || tokens.clone().count() > 2 || !tokens.all(is_token) {
        return Err(Error::malformed("instance"));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::malformed("instance"))
}

/// Whether a broker put a reply subject of its own in the place of the sender's, since they are in
/// different accounts.
pub fn is_mapped(reply: &str) -> bool {
    reply.starts_with("_R_.")
}

impl std::fmt::Display for Directive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ScaleOut => "scale-out",
            Self::ScaleIn => "scale-in",
        })
    }
}

impl WorkerCommand {
    /// Writes the command.
    pub fn encode(&self) -> Bytes {
        let (code, detail) = match self {
            Self::Cancel { reply } => (CANCEL, reply.as_str()),
            Self::Ping => (PING, ""),
        };
        let mut out = Vec::with_capacity(8 + detail.len());
        put_array(&mut out, 3);
        put_u16(&mut out, u16::from(WIRE_VERSION));
        put_u16(&mut out, code);
        put_str(&mut out, detail);
        out.into()
    }

    /// Reads a command.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a command or a version that is not known here, the other
    /// kinds for anything that is not a command.
    pub fn decode(message: &[u8]) -> Result<Self, Error> {
        let mut elements = Elements::begin(message, Limits::DEFAULT, "command")?;
        elements.version()?;
        let code = elements.required("command", Reader::unsigned)?;
        let detail = elements.optional("detail", Reader::field)?;
        elements.finish()?;
        if code == u64::from(CANCEL) {
            let reply =
                std::str::from_utf8(detail).map_err(|_| Error::malformed("reply subject"))?;
            return Ok(Self::Cancel { reply: reply.to_owned() });
        }
        if code == u64::from(PING) {
            return Ok(Self::Ping);
        }
        Err(Error::new(ErrorKind::Unsupported, "command"))
    }
}
