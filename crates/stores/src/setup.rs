//! What an administrator does about a store: makes it, changes its copies, or leaves it alone and
//! says what is different.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, StorageType};

use crate::{StoreError, is_missing};

/// What is to be done about a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is there, as it should be.
    Nothing,
    /// It is made.
    Make,
    /// It is changed.
    Change(Vec<Change>),
    /// It is made anew: it is in memory, and forgets within seconds anyway.
    MakeAnew,
    /// It is there with other settings: those are somebody's choice, and stay.
    Leave {
        /// What is different, in words.
        differences: Vec<String>,
    },
}

/// What is changed of a store that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is given another number of copies.
    Copies {
        /// What it has.
        from: usize,
        /// What it is given.
        to: usize,
    },
    /// It answers no direct gets any more: whoever may write to it could have the broker publish
    /// anything anywhere by one.
    NoDirectGets,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Copies { from, to } => write!(f, "copies from {from} to {to}"),
            Self::NoDirectGets => f.write_str("no direct gets"),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("is there"),
            Self::Make => f.write_str("make"),
            Self::MakeAnew => f.write_str("make anew, in a file"),
            Self::Change(changes) => {
                let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
                write!(f, "change: {}", changes.join(", "))
            }
            Self::Leave { differences } => write!(f, "left as it is: {}", differences.join(", ")),
        }
    }
}

/// Decides about a store that is there as `found`, or not at all. Its copies are changed only where
/// somebody `asked` for a number: without that, one is the default and no wish.
pub fn step(found: Option<&Config>, wanted: &Config, asked_for_copies: bool) -> Step {
    let Some(found) = found else { return Step::Make };
    // A broker that stands alone forgets it when it restarts, and who uses it may not make it
    // again.
    let forgets = found.max_age > Duration::ZERO && found.max_age <= SHORT_LIVED;
    if forgets && found.storage == StorageType::Memory && wanted.storage == StorageType::File {
        return Step::MakeAnew;
    }
    // Changes come first: what is left as it is, is told as long as it differs.
    let mut changes = Vec::new();
    if asked_for_copies && found.num_replicas != wanted.num_replicas {
        changes.push(Change::Copies { from: found.num_replicas, to: wanted.num_replicas });
    }
    if found.allow_direct && !wanted.allow_direct {
        changes.push(Change::NoDirectGets);
    }
    let differences = differences(found, wanted);
    match (changes.is_empty(), differences.is_empty()) {
        (false, _) => Step::Change(changes),
        (true, false) => Step::Leave { differences },
        (true, true) => Step::Nothing,
    }
}

/// What lasts no longer than this may be forgotten at any time: leases and turns.
const SHORT_LIVED: Duration = Duration::from_secs(10);

/// What of a store is not as a program would make it, its copies aside.
fn differences(found: &Config, wanted: &Config) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: String, wanted: String| {
        if found != wanted {
            differences.push(format!("{what} is {found}, not {wanted}"));
        }
    };
    let limit = |number: i64| if number > 0 { number.to_string() } else { "unlimited".to_owned() };
    compare("subjects", found.subjects.join(" "), wanted.subjects.join(" "));
    // One in memory is gone when its broker restarts, and cannot be changed.
    compare("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage));
    compare("max_age", format!("{:?}", found.max_age), format!("{:?}", wanted.max_age));
    compare("max_bytes", limit(found.max_bytes), limit(wanted.max_bytes));
    compare(
        "max_msgs_per_subject",
        limit(found.max_messages_per_subject),
        limit(wanted.max_messages_per_subject),
    );
    compare(
        "max_msg_size",
        limit(found.max_message_size.into()),
        limit(wanted.max_message_size.into()),
    );
    compare("discard", format!("{:?}", found.discard), format!("{:?}", wanted.discard));
    // Whoever has these reads or writes elsewhere by this store.
    compare("republish", format!("{:?}", found.republish.is_some()), "false".to_owned());
    compare("mirror", format!("{:?}", found.mirror.is_some()), "false".to_owned());
    compare("sources", found.sources.as_ref().map_or(0, Vec::len).to_string(), "0".to_owned());
    differences
}

