//! Where one message ends: whole lines, whole events, bounded by size.
//!
//! A [`Framer`] looks at the bytes of a file from the first that is not sent, and says how many of
//! them make the next message. It keeps no state, so that cutting again after a restart gives the
//! same answer for a line above the limit, whatever batches it was in.

use std::num::NonZeroUsize;

use bytes::Bytes;
use regex::bytes::Regex;

/// What to do with a line above the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LongLines {
    /// Make several lines of it, each at the limit.
    Split,
    /// Keep its beginning, and record the rest as skipped.
    Truncate,
}

/// How to cut.
#[derive(Clone, Debug)]
pub struct Framer {
    /// Most bytes of one message.
    pub batch_bytes: NonZeroUsize,
    /// Most bytes of one line, line feed excluded; below `batch_bytes`.
    pub line_bytes: NonZeroUsize,
    /// What to do with longer ones.
    pub long_lines: LongLines,
    /// The first line of an event of several lines matches this; without, every line is an event.
    pub event_start: Option<Regex>,
    /// One event is one message (core mode has no other way to keep events of several lines
    /// together).
    pub one_event: bool,
}

/// What is known about the bytes that are not sent yet, beside the bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameContext {
    /// The byte before them is no line feed: they go on with a line that was cut at the limit.
    pub mid_line: bool,
    /// Nothing will follow them: the file was rotated away, or the input has ended.
    pub ended: bool,
    /// They have waited long enough for the rest of a batch.
    pub waited: bool,
    /// Nothing was added to them for so long that the last event counts as whole.
    pub quiet: bool,
}

/// The next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Wait for more bytes.
    Wait,
    /// A message of the first `payload` bytes, which uses up `consumed` of them.
    Message {
        /// Bytes to send: whole lines without the last line feed, or a piece of a line above the
        /// limit.
        payload: usize,
        /// Bytes of the file that are done with.
        consumed: usize,
        /// It is the beginning of a line above the limit.
        long: bool,
    },
    /// The first `0` bytes are the rest of a truncated line.
    Skip(usize),
}

impl Framer {
    /// Cuts the next message from `bytes`.
    pub fn frame(&self, bytes: &[u8], frame_context: FrameContext) -> Frame {
        if bytes.is_empty() {
            return Frame::Wait;
        }
        if frame_context.mid_line && self.long_lines == LongLines::Truncate {
            let rest = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            return Frame::Skip(rest);
        }
        let window = &bytes[..bytes.len().min(self.batch_bytes.get())];
        let full = window.len() == self.batch_bytes.get();
        let within = self.whole_lines(window);
        if within.whole == 0 {
            return self.without_line_feed(window, within, frame_context);
        }
        let event_is_whole = frame_context.quiet && self.event_start.is_some();
        let more_may_follow = !(within.long || frame_context.ended || event_is_whole);
        if more_may_follow && !(full || frame_context.waited || self.one_event) {
            return Frame::Wait;
        }
        let whole = &window[..within.whole];
        match &self.event_start {
            None if self.one_event => {
                let line = memchr::memchr(b'\n', whole).map_or(whole.len(), |at| at + 1);
                lines(line)
            }
            None => lines(whole.len()),
            Some(start) => {
                let events = self.whole_events(start, whole, more_may_follow);
                match events {
                    0 if more_may_follow && !full => Frame::Wait,
                    0 => lines(whole.len()),
                    events => lines(events),
                }
            }
        }
    }

    /// How far the window holds whole lines within the limit, and whether a line above it follows.
    fn whole_lines(&self, window: &[u8]) -> Whole {
        let limit = self.line_bytes.get();
        let mut whole = 0;
        // Only where two line feeds are far apart can a line be too long: look from limit to limit,
        // not from line to line.
        loop {
            let rest = &window[whole..];
            let reach = &rest[..rest.len().min(limit + 1)];
            match memchr::memrchr(b'\n', reach) {
                Some(at) => whole += at + 1,
                None => return Whole { whole, long: reach.len() > limit },
            }
        }
    }

    /// No whole line at the beginning of the window.
    fn without_line_feed(
        &self,
        window: &[u8],
        within: Whole,
        frame_context: FrameContext,
    ) -> Frame {
        if within.long {
            return Frame::Message {
                payload: self.line_bytes.get(),
                consumed: self.line_bytes.get(),
                long: true,
            };
        }
        if frame_context.ended {
            return Frame::Message { payload: window.len(), consumed: window.len(), long: false };
        }
        Frame::Wait
    }

    /// How far whole events go: up to the last line that begins one, or to the end where nothing
    /// can follow.
    fn whole_events(&self, start: &Regex, whole: &[u8], more_may_follow: bool) -> usize {
        let mut begins = Vec::new();
        let mut at = 0;
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            if at > 0 && start.is_match(&line[..line.len() - 1]) {
                if self.one_event {
                    return at;
                }
                begins.push(at);
            }
            at += line.len();
        }
        if more_may_follow { begins.last().copied().unwrap_or(0) } else { whole.len() }
    }
}

