//! What is counted as lost of two streams, and what is nobody's loss.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, kv};
use proptest::prelude::*;

use super::store::{kept, key};
use super::*;
use crate::group::name::GroupName;
use crate::group::settings::BUCKET;

fn observation(first: u64, last: u64, queue_last: u64, newest: Option<(u64, u64)>) -> Observation {
    Observation {
        streams: "one".into(),
        source_first: first,
        source_last: last,
        source_holes: 0,
        queue_last,
        newest: newest.map(|(queue, source)| Copied { queue, source }),
        lag: newest.map_or(last, |(_, source)| last - source),
        takes_everything: true,
        keeps_messages: None,
    }
}

#[test]
fn the_header_says_where_a_copy_comes_from() {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Stream-Source", "ORDERS 87 > {{Partition(2)}}.> orders.a");
    assert_eq!(Copied::of(3, &headers), Some(Copied { queue: 3, source: 87 }));
    headers.insert("Nats-Stream-Source", "ORDERS");
    assert_eq!(Copied::of(3, &headers), None);
}

#[test]
fn what_was_passed_over_is_gone() {
    let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
    account.take(&observation(1, 10, 10, Some((10, 10))));
    assert_eq!(account.loss().messages, 0);
    // 11 to 90 went before they were copied, and the next copy is 91.
    account.take(&observation(91, 100, 11, Some((11, 91))));
    account.take(&observation(95, 110, 15, Some((15, 95))));
    assert_eq!(account.loss(), SourceLoss { messages: 80, exact: true, largest_lag_messages: 15 });
}

#[test]
fn what_is_missing_before_the_next_copy_is_told_at_once_and_once() {
    let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
    account.take(&observation(51, 150, 10, Some((10, 10))));
    assert_eq!((account.loss().messages, account.loss().largest_lag_messages), (40, 140));
    account.take(&observation(61, 160, 10, Some((10, 10))));
    assert_eq!(account.loss().messages, 50);
    account.take(&observation(71, 170, 11, Some((11, 71))));
    assert_eq!(account.loss().messages, 60);
}

#[test]
fn other_streams_and_a_place_further_back_begin_anew() {
    let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
    account.take(&observation(51, 150, 10, Some((10, 10))));
    account
        .take(&Observation { streams: "other".into(), ..observation(1, 500, 1, Some((1, 400))) });
    account.take(&Observation { streams: "other".into(), ..observation(1, 500, 5, Some((5, 4))) });
    account.take(&Observation { streams: "other".into(), ..observation(1, 500, 9, Some((9, 8))) });
    assert_eq!(account.loss().messages, 40);
    let here = observation(1, 500, 20, None);
    assert_eq!(account.moved(&here, 300, Holes::default()).loss(), account.loss());
}

#[test]
fn filters_that_take_a_part_blame_only_what_a_look_finds_missing() {
    let part = |observation, lag| Observation { takes_everything: false, lag, ..observation };
    let mut account = Account::beginning(&part(observation(1, 0, 0, None), 0), 1, Holes::default());
    // Every other message is not ours, and what was copied may go.
    account.take(&part(observation(90, 200, 100, Some((100, 200))), 0));
    // No filter takes what comes now, and it goes again; or one is just being copied.
    account.take(&part(observation(301, 400, 100, Some((100, 200))), 0));
    account.take(&part(observation(401, 500, 100, Some((100, 200))), 1));
    assert_eq!(account.loss(), SourceLoss { messages: 0, exact: true, largest_lag_messages: 1 });
    account.take(&part(observation(411, 600, 100, Some((100, 200))), 90));
    assert_eq!(account.loss(), SourceLoss { messages: 10, exact: false, largest_lag_messages: 90 });
}

#[test]
fn holes_that_were_there_before_are_nobodys_loss() {
    let of = |holes, observation| Observation { source_holes: holes, ..observation };
    // The source had 1 to 100, and 40 of them not.
    let begin = of(40, observation(1, 100, 0, None));
    let mut account = Account::beginning(&begin, 1, Holes::counted(40, &begin));
    account.take(&of(30, observation(1, 100, 20, Some((20, 30)))));
    let loss = account.loss();
    assert_eq!(
        (loss.messages, loss.exact),
        (0, false),
        "some of these ten may have been dropped meanwhile"
    );
    account.take(&of(0, observation(1, 100, 60, Some((60, 100)))));
    assert_eq!((account.loss().messages, account.loss().exact), (0, true));
    account.take(&observation(111, 200, 61, Some((61, 111))));
    assert_eq!((account.loss().messages, account.loss().exact), (10, true));
}

