//! Reads `deploy/nats/permissions.conf` and its extras as lines: who may do what, and the files
//! without any one of these. They are the only place where permissions are written down.

use std::fmt;
use std::path::PathBuf;

use natsway_testkit::repository_root;

/// The roles of `permissions.conf`, each a user of that name.
pub(super) const ROLES: [&str; 10] = [
    "admin",
    "gateway",
    "worker",
    "caller",
    "operator",
    "provisioner",
    "groups",
    "member",
    "producer",
    "consumer",
];

/// The roles of `permissions-extra.conf`, and in whose place each of them is.
const INSTEAD: [(&str, &str); 2] = [("shared", "consumer"), ("scout", "provisioner")];

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Direction {
    /// Messages to a subject.
    Publish,
    /// A subscription.
    Subscribe,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Publish, Self::Subscribe];

    fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// One line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Permission {
    /// Whose it is.
    pub(super) role: String,
    /// What it is for.
    pub(super) direction: Direction,
    /// The subject, and a queue group behind a space.
    pub(super) subject: String,
    line: usize,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.role, self.direction.as_str(), self.subject)
    }
}

impl Permission {
    /// The user who has it.
    pub(super) fn user(&self) -> &str {
        replaced(&self.role).unwrap_or(&self.role)
    }

    /// The subject without its queue group.
    pub(super) fn pattern(&self) -> &str {
        self.subject.split(' ').next().unwrap_or(&self.subject)
    }

    /// The queue group that it is for; empty without.
    pub(super) fn queue(&self) -> &str {
        self.subject.split_once(' ').map_or("", |(_, queue)| queue)
    }

    /// Whether an operation needs this permission or another one like it.
    pub(super) fn covers(&self, direction: Direction, subject: &str, queue: &str) -> bool {
        direction == self.direction
            && (self.queue().is_empty() || self.queue() == queue)
            && matches(self.pattern(), subject)
    }
}

/// In whose place an extra role is.
pub(super) fn replaced(role: &str) -> Option<&'static str> {
    INSTEAD.iter().find(|(extra, _)| *extra == role).map(|(_, usual)| *usual)
}

/// Whether the file says that something is permitted.
pub(super) fn may(own: &[Permission], direction: Direction, subject: &str, queue: &str) -> bool {
    own.iter().any(|permission| permission.covers(direction, subject, queue))
}

/// Whether the broker takes a subject, which may have wildcards itself, for one within a pattern.
/// `*` at the end admits `>`, since it compares them as tokens.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut had = subject.split('.');
    for token in pattern.split('.') {
        match (token, had.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(had)) if token == had => {}
            _ => return false,
        }
    }
    had.next().is_none()
}

