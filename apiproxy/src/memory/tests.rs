//! The budget as a model sees it.

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

fn budget(held_bytes: usize, coming_bytes: usize) -> Rc<MemoryBudget> {
    MemoryBudget::new(MemoryLimits { held_bytes, coming_bytes }, Arc::default())
}

fn known(bytes: usize) -> Expectation {
    Expectation { bytes, is_guess: false }
}

fn sums(budget: &MemoryBudget) -> (usize, usize, usize) {
    (budget.held.get(), budget.arriving.get(), budget.coming.get())
}

#[test]
fn a_connection_holds_no_more_than_it_leaves_to_others() {
    let budget = budget(100 * MIB, 100);
    let (first, second, third) = (budget.open(), budget.open(), budget.open());
    let half = BodyBudget::take(&first, 50 * MIB).expect("half is left");
    assert!(BodyBudget::take(&first, 1).is_none());
    let quarter = BodyBudget::take(&second, 25 * MIB).expect("a quarter is left");
    assert!(BodyBudget::take(&second, 1).is_none());
    let little = BodyBudget::take(&third, 12 * MIB).expect("half of what is left");
    let reserved =
        BodyBudget::take(&budget.open(), LITTLE_BYTES.end).expect("the reserve is for little");
    assert!(BodyBudget::take(&second, 1).is_none());
    assert!(BodyBudget::take(&budget.open(), LITTLE_BYTES.end + MIB).is_none());
    drop((half, reserved));
    assert!(
        BodyBudget::take(&second, 19 * MIB).is_some()
            && BodyBudget::take(&second, 20 * MIB).is_none()
    );
    drop((quarter, little));
    assert_eq!(sums(&budget), (0, 0, 0));
}

#[test]
fn many_greedy_connections_leave_room_for_one_more() {
    let budget = budget(64 * MIB, 32 * MIB);
    let mut greedy = Vec::new();
    for _ in 0..400 {
        let account = budget.open();
        let held: Vec<_> = std::iter::from_fn(|| BodyBudget::take(&account, 10_000)).collect();
        assert!(!held.is_empty(), "there is room for a newcomer: {:?}", sums(&budget));
        greedy.push((account, held));
        (0..LOW_LOOKS).for_each(|_| budget.tick());
        // Who is told to close does.
        if let Some(evicted) = budget.evicted.get() {
            let place =
                greedy.iter().position(|(account, _)| account.key == evicted).expect("it is there");
            let (account, _) = &greedy[place];
            assert_eq!(
                account.held(),
                greedy.iter().map(|(account, _)| account.held()).max().unwrap()
            );
            greedy.swap_remove(place);
        }
    }
    assert_eq!(budget.evicted.get(), None);
    drop(greedy);
    assert_eq!(sums(&budget), (0, 0, 0));
}

#[test]
fn many_late_comers_with_their_least_leave_room_for_one_more() {
    let budget = budget(8 * MIB, 8 * MIB);
    let accounts: Vec<_> = (0..110).map(|_| budget.open()).collect();
    let mut held = Vec::new();
    for bytes in [12_000, 1_500] {
        for account in &accounts {
            held.extend(std::iter::from_fn(|| BodyBudget::take(account, bytes)));
        }
    }
    let first = accounts[0].held();
    assert!(first > 20 * accounts[109].held(), "the last found only the reserve: {first}");
    assert!(BodyBudget::take(&budget.open(), 4_000).is_some(), "{:?}", sums(&budget));
}

#[test]
fn what_is_not_here_whole_takes_half_at_the_most() {
    let budget = budget(100, 100);
    let accounts: Vec<_> = (0..100).map(|_| budget.open()).collect();
    let mut slow: Vec<_> = accounts.iter().map(BodyBudget::arriving).collect();
    let taken = slow.iter_mut().map(|slow| slow.reach(1)).filter(|reached| *reached).count();
    assert_eq!(taken, 50);
    assert!(!slow[0].reach(2), "none grows any more");
    let whole = BodyBudget::take(&accounts[99], 10).expect("whole requests have the other half");
    slow[0].arrived();
    assert!(slow[99].reach(1), "one that is whole makes room for another");
    assert_eq!(sums(&budget), (61, 50, 0));
    drop((slow, whole));
    assert_eq!(sums(&budget), (0, 0, 0));
}

