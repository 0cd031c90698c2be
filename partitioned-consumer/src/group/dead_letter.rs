//! Where poison messages go: a subject that some stream stores, and that the group itself does not
//! take again.

use std::time::Duration;

use async_nats::jetstream::stream;

use super::config::{ElasticConfig, StaticConfig};
use super::entry;
use super::filter::{check_filter_subject, subject_matches};
use super::handle::Group;
use super::kind::GroupKind;
use super::membership::Membership;
use super::partition::split_partition;
use super::settings::{DeadLetter, GroupSettings};
use crate::api;
use crate::error::{Error, ErrorKind};

/// Why messages cannot go where the dead letters ought to; each with what to do, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeadLetterFault {
    /// The subject cannot be published to.
    Subject(String),
    /// No stream stores it, so far.
    Unstored(String),
    /// The group would take its own dead letters.
    Loop(String),
}

impl DeadLetterFault {
    /// What is wrong, and what to do.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Subject(text) | Self::Unstored(text) | Self::Loop(text) => text,
        }
    }
}

/// Whether a text can be published to at all.
fn check_subject(subject: &str) -> Result<(), DeadLetterFault> {
    let wildcard = subject.split('.').any(|token| matches!(token, "*" | ">"));
    if !wildcard && check_filter_subject(subject).is_ok() {
        return Ok(());
    }
    Err(DeadLetterFault::Subject(format!(
        "dead-letter subject {subject:?}: expected a subject to publish to, without wildcards, \
         empty tokens or white space"
    )))
}

/// Whether the group would take its own dead letters: `stores` are the streams that store the
/// subject.
fn comes_back(
    kind: GroupKind,
    source: &stream::Config,
    filters: &[String],
    subject: &str,
    stores: &[String],
) -> bool {
    let copies = source.sources.iter().flatten().chain(&source.mirror);
    let into_source =
        stores.contains(&source.name) || copies.into_iter().any(|from| stores.contains(&from.name));
    // The stream of a static group may write the partition itself, or have it from the publisher.
    let taken = match kind {
        GroupKind::Static if source.subject_transform.is_none() => split_partition(subject).1,
        _ => subject,
    };
    into_source
        && (filters.is_empty() || filters.iter().any(|filter| subject_matches(filter, taken)))
}

/// What the group takes, without the partition; nothing for everything.
async fn filters(group: &Group) -> Result<Vec<String>, Error> {
    let parse = |json: &[u8]| match group.kind {
        GroupKind::Static => StaticConfig::from_json(json).map(|config| match config.membership {
            // Members of a mapped group take whole partitions.
            Membership::Mapped(_) => Vec::new(),
            _ => config.filters,
        }),
        GroupKind::Elastic => ElasticConfig::from_json(json)
            .map(|config| config.filters.into_iter().map(|filter| filter.filter).collect()),
    };
    entry::read(&group.context, group.kind, &group.name, parse).await
}

/// What is wrong with a dead-letter subject.
async fn examine(group: &Group, subject: &str) -> Result<Option<DeadLetterFault>, Error> {
    if let Err(fault) = check_subject(subject) {
        return Ok(Some(fault));
    }
    let stores = api::streams_of(&group.context, subject).await;
    let stores = stores
        .map_err(|error| error.into_error("the streams of the dead letters could not be found"))?;
    if stores.is_empty() {
        let text = format!(
            "no stream stores the dead-letter subject {subject:?}: create one, or its poison \
             messages hold their partitions"
        );
        return Ok(Some(DeadLetterFault::Unstored(text)));
    }
    let source = api::check_stream(&group.context, group.name.stream()).await?.config;
    if comes_back(group.kind, &source, &filters(group).await?, subject, &stores) {
        let text = format!(
            "the group takes its own dead letters: {subject:?} is stored in stream {:?} and \
             matches what the group takes; choose a subject outside",
            group.name.stream()
        );
        return Ok(Some(DeadLetterFault::Loop(text)));
    }
    Ok(None)
}

