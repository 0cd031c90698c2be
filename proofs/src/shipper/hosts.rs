//! The hosts: threads that write numbered lines to logs, and rotate them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a host writes.
const TICK: Duration = Duration::from_millis(20);
/// Rotations by itself, on the mean.
const ROTATE_EVERY: Duration = Duration::from_secs(15);
/// Rotations of a storm.
const STORM: u32 = 12;

/// A log that is written at a steady rate. Dropping it stops the writing.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its log.
    pub log: PathBuf,
    written: Arc<AtomicU64>,
    storms: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Writer {
    name: String,
    log: PathBuf,
    file: File,
    number: u64,
    rotations: u64,
    /// Rotated files are numbered from the newest, as logrotate does, or else by time.
    shifting: bool,
    random: fastrand::Rng,
}

impl Host {
    /// Starts to write `lines` lines in all, at so many a second.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn start(
        directory: &Path,
        index: usize,
        lines: u64,
        per_second: f64,
        seed: u64,
    ) -> io::Result<Self> {
        let name = format!("web{index}.example.net");
        let log = directory.join(&name).join("app.log");
        fs::create_dir_all(directory.join(&name))?;
        let file = open(&log)?;
        let (written, storms, stop) = (Arc::default(), Arc::default(), Arc::default());
        let random = fastrand::Rng::with_seed(seed);
        let shifting = index.is_multiple_of(2);
        let mut writer = Writer {
            name: name.clone(),
            log: log.clone(),
            file,
            number: 0,
            rotations: 0,
            shifting,
            random,
        };
        let shared = (Arc::clone(&written), Arc::clone(&storms), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (written, storms, stop) = shared;
            writer.write_all(lines, per_second, &written, &storms, &stop)
        });
        Ok(Self { name, log, written, storms, stop, thread: Some(thread) })
    }

    /// Lines that are in its files.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Rotates the log many times in a row, soon.
    pub fn storm(&self) {
        self.storms.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until all lines are written.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(&mut self) -> io::Result<()> {
        match self.thread.take() {
            Some(thread) => {
                thread.join().map_err(|_| io::Error::other("a host's thread panicked"))?
            }
            None => Ok(()),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Writer {
    fn write_all(
        &mut self,
        lines: u64,
        per_second: f64,
        written: &AtomicU64,
        storms: &AtomicU64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let begin = Instant::now();
        let mut rotate_at = begin + self.rotation_pause();
        while self.number < lines && !stop.load(Ordering::Acquire) {
            let due = (begin.elapsed().as_secs_f64() * per_second) as u64 + 1;
            self.write(due.min(lines).saturating_sub(self.number))?;
            if storms.load(Ordering::Acquire) > 0 {
                storms.fetch_sub(1, Ordering::AcqRel);
                for _ in 0..STORM {
                    self.rotate(lines)?;
                    std::thread::sleep(Duration::from_millis(self.random.u64(0..30)));
                }
            }
            if Instant::now() >= rotate_at {
                self.rotate(lines)?;
                rotate_at = Instant::now() + self.rotation_pause();
            }
            written.store(self.number, Ordering::Release);
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn rotation_pause(&mut self) -> Duration {
        ROTATE_EVERY.mul_f64(0.5 + self.random.f64())
    }

    /// Writes in pieces that do not end where lines do.
    fn write(&mut self, count: u64) -> io::Result<()> {
        let mut text = String::new();
        for _ in 0..count {
            self.number += 1;
            text += &format!("{} {}\n", self.name, self.number);
        }
        let cut = self.random.usize(0..=text.len());
        self.file.write_all(&text.as_bytes()[..cut])?;
        self.file.write_all(&text.as_bytes()[cut..])
    }

    /// Renames the log away; sometimes a few more lines go to the old file, as of a process that
    /// has not noticed yet.
    fn rotate(&mut self, lines: u64) -> io::Result<()> {
        self.rotations += 1;
        let rotated = |suffix: String| PathBuf::from(format!("{}{suffix}", self.log.display()));
        if self.shifting {
            for number in (1..self.rotations).rev() {
                fs::rename(rotated(format!(".{number}")), rotated(format!(".{}", number + 1)))?;
            }
            fs::rename(&self.log, rotated(".1".into()))?;
        } else {
            fs::rename(&self.log, rotated(format!("-{:06}", self.rotations)))?;
        }
        let late = self.random.u64(0..4).min(lines - self.number);
        self.write(late)?;
        self.file = open(&self.log)?;
        let first = self.random.u64(0..4).min(lines - self.number);
        self.write(first)
    }
}

fn open(log: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(log)
}
