//! Tab in the prompt: commands, and the streams, groups and members that there are.

use std::time::Duration;

use futures_util::TryStreamExt;
use natsway_partitioned_consumer::{Group, GroupKind};
use rustyline::completion::Completer;
use rustyline::{Context, Helper, Highlighter, Hinter, Validator};
use tokio::runtime::Handle;

use super::known::COMMANDS;
use crate::args::Group as Names;
use crate::session::Session;

/// How long the broker may take to name what there is; without an answer nothing is completed.
const NAMED_WITHIN: Duration = Duration::from_secs(1);

/// Completes words for one kind of groups.
#[derive(Helper, Highlighter, Hinter, Validator)]
pub(super) struct Words {
    pub(super) session: Session,
    pub(super) kind: GroupKind,
}

/// What stands at a place of a line.
#[derive(Debug, PartialEq)]
enum CompletionContext<'a> {
    Command,
    /// `balanced` or `mapped`.
    Form,
    Stream,
    GroupOf(&'a str),
    MemberOf(&'a str, &'a str),
    Other,
}

/// Which place comes after these words.
fn place<'a>(before: &[&'a str], kind: GroupKind) -> CompletionContext<'a> {
    let Some((command, mut rest)) = before.split_first() else { return CompletionContext::Command };
    if *command == "create" && kind == GroupKind::Static {
        let Some((_, after)) = rest.split_first() else { return CompletionContext::Form };
        rest = after;
    }
    let known = COMMANDS.iter().find(|known| known.names().any(|name| name == *command));
    let takes = known.map_or("", |known| known.takes);
    match rest {
        [] if takes.contains("STREAM") => CompletionContext::Stream,
        [stream] if takes.contains("GROUP") && *command != "create" => {
            CompletionContext::GroupOf(stream)
        }
        // A mapping is more than a name, and what is created has none yet.
        [stream, group, ..]
            if takes.contains("MEMBER") && !takes.contains("MEMBER:") && *command != "create" =>
        {
            CompletionContext::MemberOf(stream, group)
        }
        _ => CompletionContext::Other,
    }
}

impl Words {
    /// Every word that fits after these.
    fn all(&self, before: &[&str]) -> Vec<String> {
        match place(before, self.kind) {
            CompletionContext::Command => {
                COMMANDS.iter().map(|command| command.name.to_owned()).collect()
            }
            CompletionContext::Form => vec!["balanced".into(), "mapped".into()],
            CompletionContext::Other => Vec::new(),
            lookup => {
                let names = tokio::time::timeout(NAMED_WITHIN, self.names(lookup));
                tokio::task::block_in_place(|| Handle::current().block_on(names))
                    .ok()
                    .flatten()
                    .unwrap_or_default()
            }
        }
    }

    async fn names(&self, place: CompletionContext<'_>) -> Option<Vec<String>> {
        let jetstream = &self.session.connection.jetstream;
        match (place, self.kind) {
            (CompletionContext::Stream, _) => {
                let names: Vec<String> = jetstream.stream_names().try_collect().await.ok()?;
                Some(names.into_iter().filter(|name| !name.starts_with("KV_")).collect())
            }
            (CompletionContext::GroupOf(stream), kind) => {
                Group::list(jetstream, kind, stream).await.ok()
            }
            (CompletionContext::MemberOf(stream, group), kind) => {
                let group = Names { stream: stream.to_owned(), group: group.to_owned() };
                Some(self.session.group(kind, &group).ok()?.membership().await.ok()?.names())
            }
            (
                CompletionContext::Command | CompletionContext::Form | CompletionContext::Other,
                _,
            ) => None,
        }
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let start = begun.rfind(' ').map_or(0, |space| space + 1);
        let before: Vec<&str> = begun[..start].split_whitespace().collect();
        let mut fitting = self.all(&before);
        fitting.retain(|word| word.starts_with(&begun[start..]));
        Ok((start, fitting.into_iter().map(|word| word + " ").collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_of_a_line_has_its_names() {
        let elastic = |before: &[&'static str]| place(before, GroupKind::Elastic);
        assert_eq!(elastic(&[]), CompletionContext::Command);
        assert_eq!(elastic(&["info"]), CompletionContext::Stream);
        assert_eq!(elastic(&["rm", "foo"]), CompletionContext::GroupOf("foo"));
        assert_eq!(elastic(&["join", "foo", "cg"]), CompletionContext::MemberOf("foo", "cg"));
        assert_eq!(elastic(&["drop", "foo", "cg", "m1"]), CompletionContext::MemberOf("foo", "cg"));
        assert_eq!(elastic(&["info", "foo", "cg"]), CompletionContext::Other);
        assert_eq!(elastic(&["ls", "foo"]), CompletionContext::Other);
        // What is created has no name yet.
        assert_eq!(elastic(&["create", "foo"]), CompletionContext::Other);
        assert_eq!(place(&["create"], GroupKind::Static), CompletionContext::Form);
        assert_eq!(place(&["create", "mapped"], GroupKind::Static), CompletionContext::Stream);
        assert_eq!(elastic(&["cm", "foo", "cg"]), CompletionContext::Other);
        assert_eq!(elastic(&["bogus"]), CompletionContext::Other);
    }
}