/// A subject that a pattern covers.
pub(super) fn concrete(pattern: &str) -> String {
    let token = |token| match token {
        "*" => "x",
        ">" => "x.y",
        token => token,
    };
    pattern.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// A file of the broker's configuration.
pub(super) fn shipped(name: &str) -> String {
    let path = path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where it is.
pub(super) fn path(name: &str) -> PathBuf {
    repository_root().join("deploy/nats").join(name)
}

/// `permissions.conf`.
pub(super) fn usual() -> String {
    shipped("permissions.conf")
}

fn extra() -> String {
    shipped("permissions-extra.conf")
}

/// All permissions of both files, in their order.
pub(super) fn read_all() -> Vec<Permission> {
    [read(&usual()), read(&extra())].concat()
}

/// Those of one role.
pub(super) fn of_role(role: &str) -> Vec<Permission> {
    read_all().into_iter().filter(|permission| permission.role == role).collect()
}

/// The roles of both files, sorted.
pub(super) fn roles() -> Vec<String> {
    let mut roles: Vec<String> = read_all().into_iter().map(|permission| permission.role).collect();
    roles.sort();
    roles.dedup();
    roles
}

/// The broker's permissions with a role's user in force: for an extra one, its block in place of
/// the usual one.
pub(super) fn text_for(role: &str) -> String {
    match replaced(role) {
        None => usual(),
        Some(usually) => in_place(&extra(), role, usually, &usual()),
    }
}

/// What [`text_for`] the permission's role gives, without it.
pub(super) fn without(permission: &Permission) -> String {
    let usually = replaced(&permission.role);
    let text = if usually.is_some() { extra() } else { usual() };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let line = &mut lines[permission.line];
    if inline(line).is_some() {
        // A list that is empty allows everything.
        *line = line.replace(&format!("{:?}", permission.subject), "\"natsway.nothing\"");
    } else {
        lines.remove(permission.line);
    }
    let text = lines.join("\n") + "\n";
    match usually {
        None => text,
        Some(usually) => in_place(&text, &permission.role, usually, &usual()),
    }
}

/// `text` with the role's block of `extra` in place of the usual one.
fn in_place(extra: &str, role: &str, usually: &str, text: &str) -> String {
    let block = &extra[block(extra, role)];
    let mut text = text.to_owned();
    text.replace_range(self::block(&text, usually), block);
    let named = |role: &str| format!("$MAY_{} ", role.to_uppercase());
    text.replace(&named(usually), &named(role))
}

/// Where a role's block is, with its last line.
fn block(text: &str, role: &str) -> std::ops::Range<usize> {
    let begins = format!("\nMAY_{} {{\n", role.to_uppercase());
    let begin = text.find(&begins).unwrap_or_else(|| panic!("no block for {role}")) + 1;
    let end = text[begin..].find("\n}\n").expect("a block ends") + begin + "\n}\n".len();
    begin..end
}

/// All permissions of a file, in its order.
pub(super) fn read(text: &str) -> Vec<Permission> {
    let mut found = Vec::new();
    let (mut role, mut direction) = (String::new(), Direction::Publish);
    for (number, line) in text.lines().enumerate() {
        if let Some(named) = line.strip_prefix("MAY_").and_then(|rest| rest.split_once(" {")) {
            role = named.0.to_lowercase();
        }
        if line.starts_with('}') {
            role.clear();
        }
        if role.is_empty() || !line.starts_with(' ') {
            continue;
        }
        let mut permission = |direction, subject: &str| {
            let (role, subject) = (role.clone(), subject.to_owned());
            found.push(Permission { role, direction, subject, line: number });
        };
        if let Some((direction, subject)) = inline(line) {
            permission(direction, subject);
        } else if let Some(turned) = directed(line) {
            direction = turned;
        } else if let Some(subject) = line.trim_start().strip_prefix('"').and_then(quoted) {
            permission(direction, subject);
        }
    }
    found
}

/// What stands before the next quotation mark.
fn quoted(rest: &str) -> Option<&str> {
    rest.split_once('"').map(|(quoted, _)| quoted)
}

fn directed(line: &str) -> Option<Direction> {
    let is_of = |direction: &Direction| {
        let rest = line.trim_start().strip_prefix(direction.as_str());
        rest.is_some_and(|rest| rest.starts_with(':'))
    };
    Direction::BOTH.into_iter().find(is_of)
}

/// A whole list in one line, `publish: { allow: ["SUBJECT"] }`.
fn inline(line: &str) -> Option<(Direction, &str)> {
    let direction = directed(line)?;
    let (_, list) = line.split_once(": { allow: [\"")?;
    Some((direction, quoted(list)?))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn subjects_match_as_the_broker_has_them() {
        for (pattern, subject, whether) in [
            ("svc.>", "svc.demo.blue", true),
            ("svc.>", "svc", false),
            ("natsway.worker.*", "natsway.worker.x", true),
            ("natsway.worker.*", "natsway.worker.x.y", false),
            ("natsway.metrics.*.*", "natsway.metrics.*.*", true),
            ("a.*", "a.>", true),
            ("a.b", "a.>", false),
            ("a.*.b", "a.>", false),
        ] {
            assert_eq!(matches(pattern, subject), whether, "{pattern} {subject}");
        }
    }

    #[test]
    fn a_permission_for_a_queue_group_covers_no_other_subscription() {
        let own = read("MAY_WORKER {\n  subscribe: { allow: [\n    \"svc.> q\"\n  ] }\n}\n");
        let covers = |direction, queue| may(&own, direction, "svc.demo.blue", queue);
        assert!(covers(Direction::Subscribe, "q"));
        assert!(!covers(Direction::Subscribe, ""));
        assert!(!covers(Direction::Publish, ""));
    }

    #[test]
    fn every_role_has_permissions_and_a_user_with_a_secret_from_the_environment() {
        let text = usual();
        let found: BTreeSet<String> =
            read(&text).into_iter().map(|permission| permission.role).collect();
        assert_eq!(found, ROLES.map(str::to_owned).into());
        for role in ROLES {
            let secret = format!("password: $NATSWAY_{}_PASSWORD", role.to_uppercase());
            assert!(text.contains(&secret), "{role}");
        }
    }

    #[test]
    fn each_line_can_be_dropped_alone() {
        for permission in read_all() {
            let (text, lacking) = (text_for(&permission.role), without(&permission));
            assert_ne!(lacking, text, "{permission}");
            let gone = text.lines().count() - lacking.lines().count();
            assert!(gone <= 1, "{permission}: {gone} lines");
            // Of all that the role may do, this alone.
            let left = read(&lacking).into_iter().filter(|left| left.role == permission.role);
            let left: Vec<String> = left.map(|left| left.to_string()).collect();
            assert!(!left.contains(&permission.to_string()), "{permission}");
        }
    }

    #[test]
    fn no_role_may_read_what_is_addressed_to_another() {
        let mut inboxes = BTreeMap::<String, Vec<String>>::new();
        for permission in read(&usual()) {
            if permission.direction == Direction::Subscribe
                && permission.subject.starts_with("_INBOX")
            {
                inboxes.entry(permission.subject).or_default().push(permission.role);
            }
        }
        inboxes.retain(|_, roles| roles.len() > 1);
        // Members and those who make groups use one program; a caller is a worker.
        let shared =
            [("_INBOX_cg.>", ["groups", "member"]), ("_INBOX_worker.>", ["worker", "caller"])];
        let shared =
            shared.map(|(inbox, roles)| (inbox.to_owned(), roles.map(str::to_owned).to_vec()));
        assert_eq!(inboxes, shared.into());
    }

    #[test]
    fn nobody_may_publish_where_a_message_says() {
        for text in [usual(), extra(), shipped("accounts.conf")] {
            let mut said = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            assert!(!said.any(|line| line.contains("allow_responses")));
        }
    }

    #[test]
    fn only_administrators_may_make_and_change_streams() {
        let changes = ["STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", ">"];
        let is_change = |permission: &Permission| {
            let api = permission.subject.strip_prefix("$JS.API.");
            api.is_some_and(|asked| changes.iter().any(|change| asked.starts_with(change)))
        };
        let may: BTreeSet<String> =
            read_all().into_iter().filter(is_change).map(|permission| permission.role).collect();
        assert_eq!(may, ["admin".to_owned()].into());
    }
}