#[test]
fn an_answer_is_held_at_what_it_costs_until_it_is_taken() {
    let budget = budget(MIB, MIB);
    let account = budget.open();
    let smaller = Reservation::make(&account, known(10_000), Instant::now()).unwrap();
    assert_eq!(budget.coming.get(), 10_000);
    let smaller = smaller.arrived(500).unwrap();
    assert_eq!(sums(&budget), (500, 0, 0));
    let larger = Reservation::make(&account, known(100), Instant::now()).unwrap();
    let larger = larger.arrived(600_000).expect("there is room for more than was expected");
    assert_eq!(sums(&budget), (600_500, 0, 0));
    let too_large = Reservation::make(&account, known(100), Instant::now());
    assert!(too_large.is_none(), "the connection holds more than it leaves");
    let other = budget.open();
    let too_large = Reservation::make(&other, known(100), Instant::now()).unwrap();
    assert!(too_large.arrived(MIB).is_none(), "never more than the limit");
    drop((smaller, larger));
    assert_eq!(sums(&budget), (0, 0, 0));
}

#[test]
fn large_answers_leave_a_quarter_of_what_may_come_to_small_ones() {
    let budget = budget(64 * MIB, 8 * MIB);
    let account = budget.open();
    let now = Instant::now();
    let large: Vec<_> =
        std::iter::from_fn(|| Reservation::make(&account, known(MIB), now)).collect();
    assert_eq!(large.len(), 6);
    let small: Vec<_> =
        std::iter::from_fn(|| Reservation::make(&budget.open(), known(SMALL_REPLY_BYTES), now))
            .collect();
    assert_eq!(small.len(), 2 * MIB / SMALL_REPLY_BYTES);
    drop((large, small));
    let one = Reservation::make(&account, known(20 * MIB), now);
    assert!(one.is_some(), "one may always come");
}

#[test]
fn a_guess_counts_in_full_for_a_moment() {
    let budget = budget(64 * MIB, 8 * MIB);
    let account = budget.open();
    let now = Instant::now();
    let guess = || Reservation::make(&account, Expectation { bytes: MIB, is_guess: true }, now);
    let guesses: Vec<_> = std::iter::from_fn(guess).collect();
    assert_eq!(guesses.len(), 6);
    budget.age(now + GUESS_LIMIT - Duration::from_millis(1));
    assert!(guess().is_none());
    budget.age(now + GUESS_LIMIT);
    assert_eq!(budget.coming.get(), 6 * SMALL_REPLY_BYTES);
    assert!(guess().is_some());
    drop(guesses);
    assert_eq!(sums(&budget), (0, 0, 0));
    budget.age(now + 2 * GUESS_LIMIT);
    assert!(budget.guesses.borrow().is_empty());
}

#[test]
fn what_waits_for_the_socket_is_held_until_it_took_all() {
    let budget = budget(100, 100);
    let account = budget.open();
    BodyBudget::take(&account, 10).unwrap().until_flushed();
    assert_eq!(sums(&budget).0, 10);
    account.flushed();
    assert_eq!(sums(&budget).0, 0);
    BodyBudget::take(&account, 10).unwrap().until_flushed();
    drop(account);
    assert_eq!(sums(&budget).0, 0, "a connection that ends takes it along");
}

/// What can happen, with the number of a connection or of a guard, taken modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Take(usize, usize),
    Begin(usize),
    Reach(usize, usize),
    Whole(usize),
    Absorb(usize, usize),
    Shrink(usize, usize),
    Flush(usize),
    AfterFlush(usize),
    Drop(usize),
    Reserve(usize, usize, bool),
    Answer(usize, usize),
    GiveUp(usize),
    Age(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (number, bytes) = (0..64_usize, 0..400_usize);
    prop_oneof![
        (number.clone(), bytes.clone()).prop_map(|(on, bytes)| Step::Take(on, bytes)),
        number.clone().prop_map(Step::Begin),
        (number.clone(), bytes.clone()).prop_map(|(of, bytes)| Step::Reach(of, bytes)),
        number.clone().prop_map(Step::Whole),
        (number.clone(), number.clone()).prop_map(|(of, other)| Step::Absorb(of, other)),
        (number.clone(), bytes.clone()).prop_map(|(of, bytes)| Step::Shrink(of, bytes)),
        number.clone().prop_map(Step::Flush),
        number.clone().prop_map(Step::AfterFlush),
        number.clone().prop_map(Step::Drop),
        (number.clone(), bytes, any::<bool>())
            .prop_map(|(on, bytes, guess)| Step::Reserve(on, bytes, guess)),
        (number.clone(), 0..3_000_usize).prop_map(|(of, bytes)| Step::Answer(of, bytes)),
        number.prop_map(Step::GiveUp),
        (0..400_u64).prop_map(Step::Age),
    ]
}

