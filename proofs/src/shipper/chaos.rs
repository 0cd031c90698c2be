//! Chaos from files to files: hosts write and rotate, producers, consumers and the broker are
//! killed, stopped and frozen, a disk is full, consumers join and leave. Everything random comes
//! from one seed. Then all come back, and the judge counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use natsway_testkit::TestBroker;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::field::{Program, Programs};
use super::hosts::Host;
use super::judge::{self, OutputReport};
use super::mount::SmallDisk;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything random comes from.
    pub seed: u64,
    /// How long hosts write and things break.
    pub duration: Duration,
    /// Faults to make in that time.
    pub faults: u32,
    /// Hosts.
    pub hosts: usize,
    /// Lines that all hosts write together.
    pub lines: u64,
    /// The consumers with lists read all partitions, each of them, and so overtake each other all
    /// the time.
    pub overlapping: bool,
    /// `SHIPPER_ROTATE` of all consumers.
    pub rotate: Option<String>,
    /// The program `producer`.
    pub producer: PathBuf,
    /// The program `consumer`.
    pub consumer: PathBuf,
    /// Where everything is kept.
    pub directory: PathBuf,
}

/// What a run did, and whether the promise held.
#[derive(Debug, Serialize)]
pub struct ChaosReport {
    /// Whether every line is there once and in order, in both clusters.
    pub kept: bool,
    /// The seed, to run it again.
    pub seed: u64,
    /// Hosts that wrote.
    pub hosts: usize,
    /// Lines that they wrote.
    pub lines_written: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u32>,
    /// Faults in all.
    pub faults_total: u32,
    /// Whether there was a disk to fill.
    pub small_disk: bool,
    /// Commits that were refused since another consumer was first, as far as the logs of the
    /// consumers with lists tell.
    pub overtaken: u64,
    /// Seconds from the last line written until all had arrived.
    pub settle_seconds: f64,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// Programs that did not end well when they were asked to stop.
    pub unclean_stops: u32,
    /// The consumers that share partitions as a group.
    pub shared: OutputReport,
    /// The consumers with a list of partitions each.
    pub listed: OutputReport,
}

/// Which of the shared consumers has the small disk.
const ON_DISK: usize = 0;
/// Consumers of the shared cluster that may run at once.
const SHARED: usize = 5;
/// Those that run from the start.
const SHARED_AT_FIRST: usize = 3;
/// The lists of the other cluster's two consumers.
const LISTS: [&str; 2] = ["0,1", "2,3,4"];
/// Those with which they overtake each other.
const OVERLAPPING_LISTS: [&str; 2] = ["0,1,2,3,4", "0,1,2,3,4"];
/// All lines have to have arrived so long after the last was written,
const SETTLE: Duration = Duration::from_secs(240);
/// and so long after the last that arrived: longer than any time-out of the programs, their ways
/// back included.
const STALL: Duration = Duration::from_secs(75);

/// Something to undo later.
enum Undo {
    Producer(usize),
    Shared(usize),
    Listed(usize),
    ThawShared(usize),
    ThawListed(usize),
    Broker,
    ThawBroker,
    Disk,
    /// No undoing, but a blow at the worst moment: the consumer on the full disk is killed.
    CrashOnDisk,
}

struct Chaos {
    plan: Plan,
    random: fastrand::Rng,
    broker: TestBroker,
    broker_up: bool,
    hosts: Vec<Host>,
    producers: Vec<Program>,
    shared: Vec<Program>,
    listed: Vec<Program>,
    disk: Option<SmallDisk>,
    disk_full: bool,
    undo: Vec<(Instant, Undo)>,
    faults: BTreeMap<&'static str, u32>,
    unclean_stops: u32,
}

