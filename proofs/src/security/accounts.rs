//! Reads `deploy/nats/accounts.conf` as lines: who is in which account, and what is exported and
//! imported.

use std::fmt;

use super::permissions::{Direction, Permission, read, shipped, usual};
use super::secrets::password;

/// Somebody in an account, with the name of the permissions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct User {
    /// The name.
    pub(super) name: String,
    /// The account.
    pub(super) account: String,
    /// Whose permissions.
    pub(super) permissions: String,
}

/// One line by which an account exports or imports something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// In which account it stands.
    pub(super) account: String,
    /// Whether something is exported; imported otherwise.
    pub(super) is_export: bool,
    /// What, as it is said.
    pub(super) subject: String,
    number: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.is_export { "export" } else { "import" };
        write!(f, "{} {direction} {}", self.account, self.subject)
    }
}

impl Line {
    /// The line itself.
    pub(super) fn source(&self) -> String {
        text().lines().nth(self.number).expect("the line was read there").to_owned()
    }
}

/// The file.
pub(super) fn text() -> String {
    shipped("accounts.conf")
}

/// The account that a line begins.
fn begun(line: &str) -> Option<&str> {
    let name = line.strip_prefix("  ")?.split_once(" {")?.0;
    let is_name = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// All users, in the file's order.
pub(super) fn users() -> Vec<User> {
    let (mut found, mut account) = (Vec::new(), String::new());
    for line in text().lines() {
        if let Some(begun) = begun(line) {
            account = begun.to_owned();
            continue;
        }
        let Some(rest) = line.trim_start().strip_prefix("{ user: ") else { continue };
        let named = rest.split_once(',');
        let permitted = rest.split_once("permissions: $MAY_").and_then(|(_, rest)| {
            rest.split_once(" }").map(|(permissions, _)| permissions.to_lowercase())
        });
        if let (Some((name, _)), Some(permissions)) = (named, permitted) {
            found.push(User { name: name.to_owned(), account: account.clone(), permissions });
        }
    }
    found
}

/// The accounts, in the file's order.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for user in users() {
        if !names.contains(&user.account) {
            names.push(user.account);
        }
    }
    names
}

/// All exports and imports, in the file's order.
pub(super) fn lines() -> Vec<Line> {
    let (mut found, mut account, mut is_export) = (Vec::new(), String::new(), false);
    for (number, line) in text().lines().enumerate() {
        if let Some(begun) = begun(line) {
            account = begun.to_owned();
        }
        let line = line.trim_start();
        if line.starts_with("exports:") || line.starts_with("imports:") {
            is_export = line.starts_with("exports:");
        }
        if line.starts_with("{ service: ") || line.starts_with("{ stream: ") {
            let subject = line.split('"').nth(1).expect("a line names a subject").to_owned();
            found.push(Line { account: account.clone(), is_export, subject, number });
        }
    }
    found
}

/// The file without one of its lines.
pub(super) fn without(line: &Line) -> String {
    let text = text();
    let kept = text.lines().enumerate().filter(|(number, _)| *number != line.number);
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// All permissions that users of accounts have, in their files' order.
pub(super) fn permissions() -> Vec<Permission> {
    [read(&usual()), read(&text())].concat()
}

/// What a user may do, in the account.
pub(super) fn permissions_of(user: &User) -> Vec<Permission> {
    permissions().into_iter().filter(|permission| permission.role == user.permissions).collect()
}

/// The account of a user.
///
/// # Panics
/// When there is no such user.
pub(super) fn account_of(name: &str) -> String {
    let user = users().into_iter().find(|user| user.name == name);
    user.unwrap_or_else(|| panic!("{name} is in no account")).account
}

/// Where a user hears answers: the first inbox that it may hear.
pub(super) fn inbox_of(name: &str) -> Option<String> {
    let user = users().into_iter().find(|user| user.name == name)?;
    let is_inbox = |permission: &Permission| {
        permission.direction == Direction::Subscribe && permission.subject.starts_with("_INBOX")
    };
    let inbox = permissions_of(&user).into_iter().find(is_inbox)?.subject;
    inbox.strip_suffix(".>").map(str::to_owned)
}

/// Who may do anything in an account.
pub(super) fn owner_name(account: &str) -> String {
    format!("setup-{account}")
}

/// The text with one more user in each account, who may do anything there.
pub(super) fn with_owners(accounts: &str) -> String {
    let (mut made, mut account) = (String::new(), None);
    for line in accounts.lines() {
        account = begun(line).or(account);
        made += line;
        made.push('\n');
        if let (Some(account), "users: [") = (account, line.trim()) {
            let owner = owner_name(account);
            made += &format!("      {{ user: {owner}, password: {} }}\n", password(&owner));
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_is_in_one_account_with_a_secret_from_the_environment() {
        let (text, users) = (text(), users());
        let mut names: Vec<&String> = users.iter().map(|user| &user.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), users.len());
        assert_eq!(users.len(), text.matches("{ user: ").count());
        for user in &users {
            let secret = user.name.to_uppercase().replace('-', "_");
            assert!(text.contains(&format!("$NATSWAY_{secret}_PASSWORD")), "{user:?}");
            assert!(!permissions_of(user).is_empty(), "{user:?} may do nothing, or everything");
        }
    }
}
