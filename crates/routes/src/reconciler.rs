//! From the documents of the bucket to the table in force: pure. Every document is checked, all of
//! them are checked together, and what is refused leaves what was good before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::{Faults, RouteDocument};
use crate::table::{Route, RouteTable};

/// What the bucket says of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A document was written.
    Put {
        /// Its key: the route's name.
        name: String,
        /// The bucket's revision of it.
        revision: u64,
        /// Its bytes.
        document: Vec<u8>,
    },
    /// A document was deleted.
    Removed {
        /// Its key.
        name: String,
        /// The revision of the deletion.
        revision: u64,
    },
}

impl Change {
    /// The key.
    pub fn name(&self) -> &str {
        match self {
            Self::Put { name, .. } | Self::Removed { name, .. } => name,
        }
    }

    /// The revision.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put { revision, .. } | Self::Removed { revision, .. } => *revision,
        }
    }
}

/// All documents as far as they are known.
#[derive(Debug, Default)]
pub struct RouteReconciler {
    known: BTreeMap<String, DocumentState>,
    revision: u64,
    bucket: u64,
}

/// One key.
#[derive(Debug)]
struct DocumentState {
    revision: u64,
    newest: Result<Route, String>,
    /// The newest document, when it has a rollout.
    rollout: Option<Arc<RouteDocument>>,
    /// What was in force last, while the newest document is refused.
    good: Option<Route>,
}

/// A document that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedDocument {
    /// The key.
    pub name: String,
    /// The document's revision.
    pub revision: u64,
    /// Why, every reason on a line.
    pub reason: String,
    /// Whether an earlier document of that key serves in its stead.
    pub earlier_serves: bool,
}

impl RouteReconciler {
    /// Takes in a change. Changes that are older than what is known of a key are passed over.
    pub fn apply(&mut self, change: Change) {
        let (name, revision) = match &change {
            Change::Put { name, revision, .. } | Change::Removed { name, revision } => {
                (name.clone(), *revision)
            }
        };
        if self.known.get(&name).is_some_and(|known| known.revision >= revision) {
            return;
        }
        self.revision = self.revision.max(revision);
        match change {
            Change::Removed { .. } => {
                self.known.remove(&name);
            }
            Change::Put { document, .. } => {
                let good =
                    self.known.remove(&name).and_then(|known| known.newest.ok().or(known.good));
                let (newest, rollout) = match check(&name, &document) {
                    Ok((route, document)) => {
                        (Ok(route), document.rollout.is_some().then(|| Arc::new(document)))
                    }
                    Err(faults) => (Err(faults.to_string()), None),
                };
                self.known.insert(name, DocumentState { revision, newest, rollout, good });
            }
        }
    }

    /// Says which bucket the changes that follow are of, by what no other bucket has. The revisions
    /// of one that was made anew, because the broker has lost its store, begin at 1: they are not
    /// older than what is known. Until a key is told of, what is known of it stays.
    pub fn of_bucket(&mut self, bucket: u64) {
        if std::mem::replace(&mut self.bucket, bucket) != bucket {
            self.revision = 0;
            self.known.values_mut().for_each(|known| known.revision = 0);
        }
    }

    /// The bucket that it was told of last.
    pub fn bucket(&self) -> u64 {
        self.bucket
    }

    /// Whether nothing was told of this bucket, and something of one before: that was lost, and not
    /// emptied by anybody.
    pub fn knows_only_another_bucket(&self) -> bool {
        self.revision == 0 && !self.known.is_empty()
    }

    /// Forgets every key that is not among `names`: what was deleted while nobody looked.
    pub fn retain(&mut self, names: &[String]) {
        self.known.retain(|name, _| names.contains(name));
    }

    /// The newest revision taken in.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The table of all documents that are sound, alone and together. Of two that clash, the older
    /// one stays.
    pub fn table(&mut self) -> RouteTable {
        loop {
            let mut serving: Vec<(u64, &Route)> = self
                .known
                .values()
                .filter_map(|known| {
                    known
                        .newest
                        .as_ref()
                        .ok()
                        .or(known.good.as_ref())
                        .map(|route| (known.revision, route))
                })
                .collect();
            serving.sort_by_key(|(revision, _)| *revision);
            let clashes = match RouteTable::new(
                serving.into_iter().map(|(_, route)| route.clone()).collect(),
            ) {
                Ok(table) => return table,
                Err(clashes) => clashes,
            };
            // Each round takes something away from those that are to blame, so this ends.
            for clash in clashes {
                let Some(known) = self.known.get_mut(clash.route()) else { continue };
                match known.newest {
                    Ok(_) => known.newest = Err(clash.to_string()),
                    Err(_) => known.good = None,
                }
            }
        }
    }

