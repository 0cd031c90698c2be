//! A caller on a bare socket that saturates its workers: a client library is too slow for what a
//! drain must survive.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use natsway_testkit::eventually;
use natsway_wire::Limits;
use natsway_wire::envelope::{NotRun, Reply, RequestEncoder, Signal, decode_reply};

use crate::stage::SUBJECT;

/// When nothing has been answered for this long, what is outstanding is taken for lost, and more is
/// sent.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// Requests written in one go.
const BATCH: u64 = 64;

/// A flood under way: it sends, as many at a time as the window has room for, until it is stopped.
pub(crate) struct Flood {
    shared: Arc<Shared>,
    threads: Option<(JoinHandle<()>, JoinHandle<Vec<Answer>>)>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Response,
    NotRun(NotRun),
    NoResponders,
    Other,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) responses: u64,
    pub(crate) moved: u64,
    /// Refused otherwise, or nobody was there.
    pub(crate) refused: u64,
    pub(crate) unanswered: u64,
    pub(crate) twice: u64,
}

impl Flood {
    /// Floods [`SUBJECT`] by the broker at this port, `window` requests at a time.
    pub(crate) fn start(port: u16, window: u64) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        let inbox = format!("_INBOX_apiproxy.{}", natsway_boot::random_id());
        let hello =
            r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}"#;
        write!(socket, "{hello}\r\nSUB {inbox}.* 1\r\n").unwrap();
        let shared = Arc::<Shared>::default();
        let reading = {
            let (socket, shared) = (socket.try_clone().unwrap(), Arc::clone(&shared));
            std::thread::spawn(move || read_answers(socket, &shared))
        };
        let writing = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || write_requests(socket, &inbox, window, &shared))
        };
        Self { shared, threads: Some((writing, reading)) }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(SeqCst)
    }

    /// Waits until so many requests were sent.
    pub(crate) async fn reaches(&self, sent: u64) {
        eventually(Duration::from_secs(120), async || match self.sent() {
            count if count >= sent => Ok(()),
            count => Err(format!("{count} of {sent} sent")),
        })
        .await;
    }

    /// Stops sending, waits for the answers that are still to come, and counts.
    pub(crate) fn stop(mut self) -> Tally {
        self.shared.stop.store(true, SeqCst);
        let (writing, reading) = self.threads.take().unwrap();
        writing.join().unwrap();
        let answers = reading.join().unwrap();
        tally(self.sent(), &answers)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}

/// Counts what [`read_answers`] gives.
fn tally(sent: u64, answers: &[Answer]) -> Tally {
    let mut tally = Tally { sent, ..Tally::default() };
    for answer in &answers[..sent as usize] {
        match answer {
            Answer::Response => tally.responses += 1,
            Answer::NotRun(NotRun::Moved) => tally.moved += 1,
            Answer::NotRun(_) | Answer::NoResponders => tally.refused += 1,
            Answer::Other => tally.unanswered += 1,
        }
    }
    tally.twice = answers.len() as u64 - sent;
    tally
}

