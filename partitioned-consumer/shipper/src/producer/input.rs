//! Where lines come from: a followed file, or standard input.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::framing::{Frame, FrameContext, Framer, payload_of};
use crate::tail::{Chunk, Follow, Step, TailState, Tailer, Tally};

/// Pieces of standard input that may wait: the pipe behind them then fills, and its writer waits.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 * 1024;

/// See the module.
pub(super) enum Input {
    File(Box<Tailer>),
    Stdin(Box<Stdin>),
}

/// Standard input, read by a thread. What is read cannot be read again, so nothing of it survives
/// the process.
pub(super) struct Stdin {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    follow: Follow,
    buffer: Vec<u8>,
    position: u64,
    mid_line: bool,
    ended: bool,
    waiting_since: Option<Duration>,
    grown_at: Duration,
    tally: Tally,
    /// No more than what was read already.
    closing: bool,
}

impl Input {
    pub(super) fn file(path: &Path, follow: Follow, state: Option<TailState>) -> io::Result<Self> {
        Ok(Self::File(Box::new(Tailer::new(path, follow, state)?)))
    }

    pub(super) fn stdin(follow: Follow) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        std::thread::spawn(move || read_stdin(&sender));
        Self::Stdin(Box::new(Stdin {
            pieces,
            follow,
            buffer: Vec::new(),
            position: 0,
            mid_line: false,
            ended: false,
            waiting_since: None,
            grown_at: Duration::ZERO,
            tally: Tally::default(),
            closing: false,
        }))
    }

    /// Looks for something to send. It may block for as long as a read from a disk takes.
    pub(super) fn poll(&mut self, now: Duration) -> io::Result<Step> {
        match self {
            Self::File(tailer) => tailer.poll(now, false),
            Self::Stdin(stdin) => stdin.poll(now),
        }
    }

    /// The state for a checkpoint, the last of this process or not; none for what cannot be read
    /// again.
    pub(super) fn state(&mut self, offset: u64, last: bool) -> Option<TailState> {
        match self {
            Self::File(tailer) => Some(tailer.state(offset, last)),
            Self::Stdin(_) => None,
        }
    }

    pub(super) fn unread_bytes(&self) -> u64 {
        match self {
            Self::File(tailer) => tailer.unread_bytes(),
            Self::Stdin(stdin) => stdin.buffer.len() as u64,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        match self {
            Self::File(tailer) => tailer.tally(),
            Self::Stdin(stdin) => stdin.tally,
        }
    }

    /// Nothing will ever follow.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Stdin(stdin) if stdin.ended && stdin.buffer.is_empty())
    }

    /// Ends it. A file is read on at the next start; of standard input, what was taken from it
    /// still has to be sent.
    pub(super) fn close(&mut self) {
        if let Self::Stdin(stdin) = self {
            stdin.closing = true;
        }
    }

    /// Whether a process may stop here.
    pub(super) fn may_stop(&self) -> bool {
        matches!(self, Self::File(_)) || self.is_over()
    }
}

fn read_stdin(pieces: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let read = stdin.read(&mut piece).map(|bytes| {
            piece.truncate(bytes);
            piece
        });
        let over = read.as_ref().map_or(true, Vec::is_empty);
        if pieces.blocking_send(read).is_err() || over {
            return;
        }
    }
}

impl Stdin {
    fn poll(&mut self, now: Duration) -> io::Result<Step> {
        while self.buffer.len() < self.follow.framer.batch_bytes.get() && !self.ended {
            match self.pieces.try_recv() {
                Ok(piece) => {
                    let piece = piece?;
                    self.ended = piece.is_empty();
                    self.buffer.extend_from_slice(&piece);
                    self.grown_at = now;
                }
                Err(mpsc::error::TryRecvError::Empty) => {
                    self.ended = self.closing;
                    break;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => self.ended = true,
            }
        }
        if self.buffer.is_empty() {
            return Ok(Step::Idle);
        }
        let since = *self.waiting_since.get_or_insert(now);
        let frame_context = FrameContext {
            mid_line: self.mid_line,
            ended: self.ended,
            waited: now.saturating_sub(since) >= self.follow.linger,
            quiet: now.saturating_sub(self.grown_at) >= self.follow.event_timeout,
        };
        let framer: &Framer = &self.follow.framer;
        let (payload, consumed, long, gap) = match framer.frame(&self.buffer, frame_context) {
            Frame::Wait => return Ok(Step::Idle),
            Frame::Message { payload, consumed, long } => (payload, consumed, long, None),
            Frame::Skip(rest) => {
                let why = crate::head::Gap::LongLine;
                let gap = crate::head::Skipped { why, bytes: rest as u64 };
                (0, rest, self.buffer[rest - 1] != b'\n', Some(gap))
            }
        };
        let was_mid_line = std::mem::replace(&mut self.mid_line, long);
        self.waiting_since = None;
        let rest = self.buffer.split_off(consumed);
        let taken = std::mem::replace(&mut self.buffer, rest);
        self.tally.long_lines += u64::from(long && gap.is_none() && !was_mid_line);
        let start = self.position;
        self.position += consumed as u64;
        Ok(Step::Chunk(Chunk {
            start,
            end: self.position,
            payload: payload_of(taken, payload),
            gap,
        }))
    }
}