/// What is wrong with the dead letters that the group's settings ask for.
pub(crate) async fn check_shared(group: &Group) -> Result<Option<DeadLetterFault>, Error> {
    match group.settings().await?.dead_letter() {
        Some(DeadLetter { subject, .. }) => match examine(group, &subject).await {
            // Which the doctor says already.
            Err(error) if error.kind() == ErrorKind::StreamNotFound => Ok(None),
            other => other,
        },
        None => Ok(None),
    }
}

/// How long a member that starts may take to find out about its own dead letters; it may not be
/// allowed to ask.
const OWN_WITHIN: Duration = Duration::from_secs(1);

/// Refuses the dead letters of a member that is about to start, as far as can be known.
pub(crate) async fn check_own(group: &Group, subject: &str) -> Result<(), Error> {
    let refused = |fault: DeadLetterFault| Err(ErrorKind::InvalidConfig.with(fault.text()));
    if let Err(fault) = check_subject(subject) {
        return refused(fault);
    }
    match tokio::time::timeout(OWN_WITHIN, examine(group, subject)).await {
        Ok(Ok(Some(fault @ DeadLetterFault::Loop(_)))) => refused(fault),
        Ok(Ok(Some(fault))) => {
            // Its stream may still come.
            tracing::warn!(group = %group.name, "{}", fault.text());
            Ok(())
        }
        Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
    }
}

impl Group {
    /// Moves poison messages away from now on, or no longer; running members of this library heed
    /// it at once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a subject that cannot be published to, that no stream
    /// stores, or that the group itself would take; and as [`Group::change_settings`].
    pub async fn set_dead_letter(
        &self,
        dead_letter: Option<DeadLetter>,
    ) -> Result<GroupSettings, Error> {
        if let Some(DeadLetter { subject, after_deliveries }) = &dead_letter {
            if *after_deliveries == 0 {
                return Err(
                    ErrorKind::InvalidConfig.with("after_deliveries 0: expected at least 1")
                );
            }
            if let Some(fault) = examine(self, subject).await? {
                return Err(ErrorKind::InvalidConfig.with(fault.text()));
            }
        }
        self.change_settings(|settings| {
            settings.dead_letter_subject =
                dead_letter.as_ref().map(|letter| letter.subject.clone());
            settings.dead_letter_after =
                dead_letter.as_ref().map_or(0, |letter| letter.after_deliveries);
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_subject_to_publish_to_is_one() {
        for bad in ["", "dead.*", "dead.>", ">", "dead..x", ".dead", "dead ", "a b"] {
            assert!(check_subject(bad).is_err(), "{bad:?}");
        }
        assert!(check_subject("dead.billing").is_ok());
    }

    #[test]
    fn a_group_that_would_take_its_own_dead_letters_is_seen() {
        let source = |transform: bool| stream::Config {
            name: "S".into(),
            subject_transform: transform.then(|| stream::SubjectTransform {
                source: String::new(),
                destination: String::new(),
            }),
            sources: Some(vec![stream::Source { name: "OTHER".into(), ..Default::default() }]),
            ..Default::default()
        };
        let (here, via, elsewhere) = (["S".to_owned()], ["OTHER".to_owned()], ["DEAD".to_owned()]);
        let foo = ["foo.*".to_owned()];
        let elastic = |filters: &[String], subject, stores: &[String]| {
            comes_back(GroupKind::Elastic, &source(false), filters, subject, stores)
        };
        assert!(
            elastic(&foo, "foo.dead", &here)
                && elastic(&[], "dead", &here)
                && elastic(&foo, "foo.dead", &via)
        );
        assert!(!elastic(&foo, "dead.foo", &here) && !elastic(&foo, "foo.dead", &elsewhere));
        let fixed = |transform, subject| {
            comes_back(GroupKind::Static, &source(transform), &foo, subject, &here)
        };
        assert!(
            fixed(true, "foo.dead") && fixed(false, "3.foo.dead") && !fixed(false, "foo.dead.x")
        );
    }
}