fn write_requests(mut socket: TcpStream, inbox: &str, window: u64, shared: &Shared) {
    // Without a sending time, so that a slow machine makes nothing look late.
    let request = RequestEncoder::new(600_000, 0, "GET", "/", 128).unwrap().finish(b"");
    let mut batch = Vec::new();
    let mut sent = 0;
    let mut forgiven = 0;
    let mut last_progress = (0, Instant::now());
    while !shared.stop.load(SeqCst) {
        let answered = shared.answered.load(SeqCst);
        if answered > last_progress.0 {
            last_progress = (answered, Instant::now());
        } else if last_progress.1.elapsed() > LOST_AFTER {
            forgiven = sent - answered;
            last_progress.1 = Instant::now();
        }
        let outstanding = u64::saturating_sub(sent, answered + forgiven);
        if outstanding + BATCH > window {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        batch.clear();
        for sequence in sent..sent + BATCH {
            write!(batch, "PUB {SUBJECT} {inbox}.{sequence} {}\r\n", request.len()).unwrap();
            batch.extend_from_slice(&request);
            batch.extend_from_slice(b"\r\n");
        }
        socket.write_all(&batch).unwrap();
        sent += BATCH;
        shared.sent.store(sent, SeqCst);
    }
}

/// Reads until everything was answered, or the flood was stopped and nothing has come for a while.
/// Gives the answer to each request by its number, [`Answer::Other`] where there is none, and one
/// more entry for each second answer.
fn read_answers(socket: TcpStream, shared: &Shared) -> Vec<Answer> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut writer = socket.try_clone().unwrap();
    let last_answer = Cell::new(Instant::now());
    let mut reader =
        BufReader::with_capacity(1 << 20, Patient { socket, shared, last_answer: &last_answer });
    let mut answers: Vec<Answer> = Vec::new();
    let mut twice = Vec::new();
    let mut answered = 0;
    let mut line = String::new();
    loop {
        let stopped = shared.stop.load(SeqCst);
        if stopped && last_answer.get().elapsed() > LOST_AFTER {
            break;
        }
        if stopped && answered == shared.sent.load(SeqCst) && reader.buffer().is_empty() {
            break;
        }
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            break;
        }
        if line.starts_with("PING") {
            writer.write_all(b"PONG\r\n").unwrap();
            continue;
        }
        let Some((sequence, has_headers, length)) = message_line(&line) else { continue };
        let mut payload = vec![0; length + 2];
        reader.read_exact(&mut payload).unwrap();
        let answer = read_answer(&payload[..length], has_headers);
        let Some(answer) = answer else { continue };
        if answers.len() <= sequence {
            answers.resize(sequence + 1, Answer::Other);
        }
        if answers[sequence] == Answer::Other {
            answers[sequence] = answer;
            answered += 1;
            last_answer.set(Instant::now());
            shared.answered.store(answered, SeqCst);
        } else {
            twice.push(answer);
        }
    }
    answers.resize(shared.sent.load(SeqCst) as usize, Answer::Other);
    answers.extend(twice);
    answers
}

/// The number of the request, whether there are headers, and the length, of a line
/// `MSG subject sid [#headers] #total`.
fn message_line(line: &str) -> Option<(usize, bool, usize)> {
    let mut words = line.split_ascii_whitespace();
    let has_headers = match words.next()? {
        "MSG" => false,
        "HMSG" => true,
        _ => return None,
    };
    let sequence = words.next()?.rsplit('.').next()?.parse().ok()?;
    Some((sequence, has_headers, words.next_back()?.parse().ok()?))
}

fn read_answer(payload: &[u8], has_headers: bool) -> Option<Answer> {
    if has_headers {
        return payload.starts_with(b"NATS/1.0 503").then_some(Answer::NoResponders);
    }
    match decode_reply(&bytes::Bytes::copy_from_slice(payload), Limits::DEFAULT).unwrap() {
        Reply::Response(_) | Reply::Reference(..) => Some(Answer::Response),
        Reply::Signal(Signal::NotRun(reason)) => Some(Answer::NotRun(reason)),
        Reply::Signal(Signal::Accepted { .. } | Signal::Ready { .. } | Signal::Invite { .. }) => {
            None
        }
    }
}

/// A socket that waits through silence, until the flood was stopped and the silence has lasted.
struct Patient<'a> {
    socket: TcpStream,
    shared: &'a Shared,
    /// Of the broker's pings there is no end, so they are no sign of life.
    last_answer: &'a Cell<Instant>,
}

impl Patient<'_> {
    fn is_over(&self) -> bool {
        self.shared.stop.load(SeqCst) && self.last_answer.get().elapsed() > LOST_AFTER
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            if self.is_over() {
                return Ok(0);
            }
        }
    }
}