#[test]
fn holes_whose_number_is_not_known_make_the_count_a_lower_bound() {
    let of = |holes, observation| Observation { source_holes: holes, ..observation };
    let mut account = Account::default();
    account.take(&of(10, observation(1, 100, 50, Some((50, 50)))));
    account.take(&of(10, observation(1, 100, 60, Some((60, 60)))));
    assert!(account.loss().exact, "nothing is missing yet");
    account.take(&of(10, observation(1, 100, 85, Some((85, 100)))));
    assert_eq!((account.loss().messages, account.loss().exact), (5, false));
    account.take(&of(10, observation(1, 200, 185, Some((185, 200)))));
    assert_eq!((account.loss().messages, account.loss().exact), (5, false));
    assert!(!account.moved(&observation(1, 200, 185, None), 1, Holes::default()).loss().exact);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_write_at_once_lose_nothing() {
    let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    let config = kv::Config { bucket: BUCKET.into(), ..Default::default() };
    let store = context.create_key_value(config).await.unwrap();
    let name = GroupName::new("S", "g").unwrap();
    let here = observation(1, 100, 10, Some((10, 10)));
    let before = write(&store, &name, |account| account.take(&here)).await.unwrap();
    // A member writes between the reading and the writing of whoever moves the group.
    let by_member = serde_json::to_vec(&Account { largest_lag: 777, ..before }).unwrap();
    let attempts = std::cell::Cell::new(0);
    let moved = write(&store, &name, |account| {
        attempts.set(attempts.get() + 1);
        if attempts.get() == 1 {
            let written = store.put(key(&name), by_member.clone().into());
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(written))
                .unwrap();
        }
        *account = account.moved(&here, 90, Holes::default());
    });
    moved.await.unwrap();
    let (account, _) = kept(&store, &name).await.unwrap();
    assert_eq!(
        (account.copied, account.largest_lag),
        (Some(Copied { queue: 10, source: 89 }), 777)
    );
}

proptest! {
    /// A stream that has holes and keeps a few messages, a queue that copies at its own pace,
    /// and observations whenever: the count is exact, and says where it may be too low.
    #[test]
    fn the_count_is_what_was_never_copied(
        there in prop::collection::vec(any::<bool>(), 0..40),
        steps in prop::collection::vec((0_u64..30, 0_u64..20, any::<bool>(), any::<bool>()), 1..60),
    ) {
        const KEPT: usize = 25;
        let old = there.len() as u64;
        let is_there = |sequence: &u64| [1, old].contains(sequence) || there[*sequence as usize - 1];
        let mut source: BTreeSet<u64> = (1..=old).filter(is_there).collect();
        let (mut last, mut copied, mut queue, mut lost) = (old, 0, 0, 0);
        let observe = |source: &BTreeSet<u64>, last: u64, queue, newest| {
            let first = source.first().copied().unwrap_or(last + 1);
            let source_holes = (last + 1 - first) - source.len() as u64;
            Observation { source_holes, ..observation(first, last, queue, newest) }
        };
        let begin = observe(&source, last, 0, None);
        let mut account = Account::beginning(&begin, 1, Holes::counted(begin.source_holes, &begin));
        for (published, copies, observations, handled) in steps {
            for _ in 0..published {
                last += 1;
                source.insert(last);
                while source.len() > KEPT {
                    let dropped = source.pop_first().unwrap();
                    lost += u64::from(dropped > copied);
                }
            }
            // Asked before the queue copies on.
            let asked = observe(&source, last, 0, None);
            for _ in 0..copies {
                let Some(next) = source.range(copied + 1..).next() else { break };
                copied = *next;
                queue += 1;
            }
            if observations {
                let newest = (!handled && queue > 0).then_some(Copied { queue, source: copied });
                account.take(&Observation { queue_last: queue, newest, ..asked });
                prop_assert!(account.loss().messages <= lost);
            }
        }
        account.take(&observe(&source, last, queue, (queue > 0).then_some((queue, copied))));
        let loss = account.loss();
        prop_assert!(loss.messages <= lost && (!loss.exact || loss.messages == lost), "{loss:?}, {lost}");
        prop_assert!(loss.exact || copied.max(source.first().map_or(0, |first| first - 1)) < old);
    }
}