proptest! {
    #[test]
    fn the_sums_are_those_of_the_guards_and_everything_returns_to_zero(
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        const LIMIT: usize = 2_000;
        let budget = budget(LIMIT, 900);
        let accounts: Vec<_> = (0..4).map(|_| budget.open()).collect();
        let (mut held, mut asked): (Vec<BodyBudget>, Vec<Reservation>) = Default::default();
        let mut now = Instant::now();
        for step in steps {
            let free = budget.free();
            match step {
                Step::Take(on, bytes) => {
                    let account = &accounts[on % 4];
                    let before = account.held();
                    let taken = BodyBudget::take(account, bytes);
                    prop_assert!(taken.is_none() || before + 2 * bytes <= free);
                    prop_assert!(taken.is_some() || before + 2 * bytes > free || free < LIMIT / 8 + bytes);
                    held.extend(taken);
                }
                Step::Begin(on) => held.push(BodyBudget::arriving(&accounts[on % 4])),
                Step::Reach(of, bytes) if !held.is_empty() => {
                    let of = of % held.len();
                    let before = held[of].bytes;
                    let reached = held[of].reach(bytes);
                    prop_assert_eq!(held[of].bytes, if reached { before.max(bytes) } else { before });
                }
                Step::Whole(of) if !held.is_empty() => {
                    let of = of % held.len();
                    held[of].arrived();
                }
                Step::Absorb(of, other) if held.len() > 1 => {
                    let other = held.swap_remove(other % held.len());
                    let of = of % held.len();
                    if !held[of].arriving && Rc::ptr_eq(&held[of].account, &other.account) {
                        held[of].absorb(other);
                    }
                }
                Step::Shrink(of, bytes) if !held.is_empty() => {
                    let of = of % held.len();
                    held[of].arrived();
                    held[of].shrink_to(bytes);
                }
                Step::AfterFlush(of) if !held.is_empty() => held.swap_remove(of % held.len()).until_flushed(),
                Step::Flush(on) => accounts[on % 4].flushed(),
                Step::Drop(of) if !held.is_empty() => drop(held.swap_remove(of % held.len())),
                Step::Reserve(on, bytes, is_guess) => {
                    let expected = Expectation { bytes, is_guess };
                    asked.extend(Reservation::make(&accounts[on % 4], expected, now));
                }
                Step::Answer(of, bytes) if !asked.is_empty() => {
                    held.extend(asked.swap_remove(of % asked.len()).arrived(bytes));
                }
                Step::GiveUp(of) if !asked.is_empty() => drop(asked.swap_remove(of % asked.len())),
                Step::Age(ms) => {
                    now += Duration::from_millis(ms);
                    budget.age(now);
                }
                _ => {}
            }
            let reserved = |asked: &Reservation| match &asked.room {
                Reserved::Known { held, coming } => (*held, *coming),
                Reserved::Guess(guess) => (guess.held.get(), guess.coming.get()),
            };
            let unflushed: usize = accounts.iter().map(|account| account.unflushed.get()).sum();
            let sum = held.iter().map(|held| held.bytes).sum::<usize>()
                + asked.iter().map(|asked| reserved(asked).0).sum::<usize>()
                + unflushed;
            let arriving: usize = held.iter().filter(|held| held.arriving).map(|held| held.bytes).sum();
            let coming: usize = asked.iter().map(|asked| reserved(asked).1).sum();
            prop_assert_eq!(sums(&budget), (sum, arriving, coming));
            prop_assert!(sum <= LIMIT && arriving <= LIMIT / 2 && coming <= 900);
            prop_assert_eq!(accounts.iter().map(|account| account.held()).sum::<usize>(), sum);
        }
        drop((held, asked, accounts));
        prop_assert_eq!(sums(&budget), (0, 0, 0));
        prop_assert_eq!(budget.metrics.held_bytes.get(), 0);
    }
}
