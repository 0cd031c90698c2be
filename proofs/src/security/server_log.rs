//! What the broker's log says of its clients.

use super::permissions::Direction;

/// What the broker did not permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// Whom.
    pub(super) role: String,
    /// `Publish` or `Subscription`.
    pub(super) operation: &'static str,
    /// Where.
    pub(super) subject: String,
}

impl Violation {
    /// Reads `... user:NAME" - Publish Violation - Subject "a.b"` of the broker's log.
    pub(super) fn read(line: &str) -> Option<Self> {
        let of = |operation: &'static str| {
            let (before, rest) = line.split_once(&format!("\" - {operation} Violation - "))?;
            let (_, role) = before.rsplit_once("user:")?;
            let (subject, _) = rest.split_once("Subject \"")?.1.split_once('"')?;
            Some(Self { role: role.to_owned(), operation, subject: subject.to_owned() })
        };
        of("Publish").or_else(|| of("Subscription"))
    }
}

/// What somebody did at the broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Operation {
    /// Who.
    pub(super) user: String,
    /// What.
    pub(super) direction: Direction,
    /// Where.
    pub(super) subject: String,
    /// In which queue group; empty without.
    pub(super) queue: String,
}

impl Operation {
    /// Reads `... user:NAME" - <<- [SUB subject queue sid]` of the broker's trace.
    pub(super) fn read(line: &str) -> Option<Self> {
        let (before, rest) = line.split_once("\" - <<- [")?;
        let (_, user) = before.rsplit_once("user:")?;
        let mut words = rest.split(']').next()?.split_whitespace();
        let verb = words.next()?;
        let words: Vec<&str> = words.collect();
        let (direction, queue) = match (verb, words.len()) {
            ("PUB" | "HPUB", _) => (Direction::Publish, ""),
            ("SUB", 3) => (Direction::Subscribe, words[1]),
            ("SUB", _) => (Direction::Subscribe, ""),
            _ => return None,
        };
        let subject = (*words.first()?).to_owned();
        Some(Self { user: user.to_owned(), direction, subject, queue: queue.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_log_says_who_did_what_and_what_was_not_permitted() {
        let log = r#"[7] [TRC] 127.0.0.1:5 - cid:9 - "v1:rust" - "user:team-a-worker" - <<- [SUB svc.> q 3]"#;
        let operation = Operation::read(log).unwrap();
        assert_eq!((operation.user.as_str(), operation.queue.as_str()), ("team-a-worker", "q"));
        assert_eq!(
            (operation.direction, operation.subject.as_str()),
            (Direction::Subscribe, "svc.>")
        );
        let log = r#"127.0.0.1:5 - cid:9 - "user:worker" - Publish Violation - Subject "a.b", x"#;
        let violation = Violation::read(log).unwrap();
        assert_eq!((violation.role.as_str(), violation.subject.as_str()), ("worker", "a.b"));
        assert_eq!(Violation::read("[INF] Server is ready"), None);
    }
}
