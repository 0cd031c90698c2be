//! How fleets share what several gateways send them, by tunnels and by the broker.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use natsway_tunnel::unary::choice::{BROKER_INTERVAL, BrokerTurns, Candidate, Load, Way, choose};

const GATEWAYS: usize = 2;

/// How a worker serves: so many at a time, the others wait in order.
#[derive(Clone, Copy)]
struct Service {
    at_a_time: usize,
    mean_us: f64,
    fails: bool,
    has_tunnel: bool,
    /// When it comes.
    from_us: u64,
}

const USUAL: Service =
    Service { at_a_time: 4, mean_us: 4_000.0, fails: false, has_tunnel: true, from_us: 0 };

#[derive(Default)]
struct Worker {
    waiting: VecDeque<Request>,
    serving: usize,
    served: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    begun_us: u64,
    gateway: usize,
    worker: usize,
    by_tunnel: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Comes,
    Served(Request),
    Arrives(usize),
    /// Workers answer pings.
    Pongs,
}

struct Gateway {
    turns: BrokerTurns,
    loads: Vec<Load>,
    /// The workers that have a tunnel here.
    tunnels: Vec<usize>,
}

/// What came of a run.
struct Outcome {
    served: Vec<usize>,
    by_broker: usize,
    /// Of the second half.
    by_broker_later: usize,
    /// Of those that did not fail, in microseconds.
    times_us: Vec<u64>,
    /// When each worker had a tunnel to each gateway.
    joined_us: Vec<Option<u64>>,
}

impl Outcome {
    fn percentile_us(&mut self, share: f64) -> u64 {
        self.times_us.sort_unstable();
        self.times_us[((self.times_us.len() - 1) as f64 * share) as usize]
    }

    fn share(&self, worker: usize) -> f64 {
        self.served[worker] as f64 / self.served.iter().sum::<usize>() as f64
    }
}

/// Requests come at random, `rate` a second; `by_broker` has all go by the broker.
fn run(workers: &[Service], rate: f64, requests: usize, by_broker: bool) -> Outcome {
    let mut random = fastrand::Rng::with_seed(7);
    let start = Instant::now();
    let at = |us: u64| start + Duration::from_micros(us);
    let new = || Gateway { turns: BrokerTurns::new(start), loads: vec![], tunnels: vec![] };
    let mut gateways: Vec<Gateway> = (0..GATEWAYS).map(|_| new()).collect();
    let mut fleet: Vec<Worker> = workers.iter().map(|_| Worker::default()).collect();
    let mut outcome = Outcome {
        served: vec![0; workers.len()],
        by_broker: 0,
        by_broker_later: 0,
        times_us: Vec::new(),
        joined_us: vec![None; workers.len()],
    };
    let mut events = BinaryHeap::new();
    events.push(Reverse((0, Event::Comes)));
    events.push(Reverse((0, Event::Pongs)));
    for (worker, service) in workers.iter().enumerate().filter(|(_, service)| service.from_us > 0) {
        events.push(Reverse((service.from_us, Event::Arrives(worker))));
    }
    let exponential = |random: &mut fastrand::Rng, mean: f64| -(1.0 - random.f64()).ln() * mean;
    let (mut sent, mut now_us) = (0, 0);
    while let Some(Reverse((us, event))) = events.pop() {
        assert!(us >= now_us);
        now_us = us;
        let mut begin = |fleet: &mut [Worker], random: &mut fastrand::Rng, request: Request| {
            let Service { mean_us, fails, .. } = workers[request.worker];
            fleet[request.worker].serving += 1;
            let time_us = if fails { 100.0 } else { exponential(random, mean_us) };
            events.push(Reverse((now_us + time_us as u64 + 1, Event::Served(request))));
        };
        match event {
            Event::Pongs => {
                for Gateway { loads, tunnels, .. } in &mut gateways {
                    for (load, worker) in loads.iter_mut().zip(tunnels) {
                        let in_hand = fleet[*worker].serving + fleet[*worker].waiting.len();
                        load.occupied(u16::try_from(in_hand).unwrap());
                    }
                }
                if sent < requests {
                    events.push(Reverse((now_us + 500_000, Event::Pongs)));
                }
            }
            Event::Arrives(_) => {
                for gateway in &mut gateways {
                    gateway.turns.arrived(gateway.tunnels.len());
                }
            }
            Event::Comes => {
                let gateway = random.usize(..GATEWAYS);
                let Gateway { turns, loads, tunnels } = &mut gateways[gateway];
                let candidate = |index: usize| loads[index].candidate(at(now_us));
                let way = match by_broker {
                    true => Way::Broker,
                    false => {
                        choose(turns, true, loads.len(), candidate, at(now_us), || random.u32(..))
                    }
                };
                let (worker, by_tunnel) = match way {
                    Way::Tunnel(index) => {
                        loads[index].begun();
                        (tunnels[index], true)
                    }
                    Way::Broker => {
                        outcome.by_broker += 1;
                        outcome.by_broker_later += usize::from(sent > requests / 2);
                        let there: Vec<usize> = (0..workers.len())
                            .filter(|worker| workers[*worker].from_us <= now_us)
                            .collect();
                        (there[random.usize(..there.len())], false)
                    }
                    Way::Nowhere => panic!("no limit is reached"),
                };
                let request = Request { begun_us: now_us, gateway, worker, by_tunnel };
                match fleet[worker].serving < workers[worker].at_a_time {
                    true => begin(&mut fleet, &mut random, request),
                    false => fleet[worker].waiting.push_back(request),
                }
                sent += 1;
                if sent < requests {
                    let pause_us = exponential(&mut random, 1_000_000.0 / rate);
                    events.push(Reverse((now_us + pause_us as u64, Event::Comes)));
                }
            }
            Event::Served(request) => {
                let Request { begun_us, gateway, worker, by_tunnel } = request;
                fleet[worker].serving -= 1;
                fleet[worker].served += 1;
                let in_hand = fleet[worker].serving + fleet[worker].waiting.len();
                if let Some(next) = fleet[worker].waiting.pop_front() {
                    begin(&mut fleet, &mut random, next);
                }
                let Service { fails, has_tunnel, .. } = workers[worker];
                if !fails {
                    outcome.times_us.push(now_us - begun_us);
                }
                let Gateway { turns, loads, tunnels } = &mut gateways[gateway];
                let known = tunnels.iter().position(|other| *other == worker);
                if by_tunnel {
                    let load = &mut loads[known.unwrap()];
                    load.ended(fails, at(now_us));
                    load.occupied(u16::try_from(in_hand).unwrap());
                    continue;
                }
                turns.answered(known.is_some(), tunnels.len());
                if has_tunnel && known.is_none() {
                    tunnels.push(worker);
                    loads.push(Load::new(0, at(now_us)));
                    outcome.joined_us[worker] = Some(now_us);
                }
            }
        }
    }
    outcome.served = fleet.iter().map(|worker| worker.served).collect();
    outcome
}

