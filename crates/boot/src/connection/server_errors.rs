//! What the broker reproaches a connection with, logged once and in words that say what to do.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::{Event, ServerError};
use tracing::{error, warn};

/// The same error is logged again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The operation that is refused once and means silence from then on.
const SUBSCRIBE: &str = "subscribe";

/// Different errors that are remembered; more are not logged until one of these is old.
const REMEMBERED: usize = 64;

/// Logs what the broker complains about, for one connection: each thing once a minute at the most,
/// since a missing permission can show with every request.
#[derive(Debug)]
pub(crate) struct ServerErrorLog {
    /// The connection's name.
    name: String,
    who: Option<String>,
    logged: Mutex<HashMap<String, Instant>>,
}

/// What an event was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerEvent {
    /// No error.
    Other,
    /// An error, and that is all there is to do about it.
    Logged,
    /// We asked to hear a subject and never will.
    SubscriptionDenied(String),
}

/// What the broker does not let us do.
#[derive(Debug, PartialEq, Eq)]
struct PermissionViolation<'a> {
    operation: &'static str,
    subject: &'a str,
}

impl ServerErrorLog {
    pub(crate) fn new(name: &str, who: Option<&str>) -> Self {
        Self { name: name.to_owned(), who: who.map(str::to_owned), logged: Mutex::default() }
    }

    /// Logs an event if it is an error that was not logged lately; returns what it is.
    pub(crate) fn record(&self, event: &Event) -> ServerEvent {
        match event {
            Event::SlowConsumer(_) => {
                if self.is_news("slow", Instant::now()) {
                    warn!(name = %self.name, "the broker's messages come faster than they are \
                                              read; some were dropped");
                }
            }
            Event::ServerError(ServerError::Other(text)) => return self.record_text(text),
            Event::ServerError(error) => {
                if self.is_news(&error.to_string(), Instant::now()) {
                    warn!(name = %self.name, %error, "broker reports an error");
                }
            }
            _ => return ServerEvent::Other,
        }
        ServerEvent::Logged
    }

    fn record_text(&self, text: &str) -> ServerEvent {
        let Some(PermissionViolation { operation, subject }) = PermissionViolation::read(text)
        else {
            if self.is_news(text, Instant::now()) {
                warn!(name = %self.name, error = text, "broker reports an error");
            }
            return ServerEvent::Logged;
        };
        if self.is_news(&format!("{operation} {}", family(subject)), Instant::now()) {
            let user = self.who.as_deref().unwrap_or("the broker's default user");
            let hint = hint(operation, subject);
            error!(name = %self.name, user, operation, subject, "the broker does not permit it: \
                                                                 {hint}");
        }
        match operation {
            SUBSCRIBE => ServerEvent::SubscriptionDenied(subject.to_owned()),
            _ => ServerEvent::Logged,
        }
    }

    fn is_news(&self, what: &str, now: Instant) -> bool {
        let mut logged = self.logged.lock().expect("nothing panics while it holds this");
        logged.retain(|_, at| now.saturating_duration_since(*at) < AGAIN_AFTER);
        if logged.contains_key(what) || logged.len() >= REMEMBERED {
            return false;
        }
        logged.insert(what.to_owned(), now);
        true
    }
}

impl PermissionViolation<'_> {
    /// Reads `Permissions Violation for Publish to "subject"`, and its like for subscriptions.
    fn read(text: &str) -> Option<PermissionViolation<'_>> {
        const PUBLISH: &str = "Permissions Violation for Publish to ";
        const SUBSCRIPTION: &str = "Permissions Violation for Subscription to ";
        let after = |prefix| text.trim_matches('\'').strip_prefix(prefix);
        let (operation, rest) = match after(PUBLISH) {
            Some(rest) => ("publish", rest),
            None => (SUBSCRIBE, after(SUBSCRIPTION)?),
        };
        let subject = rest.trim_start_matches('"').split('"').next()?;
        Some(PermissionViolation { operation, subject })
    }
}

fn hint(operation: &str, subject: &str) -> &'static str {
    if subject.starts_with("$JS.API.STREAM.CREATE.") {
        return "a program makes what is not there: run `apiproxy setup` as an administrator \
                (docs/security.md)";
    }
    if subject.starts_with("$JS.API.DIRECT.GET.KV_natsway-") {
        return "the bucket was made by an older version: run `apiproxy setup` as an administrator, \
                then restart this program (docs/security.md)";
    }
    match (operation, subject.starts_with("_INBOX")) {
        ("publish", true) => {
            "a reply; add the asker's inbox prefix to this user's permissions, never \
             allow_responses (docs/security.md)"
        }
        ("subscribe", true) => {
            "an inbox; permit it, or set NATS_INBOX_PREFIX to the prefix that is permitted \
             (docs/security.md)"
        }
        _ => {
            "add the subject to this user's permissions, or use the user of this role \
             (docs/security.md)"
        }
    }
}

/// A subject without what differs from one message to the next: ids stand at its end, as in inboxes
/// and acknowledgements.
fn family(subject: &str) -> String {
    let kept = if subject.starts_with("_INBOX") || subject.starts_with("$JS.ACK") { 1 } else { 6 };
    subject.split('.').take(kept).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forbidden_is_read_from_the_servers_words() {
        for (text, operation, subject) in [
            ("Permissions Violation for Publish to \"svc.demo.blue\"", "publish", "svc.demo.blue"),
            ("Permissions Violation for Subscription to \"$SRV.PING\"", "subscribe", "$SRV.PING"),
            (
                "Permissions Violation for Subscription to \"svc.demo.blue\" using queue \"q\"",
                "subscribe",
                "svc.demo.blue",
            ),
        ] {
            assert_eq!(
                PermissionViolation::read(text),
                Some(PermissionViolation { operation, subject })
            );
        }
        assert_eq!(PermissionViolation::read("maximum payload violation"), None);
    }

    #[test]
    fn what_an_administrator_has_to_make_is_no_missing_permission() {
        for subject in [
            "$JS.API.STREAM.CREATE.KV_natsway-routes",
            "$JS.API.DIRECT.GET.KV_natsway-routes.$KV.natsway-routes.a",
        ] {
            assert!(hint("publish", subject).contains("`apiproxy setup`"), "{subject}");
        }
        assert!(!hint("publish", "svc.demo.blue").contains("setup"));
    }

    #[test]
    fn an_error_is_logged_once_a_minute_and_their_number_is_bounded() {
        let server_errors = ServerErrorLog::new("x", None);
        let start = Instant::now();
        assert!(server_errors.is_news("a", start));
        assert!(!server_errors.is_news("a", start + Duration::from_secs(59)));
        assert!(server_errors.is_news("a", start + Duration::from_secs(60)));
        let logged =
            (0..1_000).filter(|number| server_errors.is_news(&number.to_string(), start)).count();
        assert!(logged <= REMEMBERED, "{logged}");
    }

    #[test]
    fn inboxes_of_one_role_are_one_error() {
        assert_eq!(family("_INBOX_apiproxy.abc.1"), family("_INBOX_apiproxy.def.2"));
        assert_ne!(family("svc.demo.blue"), family("svc.demo.green"));
    }
}
