//! Second replies to one request: pure.
//!
//! A queue group gives a request to one of its members. Where two groups listen on one subject,
//! each gets it and both run it, which nobody but the caller can see: it has two answers.

use std::collections::VecDeque;
use std::sync::Arc;

use natsway_routes::metrics::Recorder;

use crate::pending::Key;

/// Requests that are remembered after they were answered: a second answer comes soon or not at all.
const REMEMBERED: usize = 256;

/// Who is to be told of a second reply, for requests that are out and for those that were answered
/// last.
#[derive(Debug, Default)]
pub struct DuplicateReplies {
    /// By the request's place.
    out: Vec<Option<Arc<Recorder>>>,
    answered: VecDeque<(Key, Arc<Recorder>)>,
}

impl DuplicateReplies {
    /// A request goes out, to a version if it is of one. Whoever had its place before is forgotten.
    pub fn begin(&mut self, key: Key, version: Option<Arc<Recorder>>) {
        let index = key.index();
        if self.out.len() <= index {
            self.out.resize_with(index + 1, || None);
        }
        self.out[index] = version;
    }

    /// Its first reply is there.
    pub fn answered(&mut self, key: Key) {
        if let Some(version) = self.out.get_mut(key.index()).and_then(Option::take) {
            if self.answered.len() == REMEMBERED {
                self.answered.pop_front();
            }
            self.answered.push_back((key, version));
        }
    }

    /// A reply came that nobody waits for: counts it with its version if it is the second one.
    pub fn unexpected(&self, key: Key) {
        if let Some((_, version)) =
            self.answered.iter().rev().find(|(answered, _)| *answered == key)
        {
            version.second_reply();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::pending::{PendingRequests, ReplyPolicy};

    const POLICY: ReplyPolicy = ReplyPolicy { signals: true, cancel: false, repeatable: false };

    #[test]
    fn a_reply_after_the_first_is_the_second_and_one_after_a_time_out_is_not() {
        let (mut pending, mut duplicates) =
            (PendingRequests::<()>::new(), DuplicateReplies::default());
        let later = Instant::now() + Duration::from_secs(60);
        let version = Arc::<Recorder>::default();
        let counted = || version.read().second_replies;
        let key = pending.insert(later, POLICY, natsway_boot::random_u64());
        duplicates.begin(key, Some(Arc::clone(&version)));
        pending.abandon(key);
        duplicates.unexpected(key);
        assert_eq!(counted(), 0, "it is late, and the first");

        let key = pending.insert(later, POLICY, natsway_boot::random_u64());
        duplicates.begin(key, Some(Arc::clone(&version)));
        duplicates.answered(key);
        pending.abandon(key);
        // Another has its place by then.
        let next = pending.insert(later, POLICY, natsway_boot::random_u64());
        duplicates.begin(next, Some(Arc::default()));
        assert_eq!(next.index(), key.index());
        duplicates.unexpected(key);
        assert_eq!(counted(), 1);
        duplicates.unexpected(next);
        assert_eq!(counted(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut pending, mut duplicates) =
            (PendingRequests::<()>::new(), DuplicateReplies::default());
        let later = Instant::now() + Duration::from_secs(60);
        for _ in 0..2 * REMEMBERED {
            let key = pending.insert(later, POLICY, natsway_boot::random_u64());
            duplicates.begin(key, Some(Arc::default()));
            duplicates.answered(key);
        }
        assert_eq!(duplicates.answered.len(), REMEMBERED);
    }
}