    /// The documents in force that have a rollout, each with its revision. Complete after
    /// [`table`](RouteReconciler::table).
    pub fn rollouts(&self) -> Vec<(u64, Arc<RouteDocument>)> {
        let active_routes = self.known.values().filter(|known| known.newest.is_ok());
        active_routes
            .filter_map(|known| Some((known.revision, Arc::clone(known.rollout.as_ref()?))))
            .collect()
    }

    /// The documents that are not in force. Complete after [`table`](RouteReconciler::table).
    pub fn refusals(&self) -> Vec<RejectedDocument> {
        let refusal = |(name, known): (&String, &DocumentState)| {
            let reason = known.newest.as_ref().err()?.clone();
            let earlier_serves = known.good.is_some();
            Some(RejectedDocument {
                name: name.clone(),
                revision: known.revision,
                reason,
                earlier_serves,
            })
        };
        self.known.iter().filter_map(refusal).collect()
    }
}

fn check(key: &str, document: &[u8]) -> Result<(Route, RouteDocument), Faults> {
    let document = RouteDocument::from_json(document)?;
    if document.name != key {
        return Err(Faults(vec![format!(
            "route {:?}: name: expected {key:?}, the key that it is kept at",
            document.name
        )]));
    }
    Ok((document.check(None)?, document))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(name: &str, revision: u64, path: &str) -> Change {
        let target = r#"[{"version":"blue","subject":"svc.x.blue"}]"#;
        let document =
            format!(r#"{{"schema":1,"name":"{name}","path":"{path}","target":{target}}}"#);
        Change::Put { name: name.to_owned(), revision, document: document.into_bytes() }
    }

    fn paths(reconciler: &mut RouteReconciler) -> Vec<String> {
        let mut paths: Vec<String> =
            reconciler.table().routes().iter().map(|route| route.path.to_string()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn a_bad_document_leaves_the_last_good_one_in_force() {
        let mut reconciler = RouteReconciler::default();
        reconciler.apply(put("a", 1, "/a"));
        reconciler.apply(Change::Put {
            name: "a".to_owned(),
            revision: 2,
            document: b"{}".to_vec(),
        });
        assert_eq!(paths(&mut reconciler), ["/a"]);
        reconciler.apply(put("a", 3, "no slash"));
        assert_eq!(paths(&mut reconciler), ["/a"]);
        let [refusal] = &reconciler.refusals()[..] else { panic!("one refusal") };
        assert!(
            refusal.reason.contains("must begin with a slash") && refusal.earlier_serves,
            "{refusal:?}"
        );
        reconciler.apply(put("a", 4, "/b"));
        assert_eq!(
            (paths(&mut reconciler), reconciler.refusals()),
            (vec!["/b".to_owned()], vec![])
        );
    }

    #[test]
    fn of_two_documents_that_clash_the_older_serves() {
        let mut reconciler = RouteReconciler::default();
        reconciler.apply(put("z", 1, "/x"));
        reconciler.apply(put("a", 2, "/own"));
        reconciler.apply(put("a", 3, "/x"));
        assert_eq!(
            paths(&mut reconciler),
            ["/own", "/x"],
            "the earlier document of the later writer"
        );
        assert!(
            reconciler.refusals()[0].reason.contains("\"z\" already answers"),
            "{:?}",
            reconciler.refusals()
        );
    }

    #[test]
    fn a_document_at_another_key_is_refused() {
        let mut reconciler = RouteReconciler::default();
        let Change::Put { document, .. } = put("b", 1, "/b") else { panic!("it puts") };
        reconciler.apply(Change::Put { name: "a".to_owned(), revision: 1, document });
        assert!(paths(&mut reconciler).is_empty());
        assert!(reconciler.refusals()[0].reason.contains("expected \"a\""));
    }

    #[test]
    fn old_news_and_forgotten_keys_are_dropped() {
        let mut reconciler = RouteReconciler::default();
        reconciler.apply(put("a", 5, "/new"));
        reconciler.apply(put("a", 4, "/old"));
        assert_eq!(paths(&mut reconciler), ["/new"]);
        reconciler.apply(put("b", 6, "/b"));
        reconciler.retain(&["b".to_owned()]);
        assert_eq!(paths(&mut reconciler), ["/b"]);
        reconciler.apply(Change::Removed { name: "b".to_owned(), revision: 7 });
        assert!(paths(&mut reconciler).is_empty());
        assert_eq!(reconciler.revision(), 7);
    }

    #[test]
    fn a_bucket_that_was_made_anew_is_believed() {
        let mut reconciler = RouteReconciler::default();
        reconciler.of_bucket(1);
        reconciler.apply(put("a", 57, "/old"));
        reconciler.apply(put("b", 58, "/b"));
        reconciler.of_bucket(1);
        reconciler.apply(put("a", 1, "/older"));
        assert_eq!(
            (paths(&mut reconciler), reconciler.revision()),
            (vec!["/b".to_owned(), "/old".to_owned()], 58)
        );
        reconciler.of_bucket(2);
        assert!(reconciler.knows_only_another_bucket());
        assert_eq!(paths(&mut reconciler), ["/b", "/old"], "nothing is told of it yet");
        reconciler.apply(put("a", 1, "/new"));
        assert!(!reconciler.knows_only_another_bucket());
        reconciler.retain(&["a".to_owned()]);
        assert_eq!((paths(&mut reconciler), reconciler.revision()), (vec!["/new".to_owned()], 1));
    }

    #[test]
    fn thirty_bad_documents_are_refused_and_the_table_stays() {
        let good = r#""target":[{"version":"v","subject":"svc.x"}]"#;
        let bad = [
            "",
            "null",
            "[]",
            "{",
            "7",
            "\"a\"",
            "{}",
            r#"{"name":"a"}"#,
            r#"{"name":"a","path":"/a"}"#,
            r#"{"name":"a","path":"/a","target":[]}"#,
            r#"{"name":"a","path":"/a","target":[{}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"svc.>"}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"$SYS.x"}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"natsway.x"}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"a b"}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"s","weight":-1}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"s","weight":1.5}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"s","weight":9999999}]}"#,
            r#"{"name":"a","path":"/a","target":[{"version":"v","subject":"s"},{"version":"v","subject":"t"}]}"#,
            &format!(r#"{{"name":"a","path":"a",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/{{",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/{{*x}}/y",{good}}}"#),
            &format!(r#"{{"name":"a b","path":"/a",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","host":"h:1",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","methods":["get"],{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","timeout":"soon",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","timeout":"9h",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","codec":"xml",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","strip_prefix":"x",{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","schema":3,{good}}}"#),
            &format!(r#"{{"name":"a","path":"/a","colour":"red",{good}}}"#),
            &format!(
                r#"{{"name":"a","path":"/a","rule":[{{"header":"x","version":"w"}}],{good}}}"#
            ),
            &format!(r#"{{"name":"a","path":"/a","sticky":{{}},{good}}}"#),
        ];
        assert!(bad.len() >= 30);
        let mut reconciler = RouteReconciler::default();
        reconciler.apply(put("a", 1, "/good"));
        for (revision, document) in (2..).zip(bad) {
            reconciler.apply(Change::Put {
                name: "a".to_owned(),
                revision,
                document: document.as_bytes().to_vec(),
            });
            assert_eq!(paths(&mut reconciler), ["/good"], "{document}");
            assert_eq!(reconciler.refusals()[0].revision, revision, "{document}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_a_route_that_was_good_serves_until_it_is_replaced(
            writes in prop::collection::vec((0..4_usize, prop::option::of(0..6_usize)), 1..40),
        ) {
            let mut reconciler = RouteReconciler::default();
            for (revision, (name, path)) in (1..).zip(writes) {
                let served_before = !paths(&mut reconciler).is_empty();
                let name = ["a", "b", "c", "d"][name];
                match path {
                    // Paths of one set, so that they clash; every sixth is no path.
                    Some(path) => {
                        let path = ["/1", "/2", "/3", "/{x}", "/{y}", "bad"][path];
                        reconciler.apply(put(name, revision, path))
                    }
                    None => reconciler.apply(Change::Put { name: name.to_owned(), revision, document: b"!".to_vec() }),
                }
                // Nothing is ever removed here, so the table never becomes empty again.
                prop_assert!(!served_before || !paths(&mut reconciler).is_empty());
            }
        }
    }
}