#[test]
fn equal_workers_get_equal_shares_whatever_their_number() {
    for count in [1, 2, 4, 16, 64] {
        let rate = 600.0 * count as f64;
        let outcome = run(&vec![USUAL; count], rate, 6_000 * count.min(8), false);
        for worker in 0..count {
            let share = outcome.share(worker) * count as f64;
            assert!((0.6..1.5).contains(&share), "{count} workers: {share} of an equal share");
        }
        let requests: usize = outcome.served.iter().sum();
        let by_broker = outcome.by_broker_later as f64 / (requests / 2) as f64;
        assert!(by_broker < 0.05, "{count} workers: {by_broker} by the broker");
    }
}

#[test]
fn a_worker_that_is_ten_times_slower_holds_up_fewer_than_by_chance() {
    let slow = Service { mean_us: 40_000.0, ..USUAL };
    let fleet = [USUAL, USUAL, USUAL, slow];
    let mut tunnels = run(&fleet, 380.0, 20_000, false);
    let mut chance = run(&fleet, 380.0, 20_000, true);
    let (by_tunnels, by_chance) = (tunnels.percentile_us(0.99), chance.percentile_us(0.99));
    assert!(by_tunnels * 2 < by_chance, "p99 {by_tunnels} us, by chance {by_chance} us");
    assert!(tunnels.share(3) < 0.15, "{}", tunnels.share(3));
}

#[test]
fn a_worker_that_fails_fast_attracts_no_more_than_its_share() {
    let failing = Service { fails: true, ..USUAL };
    for rate in [20.0, 500.0, 2_000.0] {
        let outcome = run(&[USUAL, USUAL, USUAL, failing], rate, 10_000, false);
        assert!(outcome.share(3) < 0.2, "{rate}/s: {}", outcome.share(3));
    }
    // Where all fail, none is avoided.
    let outcome = run(&[failing; 4], 500.0, 10_000, false);
    (0..4).for_each(|worker| assert!((0.15..0.35).contains(&outcome.share(worker))));
}