/// Looks at a store and does what is to be done, or only says what that is when it is a `dry_run`.
///
/// # Errors
/// [`StoreError`].
pub async fn apply(
    context: &Context,
    wanted: &Config,
    asked_for_copies: bool,
    dry_run: bool,
) -> Result<Step, StoreError> {
    let name = || wanted.name.clone();
    let found = match context.get_stream(&wanted.name).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) if is_missing(&error) => None,
        Err(error) => {
            return Err(StoreError::Unavailable { name: name(), reason: error.to_string() });
        }
    };
    let step = step(found.as_ref(), wanted, asked_for_copies);
    let done = match (&step, found) {
        (Step::Make, _) if !dry_run => context.create_stream(wanted).await.map(drop),
        (Step::MakeAnew, _) if !dry_run => {
            let deleted = context.delete_stream(&wanted.name).await;
            deleted
                .map_err(|error| StoreError::NotMade { name: name(), reason: error.to_string() })?;
            context.create_stream(wanted).await.map(drop)
        }
        (Step::Change(changes), Some(mut config)) if !dry_run => {
            // All else stays as somebody may have set it.
            for change in changes {
                match change {
                    Change::Copies { to, .. } => config.num_replicas = *to,
                    Change::NoDirectGets => config.allow_direct = false,
                }
            }
            context.update_stream(&config).await.map(drop)
        }
        _ => Ok(()),
    };
    done.map_err(|error| StoreError::NotMade { name: name(), reason: error.to_string() })?;
    Ok(step)
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::Republish;

    use super::*;
    use crate::definitions::{group_settings, lines, rollout_lease, routes};

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let wanted = routes("natsway-routes", 3);
        assert_eq!(step(None, &wanted, false), Step::Make);
        assert_eq!(step(Some(&wanted), &wanted, true), Step::Nothing);
    }

    #[test]
    fn copies_are_changed_only_when_somebody_asks_for_a_number() {
        let (one, three) = (routes("natsway-routes", 1), routes("natsway-routes", 3));
        assert_eq!(step(Some(&three), &one, false), Step::Nothing);
        assert_eq!(
            step(Some(&one), &three, true),
            Step::Change(vec![Change::Copies { from: 1, to: 3 }])
        );
    }

    #[test]
    fn a_lease_in_memory_is_made_anew() {
        let wanted = rollout_lease(1);
        let found = Config { storage: StorageType::Memory, ..wanted.clone() };
        assert_eq!(step(Some(&found), &wanted, false), Step::MakeAnew);
    }

    #[test]
    fn a_bucket_that_answers_direct_gets_is_told_to_cease() {
        let wanted = routes("natsway-routes", 1);
        let found = Config { allow_direct: true, ..wanted.clone() };
        assert_eq!(step(Some(&found), &wanted, false), Step::Change(vec![Change::NoDirectGets]));
        // Also where somebody has chosen other settings.
        let chosen = Config { max_messages_per_subject: 7, ..found };
        assert_eq!(step(Some(&chosen), &wanted, false), Step::Change(vec![Change::NoDirectGets]));
    }

    #[test]
    fn other_settings_are_somebodys_choice_and_are_told() {
        let wanted = group_settings(1);
        let found = Config { storage: StorageType::Memory, ..wanted.clone() };
        assert!(
            matches!(step(Some(&found), &wanted, true), Step::Leave { differences } if differences.len() == 1)
        );
        let lines = |max_bytes| lines("LOGS", "logs", max_bytes, None, 1);
        let told = step(Some(&lines(Some(7))), &lines(None), true).to_string();
        assert_eq!(told, "left as it is: max_bytes is 7, not unlimited");
    }

    #[test]
    fn a_store_that_speaks_elsewhere_is_told() {
        let wanted = routes("natsway-routes", 1);
        let republish =
            Republish { source: ">".into(), destination: "svc.x".into(), headers_only: false };
        let found = Config { republish: Some(republish), ..wanted.clone() };
        assert!(matches!(step(Some(&found), &wanted, false), Step::Leave { .. }));
    }

    #[test]
    fn limits_that_the_broker_writes_out_are_no_difference() {
        let wanted = rollout_lease(1);
        // It says -1 for what was not given.
        let found = Config { max_bytes: -1, max_message_size: -1, ..wanted.clone() };
        assert_eq!(step(Some(&found), &wanted, false), Step::Nothing);
    }
}
