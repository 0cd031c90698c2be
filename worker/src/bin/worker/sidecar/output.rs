//! What an app writes: passed on as it comes, and its last lines kept.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Lines of the app's output that are kept, and the longest of them.
const LAST_LINES: usize = 20;
const LINE_BYTES: usize = 1_024;

/// Passes output on as it comes, and keeps its last lines. On a thread of its own, for whoever
/// takes our output may be slow; what is returned completes at its end.
pub(super) fn pass_on(
    from: io::Result<OwnedFd>,
    mut to: impl Write + Send + 'static,
    last_lines: Arc<Mutex<LastLines>>,
) -> io::Result<oneshot::Receiver<()>> {
    let mut from = File::from(from?);
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("app-output".to_owned()).spawn(move || {
        let mut piece = vec![0; 8 * 1_024];
        let (mut line, mut is_heard) = (Line::default(), true);
        while let Ok(count @ 1..) = from.read(&mut piece) {
            line.add(&piece[..count], &last_lines);
            // Who closed our own output does not want the app's, which must not be held up.
            is_heard = is_heard && to.write_all(&piece[..count]).and_then(|()| to.flush()).is_ok();
        }
        line.finish(&last_lines);
        // Nobody waits for what comes after the end.
        ended.send(()).ok();
    })?;
    Ok(end)
}

/// The last lines of both outputs, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct LastLines(VecDeque<String>);

impl LastLines {
    fn push(&mut self, line: &[u8]) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(String::from_utf8_lossy(line).trim_end_matches('\r').to_owned());
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

/// A line that is not yet whole.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    fn add(&mut self, piece: &[u8], last_lines: &Mutex<LastLines>) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let room = LINE_BYTES.saturating_sub(self.0.len());
            self.0.extend_from_slice(&text[..text.len().min(room)]);
            if part.ends_with(b"\n") {
                self.finish(last_lines);
            }
        }
    }

    fn finish(&mut self, last_lines: &Mutex<LastLines>) {
        if !self.0.is_empty() {
            last_lines.lock().unwrap_or_else(PoisonError::into_inner).push(&self.0);
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_in_parts_and_bounded() {
        let (lines, mut line) = (Mutex::default(), Line::default());
        for piece in [&b"one\ntw"[..], b"o\r\n", b"\nthree"] {
            line.add(piece, &lines);
        }
        line.finish(&lines);
        assert_eq!(lines.lock().unwrap().all(), ["one", "two", "three"]);
        for number in 0..50 {
            line.add(format!("{number}\n").as_bytes(), &lines);
        }
        let all = lines.lock().unwrap().all();
        assert_eq!((all.len(), all.first().map(String::as_str)), (LAST_LINES, Some("30")));
        line.add(&vec![b'x'; 10_000], &lines);
        line.add(b"\n", &lines);
        assert_eq!(lines.lock().unwrap().all().last().map(String::len), Some(LINE_BYTES));
    }
}