/// Makes the chaos, then judges it.
///
/// # Errors
/// When the run itself cannot be carried through: that is neither a kept nor a broken promise.
pub async fn run(plan: Plan) -> Result<ChaosReport> {
    let began = Instant::now();
    std::fs::create_dir_all(plan.directory.join("logs"))
        .context("the directory of the run cannot be made")?;
    let mut chaos = Chaos::start(plan).await?;
    chaos.rage().await?;
    let (settle_seconds, verdicts) = chaos.settle().await?;
    let [shared, listed] = verdicts;
    let lines_written = chaos.hosts.iter().map(Host::written).sum();
    Ok(ChaosReport {
        kept: shared.is_clean() && listed.is_clean(),
        seed: chaos.plan.seed,
        hosts: chaos.hosts.len(),
        lines_written,
        faults_total: chaos.faults.values().sum(),
        faults: std::mem::take(&mut chaos.faults),
        small_disk: chaos.disk.is_some(),
        overtaken: chaos.overtaken()?,
        settle_seconds,
        seconds: began.elapsed().as_secs_f64(),
        unclean_stops: chaos.unclean_stops,
        shared,
        listed,
    })
}

impl Chaos {
    async fn start(plan: Plan) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let broker =
            TestBroker::builder().jetstream().port(natsway_testkit::free_port()).start().await;
        let directory = |name: &str| plan.directory.join(name);
        let disk = SmallDisk::mount(
            &directory(&format!("shared-{ON_DISK}")),
            64 + plan.lines * 60 / (1 << 20),
        );
        let disk = disk
            .map_err(|error| {
                eprintln!("no disk is filled, mounting one is not allowed here: {error}")
            })
            .ok();
        let programs = Programs {
            producer: plan.producer.clone(),
            consumer: plan.consumer.clone(),
            logs: directory("logs"),
            state: directory("state"),
            rotate: plan.rotate.clone(),
        };
        let per_host = plan.lines / plan.hosts as u64;
        let rate = per_host as f64 / plan.duration.as_secs_f64();
        let mut hosts = Vec::new();
        for index in 0..plan.hosts {
            hosts.push(Host::start(&directory("hosts"), index, per_host, rate, random.u64(..))?);
        }
        let producers =
            hosts.iter().map(|host| programs.producer(&broker, &host.name, &host.log)).collect();
        let shared = |index: usize| {
            let name = format!("shared-{index}");
            programs.shared(&broker, &name, &plan.directory.join(&name))
        };
        let listed = |(index, list): (usize, &&str)| {
            let name = format!("listed-{index}");
            programs.listed(&broker, &name, list, &plan.directory.join(&name))
        };
        let lists = if plan.overlapping { OVERLAPPING_LISTS } else { LISTS };
        let (shared, listed) =
            ((0..SHARED).map(shared).collect(), lists.iter().enumerate().map(listed).collect());
        let mut chaos = Self {
            plan,
            random,
            broker,
            broker_up: true,
            hosts,
            producers,
            shared,
            listed,
            disk,
            disk_full: false,
            undo: Vec::new(),
            faults: BTreeMap::new(),
            unclean_stops: 0,
        };
        let at_first = chaos.shared.iter_mut().take(SHARED_AT_FIRST);
        for program in chaos.producers.iter_mut().chain(at_first).chain(&mut chaos.listed) {
            program.start();
        }
        Ok(chaos)
    }

    /// Breaks things at random moments, evenly spread over the time.
    async fn rage(&mut self) -> Result<()> {
        let begin = Instant::now();
        let pause = self.plan.duration / self.plan.faults.max(1);
        for number in 0..self.plan.faults {
            let at = begin + pause * number + pause.mul_f64(self.random.f64());
            self.wait_until(at).await;
            self.fault()?;
        }
        self.wait_until(begin + self.plan.duration).await;
        Ok(())
    }

    /// Undoes what is due until then.
    async fn wait_until(&mut self, at: Instant) {
        while Instant::now() < at {
            self.undo_due().await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn undo_due(&mut self) {
        let now = Instant::now();
        let (due, later) =
            std::mem::take(&mut self.undo).into_iter().partition(|(at, _)| *at <= now);
        self.undo = later;
        let due: Vec<(Instant, Undo)> = due;
        for (_, undo) in due {
            self.undo(undo).await;
        }
    }

    async fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Producer(index) => {
                if !self.producers[index].start() {
                    self.later(0.1..0.3, Undo::Producer(index));
                }
            }
            Undo::Shared(index) => {
                if !self.shared[index].start() {
                    self.later(0.1..0.3, Undo::Shared(index));
                }
            }
            Undo::Listed(index) => {
                if !self.listed[index].start() {
                    self.later(0.1..0.3, Undo::Listed(index));
                }
            }
            Undo::ThawShared(index) => self.shared[index].thaw(),
            Undo::ThawListed(index) => self.listed[index].thaw(),
            Undo::Broker => {
                self.broker.start_again().await;
                self.broker_up = true;
            }
            Undo::ThawBroker => {
                self.broker.thaw();
                self.broker_up = true;
            }
            Undo::CrashOnDisk => {
                if self.shared[ON_DISK].is_running() {
                    self.shared[ON_DISK].kill9();
                    self.later(0.0..3.0, Undo::Shared(ON_DISK));
                }
            }
            Undo::Disk => {
                if let Some(disk) = &self.disk {
                    disk.relieve();
                }
                self.disk_full = false;
            }
        }
    }

    /// How often a consumer with a list was overtaken.
    fn overtaken(&self) -> Result<u64> {
        let mut times = 0;
        for entry in std::fs::read_dir(self.plan.directory.join("logs"))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("listed-")) {
                times += std::fs::read_to_string(path)?
                    .matches("another consumer committed first")
                    .count() as u64;
            }
        }
        Ok(times)
    }

    fn later(&mut self, seconds: std::ops::Range<f64>, undo: Undo) {
        let pause = seconds.start + self.random.f64() * (seconds.end - seconds.start);
        self.undo.push((Instant::now() + Duration::from_secs_f64(pause), undo));
    }

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// One fault. Where the dice choose what is broken already, they are thrown again.
    fn fault(&mut self) -> Result<()> {
        for _ in 0..100 {
            let made = match self.random.u32(0..100) {
                0..18 => self.hit_producer(),
                18..38 => self.hit_shared(),
                38..52 => self.hit_listed(),
                52..64 => self.hit_broker(),
                64..76 => {
                    let host = self.random.usize(0..self.hosts.len());
                    self.hosts[host].storm();
                    Some("rotation storm")
                }
                76..86 => self.fill_disk()?,
                _ => self.join_or_leave(),
            };
            if let Some(fault) = made {
                self.count(fault);
                return Ok(());
            }
        }
        bail!("no fault could be made: everything is broken already")
    }

    fn hit_producer(&mut self) -> Option<&'static str> {
        let index = self.random.usize(0..self.producers.len());
        if !self.producers[index].is_running() {
            return None;
        }
        self.later(0.0..3.0, Undo::Producer(index));
        if self.random.u8(0..3) > 0 {
            self.producers[index].kill9();
            return Some("producer killed");
        }
        self.producers[index].terminate();
        Some("producer stopped")
    }

    fn hit_shared(&mut self) -> Option<&'static str> {
        let index = self.random.usize(0..self.shared.len());
        if !self.shared[index].is_running() {
            return None;
        }
        match self.random.u8(0..4) {
            0 => {
                self.shared[index].freeze();
                self.later(1.0..12.0, Undo::ThawShared(index));
                Some("shared consumer frozen")
            }
            _ => {
                self.shared[index].kill9();
                self.later(0.0..10.0, Undo::Shared(index));
                Some("shared consumer killed")
            }
        }
    }

    fn hit_listed(&mut self) -> Option<&'static str> {
        let index = self.random.usize(0..self.listed.len());
        if !self.listed[index].is_running() {
            return None;
        }
        match self.random.u8(0..5) {
            0 => {
                self.listed[index].freeze();
                self.later(1.0..12.0, Undo::ThawListed(index));
                Some("listed consumer frozen")
            }
            1 => {
                self.listed[index].terminate();
                self.later(0.0..3.0, Undo::Listed(index));
                Some("listed consumer stopped")
            }
            _ => {
                self.listed[index].kill9();
                self.later(0.0..5.0, Undo::Listed(index));
                Some("listed consumer killed")
            }
        }
    }

    fn hit_broker(&mut self) -> Option<&'static str> {
        if !self.broker_up {
            return None;
        }
        self.broker_up = false;
        if self.random.bool() {
            self.broker.kill9();
            self.later(0.0..3.0, Undo::Broker);
            return Some("broker killed");
        }
        self.broker.freeze();
        self.later(0.5..10.0, Undo::ThawBroker);
        Some("broker frozen")
    }

    fn fill_disk(&mut self) -> Result<Option<&'static str>> {
        let Some(disk) = self.disk.as_ref().filter(|_| !self.disk_full) else { return Ok(None) };
        disk.fill().context("the small disk cannot be filled")?;
        self.disk_full = true;
        self.later(1.0..6.0, Undo::Disk);
        if self.random.bool() {
            return Ok(Some("disk full"));
        }
        self.later(0.2..0.9, Undo::CrashOnDisk);
        Ok(Some("disk full, its consumer killed"))
    }

    /// A consumer joins with a directory of its own, or leaves for a while.
    fn join_or_leave(&mut self) -> Option<&'static str> {
        let index = self.random.usize(0..self.shared.len());
        if !self.shared[index].is_running() {
            return self.shared[index].start().then_some("consumer joined");
        }
        // On a full disk, or without a broker, it cannot finish in time, and says so; it still ends
        // in order.
        self.shared[index].terminate();
        self.later(2.0..15.0, Undo::Shared(index));
        Some("consumer left")
    }

    /// Mends everything, waits until all lines have arrived, stops everything in order, and judges.
    async fn settle(&mut self) -> Result<(f64, [OutputReport; 2])> {
        // The broker and the disk first: what has to stop may need them.
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(undo).await;
        }
        for host in &mut self.hosts {
            host.finish()?;
        }
        for program in self.producers.iter_mut().chain(&mut self.shared).chain(&mut self.listed) {
            program.thaw();
            while !program.start() {
                sleep(Duration::from_millis(50)).await;
            }
        }
        self.undo.clear();
        let began = Instant::now();
        let written: BTreeMap<String, u64> =
            self.hosts.iter().map(|host| (host.name.clone(), host.written())).collect();
        let expected: u64 = written.values().sum();
        let clusters = [("shared", SHARED), ("listed", LISTS.len())];
        let clusters = clusters.map(|(name, count)| {
            (0..count)
                .map(|index| self.plan.directory.join(format!("{name}-{index}")))
                .collect::<Vec<_>>()
        });
        let mut progress = ([0, 0], Instant::now());
        loop {
            let arrived = [
                judge::count(&clusters[0], written.keys().cloned())?,
                judge::count(&clusters[1], written.keys().cloned())?,
            ];
            if arrived.iter().all(|lines| *lines >= expected) {
                break;
            }
            if arrived != progress.0 {
                progress = (arrived, Instant::now());
            }
            if began.elapsed() > SETTLE || progress.1.elapsed() > STALL {
                eprintln!(
                    "{arrived:?} of {expected} lines have arrived after {:?}",
                    began.elapsed()
                );
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        // A tail that is not committed yet counts as a line here: everything has to end in order
        // before it is judged.
        for program in self.producers.iter_mut().chain(&mut self.shared).chain(&mut self.listed) {
            program.stop().await;
            self.unclean_stops += program.unclean_stops;
        }
        let verdicts =
            [judge::judge(&clusters[0], &written)?, judge::judge(&clusters[1], &written)?];
        Ok((seconds, verdicts))
    }
}
