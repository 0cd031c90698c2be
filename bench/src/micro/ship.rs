//! What the log shipper does for each batch: where it ends, and which file it goes to.

use std::hint::black_box;
use std::num::NonZeroUsize;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use natsway_shipper::framing::{FrameContext, Framer, LongLines};
use natsway_shipper::name::Source;
use natsway_shipper::pattern::{OutputPattern, Period};

use super::{Micro, Operation};

/// 64 KiB of lines of 256 bytes, which is more than a message takes.
const BYTES: usize = 64 << 10;
const LINE: usize = 256;

fn frame() -> Operation {
    let size = |bytes| NonZeroUsize::new(bytes).expect("above 0");
    let framer = Framer {
        batch_bytes: size(48 << 10),
        line_bytes: size(16 << 10),
        long_lines: LongLines::Split,
        event_start: None,
        one_event: false,
    };
    let mut bytes = vec![b'x'; BYTES];
    bytes.iter_mut().skip(LINE - 1).step_by(LINE).for_each(|byte| *byte = b'\n');
    Box::new(move || {
        black_box(framer.frame(black_box(&bytes), FrameContext::default()));
    })
}

/// The period that a moment is in, and the name of its file.
fn rotation() -> Operation {
    let pattern = OutputPattern::parse("{file}-%Y%m%d%H%M").expect("a sound pattern");
    let source = Source::new("host-07", Some("app-log")).expect("plain names");
    let now = Timestamp::from_second(1_700_000_000).expect("in range").to_zoned(TimeZone::UTC);
    Box::new(move || {
        let begin = Period::Minutes(15).begin(black_box(&now));
        drop(black_box(pattern.expand(&source, &begin, 0)));
    })
}

pub(super) fn all() -> Vec<Micro> {
    vec![
        Micro::new("shipper/cut a batch of lines/48KiB", frame),
        Micro::new("shipper/rotation/period and file", rotation),
    ]
}