/// The first `bytes` of a buffer, without the memory of the rest: what waits for an acknowledgement
/// must not hold more than it counts for.
pub(crate) fn payload_of(mut buffer: Vec<u8>, bytes: usize) -> Bytes {
    if bytes < buffer.capacity() / 2 {
        return Bytes::copy_from_slice(&buffer[..bytes]);
    }
    buffer.truncate(bytes);
    Bytes::from(buffer)
}

struct Whole {
    whole: usize,
    long: bool,
}

/// A message of whole lines that end with a line feed.
fn lines(consumed: usize) -> Frame {
    Frame::Message { payload: consumed - 1, consumed, long: false }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: FrameContext =
        FrameContext { mid_line: false, ended: false, waited: true, quiet: true };

    fn framer(batch: usize, line: usize, long_lines: LongLines) -> Framer {
        Framer {
            batch_bytes: NonZeroUsize::new(batch).unwrap(),
            line_bytes: NonZeroUsize::new(line).unwrap(),
            long_lines,
            event_start: None,
            one_event: false,
        }
    }

    fn message(payload: usize, consumed: usize) -> Frame {
        Frame::Message { payload, consumed, long: false }
    }

    #[test]
    fn whole_lines_fill_a_message() {
        let framer = framer(16, 8, LongLines::Split);
        assert_eq!(framer.frame(b"one\ntwo\nthr", NOW), message(7, 8));
        assert_eq!(framer.frame(b"one\ntwo\nthr", FrameContext::default()), Frame::Wait);
        assert_eq!(
            framer.frame(b"one\ntwo\nthree\nfour\n", FrameContext::default()),
            message(13, 14)
        );
        assert_eq!(framer.frame(b"thr", NOW), Frame::Wait);
        assert_eq!(framer.frame(b"thr", FrameContext { ended: true, ..NOW }), message(3, 3));
        assert_eq!(framer.frame(b"\n", NOW), message(0, 1));
    }

    #[test]
    fn a_line_above_the_limit_is_split_or_truncated() {
        let split = framer(64, 4, LongLines::Split);
        let long = Frame::Message { payload: 4, consumed: 4, long: true };
        assert_eq!(split.frame(b"ok\n123456789\n", NOW), message(2, 3));
        assert_eq!(split.frame(b"123456789\n", NOW), long);
        assert_eq!(split.frame(b"9\nab\n", FrameContext { mid_line: true, ..NOW }), message(4, 5));
        assert_eq!(split.frame(b"1234\n", NOW), message(4, 5));
        assert_eq!(split.frame(b"1234", NOW), Frame::Wait);
        let truncate = framer(64, 4, LongLines::Truncate);
        assert_eq!(truncate.frame(b"123456789\nab\n", NOW), long);
        assert_eq!(
            truncate.frame(b"56789\nab\n", FrameContext { mid_line: true, ..NOW }),
            Frame::Skip(6)
        );
    }

    #[test]
    fn events_stay_whole() {
        let event_start = Some(Regex::new(r"^\d").unwrap());
        let framer = Framer { event_start, ..framer(64, 32, LongLines::Split) };
        let text = b"1 a\n  at x\n2 b\n  at y\n";
        assert_eq!(framer.frame(text, NOW), message(21, 22));
        assert_eq!(framer.frame(text, FrameContext::default()), Frame::Wait);
        assert_eq!(framer.frame(text, FrameContext { quiet: false, ..NOW }), message(10, 11));
        let single = Framer { one_event: true, ..framer };
        assert_eq!(single.frame(text, FrameContext::default()), message(10, 11));
        assert_eq!(single.frame(&text[11..], FrameContext::default()), Frame::Wait);
        assert_eq!(single.frame(&text[11..], NOW), message(10, 11));
    }

    proptest! {
        /// However bytes arrive, the lines come out as they went in; only lines above the limit are
        /// cut.
        #[test]
        fn lines_survive(
            lines in proptest::collection::vec("[a-z]{0,20}", 0..60),
            batch in 12_usize..64,
            limit in 1_usize..12,
            arrivals in proptest::collection::vec((1_usize..40, any::<bool>()), 1..200),
        ) {
            let framer = framer(batch, limit, LongLines::Split);
            let file = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
            let (mut sent, mut arrived, mut output) = (0, 0, Vec::new());
            let mut arrivals = arrivals.into_iter();
            while sent < file.len() {
                let (more, waited) = arrivals.next().unwrap_or((file.len(), true));
                arrived = (arrived + more).min(file.len());
                let mid_line = sent > 0 && file[sent - 1] != b'\n';
                let frame_context = FrameContext { mid_line, ended: false, waited, quiet: waited };
                if let Frame::Message { payload, consumed, .. } = framer.frame(&file[sent..arrived], frame_context) {
                    prop_assert!(consumed <= batch && payload <= consumed && consumed - payload <= 1);
                    output.extend(file[sent..sent + payload].split(|b| *b == b'\n').map(<[u8]>::to_vec));
                    sent += consumed;
                }
            }
            let expected: Vec<Vec<u8>> = lines
                .iter()
                .flat_map(|line| match line.len() {
                    0 => vec![Vec::new()],
                    _ => line.as_bytes().chunks(limit).map(<[u8]>::to_vec).collect(),
                })
                .collect();
            prop_assert_eq!(output, expected);
        }
    }
}
