//! Whether what senders were told is what the stream has. Pure.

use std::collections::HashMap;

use serde::Serialize;

/// What became of one webhook, as its sender knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Which one; it stands in the body.
    pub(super) number: u64,
    /// Whether it had an Idempotency-Key, and was sent again until it was acknowledged.
    pub(super) has_key: bool,
    /// What the 202 said, if there was one.
    pub(super) receipt: Option<Receipt>,
    /// The statuses before that; 0 for a connection that broke.
    pub(super) refusals: Vec<u16>,
}

/// What a 202 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) id: String,
    pub(super) sequence: u64,
}

/// A message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) id: String,
    pub(super) sequence: u64,
    pub(super) number: u64,
}

/// What came of all of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    acknowledged: usize,
    with_key: usize,
    /// Webhooks without a key that no 202 came for.
    refused: usize,
    /// Of these, those that are stored all the same, as 504 says that they may be.
    refused_and_stored: usize,
    messages: usize,
    /// Webhooks that were stored more than once, their ids being different.
    stored_twice: usize,
    statuses: std::collections::BTreeMap<u16, usize>,
}

/// What was promised and does not hold.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) figures: Figures,
    pub(super) broken: Vec<String>,
}

/// Compares them.
pub(super) fn judge(told: &[Told], stored: &[Stored]) -> Verdict {
    let mut verdict = Verdict::default();
    let (mut ids, mut numbers) = (HashMap::<&str, Vec<u64>>::new(), HashMap::<u64, usize>::new());
    for message in stored {
        ids.entry(&message.id).or_default().push(message.sequence);
        *numbers.entry(message.number).or_default() += 1;
    }
    let repeated = ids.values().filter(|sequences| sequences.len() > 1).count();
    let (mut lost, mut elsewhere) = (0, 0);
    let figures = &mut verdict.figures;
    figures.messages = stored.len();
    for webhook in told {
        figures.with_key += usize::from(webhook.has_key);
        for status in &webhook.refusals {
            *figures.statuses.entry(*status).or_default() += 1;
        }
        let times = numbers.get(&webhook.number).copied().unwrap_or_default();
        figures.stored_twice += usize::from(times > 1);
        match &webhook.receipt {
            Some(receipt) => {
                figures.acknowledged += 1;
                match ids.get(receipt.id.as_str()) {
                    None => lost += 1,
                    Some(sequences) => {
                        elsewhere += usize::from(!sequences.contains(&receipt.sequence));
                    }
                }
            }
            None => {
                figures.refused += 1;
                figures.refused_and_stored += usize::from(times > 0);
            }
        }
    }
    let twice = figures.stored_twice;
    for (count, what) in [
        (lost, "were answered 202 and are not in the stream"),
        (repeated, "ids are in the stream more than once"),
        (twice, "webhooks are in the stream more than once"),
        (elsewhere, "are in the stream at another place than their 202 said"),
    ] {
        if count > 0 {
            verdict.broken.push(format!("{count} {what}"));
        }
    }
    if verdict.figures.acknowledged == 0 {
        verdict.broken.push("nothing was acknowledged".to_owned());
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: u64, id: &str, sequence: u64) -> Told {
        let receipt = Some(Receipt { id: id.to_owned(), sequence });
        Told { number, has_key: true, receipt, refusals: vec![504] }
    }

    fn stored(number: u64, id: &str, sequence: u64) -> Stored {
        Stored { id: id.to_owned(), sequence, number }
    }

    #[test]
    fn what_is_there_once_is_as_promised() {
        let refused = Told { number: 3, has_key: false, receipt: None, refusals: vec![504] };
        let verdict = judge(
            &[told(1, "a", 1), told(2, "b", 2), refused],
            &[stored(1, "a", 1), stored(2, "b", 2), stored(3, "c", 3)],
        );
        assert_eq!(verdict.broken, Vec::<String>::new());
        let Figures { acknowledged, refused, refused_and_stored, .. } = verdict.figures;
        assert_eq!((acknowledged, refused, refused_and_stored), (2, 1, 1));
        assert_eq!(verdict.figures.statuses[&504], 3);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let one = [told(1, "a", 1)];
        for (told, stored, broken) in [
            (&one[..], vec![], "not in the stream"),
            (&one[..], vec![stored(1, "a", 1), stored(1, "a", 2)], "ids are in the stream more"),
            (
                &one[..],
                vec![stored(1, "a", 1), stored(1, "b", 2)],
                "webhooks are in the stream more",
            ),
            (&one[..], vec![stored(1, "a", 2)], "another place"),
            (&one[..0], vec![], "nothing was acknowledged"),
        ] {
            let found = judge(told, &stored).broken;
            assert!(found.iter().any(|found| found.contains(broken)), "{broken}: {found:?}");
        }
    }
}