#[test]
fn who_comes_later_has_a_tunnel_soon_and_its_share() {
    for count in [4, 16] {
        let mut fleet = vec![USUAL; count];
        fleet[0].from_us = 2_000_000;
        let rate = 500.0 * count as f64;
        let outcome = run(&fleet, rate, (rate * 6.0) as usize, false);
        let joined_us = outcome.joined_us[0].expect("it has a tunnel");
        assert!(joined_us < 3_500_000, "{joined_us} us");
        // It was there for four of six seconds.
        let share = outcome.share(0) * count as f64;
        assert!((0.45..0.9).contains(&share), "{count} workers: {share}");
    }
}

#[test]
fn workers_without_a_tunnel_are_not_forgotten() {
    let without = Service { has_tunnel: false, ..USUAL };
    for (with, others, least, most_by_broker) in
        [(3, 1, 0.3, 0.75), (2, 2, 0.7, 1.0), (15, 1, 0.05, 0.35)]
    {
        let mut fleet = vec![USUAL; with];
        fleet.extend(vec![without; others]);
        let count = fleet.len() as f64;
        let outcome = run(&fleet, 300.0 * count, 20_000, false);
        let share = outcome.share(with) * count;
        assert!(share > least, "{others} of {count}: {share} of an equal share");
        let by_broker = outcome.by_broker as f64 / 20_000.0;
        assert!(by_broker <= most_by_broker, "{others} of {count}: {by_broker} by the broker");
    }
    let rare = run(&[USUAL; 4], 2.0, 60, false);
    assert!(rare.by_broker >= 30, "one a second goes by the broker: {}", rare.by_broker);
}

/// The turns of a version whose members all have a tunnel.
fn known(now: Instant) -> BrokerTurns {
    let mut turns = BrokerTurns::new(now);
    (0..1_000).for_each(|_| turns.answered(true, 2));
    turns
}

/// Requests at one moment, of which none is answered.
fn ways(turns: &mut BrokerTurns, candidates: &[Candidate], count: usize, now: Instant) -> Vec<Way> {
    let mut random = fastrand::Rng::with_seed(1);
    let candidate = |index: usize| candidates[index];
    let mut choose = |_| choose(turns, true, candidates.len(), candidate, now, || random.u32(..));
    (0..count).map(&mut choose).collect()
}

#[test]
fn a_broker_that_does_not_answer_has_only_what_no_tunnel_takes() {
    let now = Instant::now();
    let mut random = fastrand::Rng::with_seed(1);
    let mut way = |candidate| {
        // Nearly all would go by the broker.
        let mut turns = BrokerTurns::new(now);
        choose(&mut turns, false, 1, |_| candidate, now, || random.u32(..))
    };
    assert!((0..100).all(|_| way(Candidate::Free(9)) == Way::Tunnel(0)));
    assert_eq!(way(Candidate::Unusable), Way::Broker);
}

#[test]
fn when_all_are_full_the_broker_has_it_only_if_there_are_others() {
    let now = Instant::now();
    let mut turns = known(now);
    let full = [Candidate::Full, Candidate::Unusable];
    assert_eq!(ways(&mut turns, &full, 3, now), [Way::Broker, Way::Nowhere, Way::Nowhere]);
    assert_eq!(ways(&mut turns, &full, 1, now + BROKER_INTERVAL), [Way::Broker]);
    turns.answered(false, 2);
    let ways_now = ways(&mut turns, &full, 20, now + BROKER_INTERVAL);
    assert!(ways_now.iter().all(|way| *way == Way::Broker));
    let unusable = [Candidate::Unusable; 70];
    assert!(ways(&mut turns, &unusable, 9, now).iter().all(|way| *way == Way::Broker));
}

#[test]
fn of_many_tunnels_the_better_of_two_is_taken() {
    let now = Instant::now();
    let mut turns = known(now);
    let mut candidates = vec![Candidate::Free(100); 200];
    candidates[50..].fill(Candidate::Unusable);
    candidates[7] = Candidate::Free(0);
    let ways = ways(&mut turns, &candidates, 4_000, now);
    let best = ways.iter().filter(|way| **way == Way::Tunnel(7)).count();
    assert!((20..400).contains(&best), "{best}");
    let unusable = |way: &&Way| matches!(way, Way::Tunnel(50..) | Way::Nowhere);
    assert_eq!(ways.iter().filter(unusable).count(), 0);
}

#[test]
fn a_limit_is_kept_and_failures_are_forgotten() {
    let now = Instant::now();
    let mut load = Load::new(2, now);
    load.begun();
    assert_eq!(load.candidate(now), Candidate::Free(16));
    load.occupied(2);
    assert_eq!(load.candidate(now), Candidate::Full, "one of another sender");
    load.ended(true, now);
    load.occupied(0);
    assert_eq!((load.candidate(now), load.in_flight()), (Candidate::Free(16), 0));
    assert_eq!(load.candidate(now + Duration::from_secs(4)), Candidate::Free(0));
}
