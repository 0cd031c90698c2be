//! Who answered: pure, and bounded whoever answers.

use std::collections::BTreeMap;

/// The most that are told of. One more has to wait until one of them is gone: metrics that come and
/// go with chance would be worth nothing.
pub(super) const MOST: usize = 256;

/// Who leaves so many questions in a row without an answer is gone.
const MOST_UNANSWERED: u32 = 2;

/// The longest answer that is read, in bytes: what a broker takes by default.
pub(super) const ANSWER_BYTES: usize = 1024 * 1024;

/// Those that are known, by name.
#[derive(Debug)]
pub(super) struct Registry<T> {
    known: BTreeMap<String, Entry<T>>,
    /// Answers to this question of those who are too many.
    strangers: usize,
    left_out: usize,
    /// Whether anybody was known when the question went out.
    is_awaited: bool,
    /// Whether the broker said that nobody listens.
    is_nobody_there: bool,
}

#[derive(Debug)]
struct Entry<T> {
    told: T,
    unanswered: u32,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        let known = BTreeMap::new();
        Self { known, strangers: 0, left_out: 0, is_awaited: false, is_nobody_there: false }
    }
}

impl<T> Registry<T> {
    /// A question goes out.
    pub(super) fn begin(&mut self) {
        self.known.values_mut().for_each(|entry| entry.unanswered += 1);
        self.strangers = 0;
        self.is_awaited = !self.known.is_empty();
        self.is_nobody_there = false;
    }

    /// Nobody listens.
    pub(super) fn nobody(&mut self) {
        self.is_nobody_there = true;
    }

    /// Whether everybody who was known when the question went out has answered it.
    pub(super) fn is_complete(&self) -> bool {
        let all_answered = || self.known.values().all(|entry| entry.unanswered == 0);
        self.is_nobody_there || (self.is_awaited && all_answered())
    }

    /// Takes in what was answered, by name.
    pub(super) fn note(&mut self, answers: impl IntoIterator<Item = (String, T)>) {
        for (name, told) in answers {
            if self.known.len() >= MOST && !self.known.contains_key(&name) {
                self.strangers += 1;
            } else {
                self.known.insert(name, Entry { told, unanswered: 0 });
            }
        }
    }

    /// All answers are in that will be.
    pub(super) fn end(&mut self) {
        self.left_out = self.strangers;
        self.known.retain(|_, entry| entry.unanswered < MOST_UNANSWERED);
    }

    /// How many answered and are not told of.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    /// Who is told of.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.known.iter().map(|(name, entry)| (name.as_str(), &entry.told))
    }
}

/// Whether a name can stand in a label, and is no longer than names are.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(registry: &mut Registry<u32>, names: &[String]) -> Vec<String> {
        registry.begin();
        registry.note(names.iter().map(|name| (name.clone(), 0)));
        registry.end();
        registry.iter().map(|(name, _)| name.to_owned()).collect()
    }

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn who_is_silent_twice_is_gone_and_who_was_slow_is_not() {
        let mut registry = Registry::default();
        assert!(!registry.is_complete(), "nobody is known yet, and somebody may come");
        ask(&mut registry, &names(&["a", "b"]));
        ask(&mut registry, &names(&["a", "b"]));
        assert!(registry.is_complete());
        assert_eq!(ask(&mut registry, &names(&["b"])), ["a", "b"]);
        assert!(!registry.is_complete());
        // Late, and still in time.
        registry.note([("a".to_owned(), 1)]);
        assert_eq!(ask(&mut registry, &names(&["b"])), ["a", "b"]);
        assert_eq!(ask(&mut registry, &names(&["b"])), ["b"]);
    }

    #[test]
    fn who_is_too_much_is_counted_and_those_who_were_first_stay() {
        let mut registry = Registry::default();
        let mut all: Vec<String> = (0..MOST + 10).map(|number| format!("w{number}")).collect();
        let told = ask(&mut registry, &all);
        assert_eq!((told.len(), registry.left_out()), (MOST, 10));
        all.reverse();
        assert_eq!(ask(&mut registry, &all), told);
    }

    #[test]
    fn nobody_there_is_an_answer() {
        let mut registry = Registry::<u32>::default();
        registry.begin();
        registry.nobody();
        assert!(registry.is_complete());
    }

    #[test]
    fn names_that_would_break_the_page_are_none() {
        assert!(is_name("TaXGuGznXUHo4VqE") && is_name("orders.eu-1_a"));
        assert!(!is_name("") && !is_name("a\"b") && !is_name("a b") && !is_name(&"a".repeat(129)));
    }
}
