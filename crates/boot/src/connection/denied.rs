//! The subscriptions that the broker refused on a connection: what is asked there is never heard,
//! and nothing else says so.

use std::sync::{Arc, Mutex, PoisonError};

/// Subjects that are remembered; whoever is refused more than that knows enough.
const REMEMBERED: usize = 64;

/// The subjects that one connection may not hear. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct DeniedSubscriptions(Arc<Mutex<Vec<String>>>);

impl DeniedSubscriptions {
    /// A subject that is refused and for which `matters` holds.
    pub fn find(&self, matters: impl Fn(&str) -> bool) -> Option<String> {
        self.with(|subjects| subjects.iter().find(|subject| matters(subject)).cloned())
    }

    pub(crate) fn add(&self, subject: String) {
        self.with(|subjects| {
            if subjects.len() < REMEMBERED && !subjects.contains(&subject) {
                subjects.push(subject);
            }
        });
    }

    /// A connection that comes back asks for everything again.
    pub(crate) fn clear(&self) {
        self.with(Vec::clear);
    }

    fn with<T>(&self, use_subjects: impl FnOnce(&mut Vec<String>) -> T) -> T {
        use_subjects(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
