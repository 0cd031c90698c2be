//! What a message says about the bytes that it carries: the header `Natsway-Shipper`.
//!
//! A source's history is one run of bytes, counted from 0 and running on over rotations of its
//! file. A *generation* names one such history; a new one begins only when the producer's
//! checkpoint is lost. The payload of a message is the source's bytes from `start` to `end`, less
//! the last line feed, so that a subscriber which knows nothing of this still reads lines.
//!
//! ```text
//! Natsway-Shipper: 1 g=0192f3a1b2c30badcafe s=4096 e=8192 f=1024 [o=512] [z=20000] [x=truncated:50]
//! ```

use std::fmt;
use std::str::FromStr;

/// The header.
pub const HEADER: &str = "Natsway-Shipper";

const VERSION: &str = "1";

/// The latest that the 48 bits of a generation can say; some eight thousand years from now.
const LATEST_UNIX_MS: u64 = (1 << 48) - 1;

/// How far ahead of the broker's clock a history may be born, in milliseconds: a day. Consumers
/// refuse one that is further ahead, since all that is shipped later would look older. Producers
/// begin theirs behind every history that they find and consumers take. Both go by this one bound:
/// with a smaller one a consumer would refuse what a producer began behind somebody's forged
/// history.
pub const MOST_AHEAD_MS: u64 = 86_400_000;

/// One history of a source. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    born_unix_ms: u64,
    random: u32,
}

impl Generation {
    /// A generation that is born now, and after `older` whatever the clock says.
    pub fn after(older: Option<Self>, now_unix_ms: u64, random: u32) -> Self {
        let earliest = older.map_or(0, |older| older.born_unix_ms.saturating_add(1));
        // It must not wrap: that would be the oldest of all.
        Self { born_unix_ms: now_unix_ms.max(earliest).min(LATEST_UNIX_MS), random }
    }

    /// When it was born, in milliseconds since 1970, by its producer's clock.
    pub fn born_unix_ms(self) -> u64 {
        self.born_unix_ms
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}{:08x}", self.born_unix_ms, self.random)
    }
}

impl FromStr for Generation {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (born, random) = text.split_at_checked(12).ok_or(HeadError("generation"))?;
        if random.len() != 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(HeadError("generation"));
        }
        let born_unix_ms = u64::from_str_radix(born, 16).map_err(|_| HeadError("generation"))?;
        let random = u32::from_str_radix(random, 16).map_err(|_| HeadError("generation"))?;
        Ok(Self { born_unix_ms, random })
    }
}

/// Why bytes of a source are not in any message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The file was truncated before they were read.
    Truncated,
    /// The file was removed before they were read.
    Vanished,
    /// The rest of a line above the limit.
    LongLine,
}

impl Gap {
    fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Vanished => "vanished",
            Self::LongLine => "long-line",
        }
    }
}

/// Bytes that are in no message. Their number may be less than the offsets that are passed over:
/// after a restart it is not known which offsets were used for what is gone, so none of them is
/// used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Why.
    pub why: Gap,
    /// How many are known to be missing.
    pub bytes: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose history the offsets belong to.
    pub generation: Generation,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte, above `start`.
    pub end: u64,
    /// Everything below was acknowledged by the stream before this message was sent; at most
    /// `start`.
    pub floor: u64,
    /// Where the source began to use this subject; below, its bytes are in another partition. At
    /// most `floor`.
    pub since: u64,
    /// Bytes of the payload before compression, when it is compressed with zstd.
    pub zstd: Option<u64>,
    /// The message has no payload: the offsets from `start` to `end` are passed over.
    pub gap: Option<Skipped>,
}

/// A header that cannot be read, and the part of it that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {HEADER}: {0} is missing or wrong: is the producer newer than this consumer")]
pub struct HeadError(&'static str);

impl Head {
    /// The message's identity for the stream's own deduplication. `round` changes each time the
    /// producer goes back, because a repetition has to be stored behind what it repeats: the order
    /// in the stream is what the consumer judges by.
    pub fn message_id(&self, round: u64) -> String {
        format!("{}-{}-{}-{round:x}", self.generation, self.start, self.end)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, start, end, floor, since, zstd, gap } = self;
        write!(f, "{VERSION} g={generation} s={start} e={end} f={floor}")?;
        if *since > 0 {
            write!(f, " o={since}")?;
        }
        if let Some(raw) = zstd {
            write!(f, " z={raw}")?;
        }
        gap.map_or(Ok(()), |gap| write!(f, " x={}:{}", gap.why.as_str(), gap.bytes))
    }
}

impl FromStr for Head {
    type Err = HeadError;

    /// Fields that are not known are skipped.
    fn from_str(text: &str) -> Result<Self, HeadError> {
        let mut fields = text.split(' ');
        if fields.next() != Some(VERSION) {
            return Err(HeadError("version"));
        }
        let number = |text: &str, what| text.parse::<u64>().map_err(|_| HeadError(what));
        let (mut generation, mut start, mut end, mut floor) = (None, None, None, None);
        let (mut since, mut zstd, mut gap) = (0, None, None);
        for field in fields {
            match field.split_once('=') {
                Some(("g", value)) => generation = Some(value.parse()?),
                Some(("s", value)) => start = Some(number(value, "start")?),
                Some(("e", value)) => end = Some(number(value, "end")?),
                Some(("f", value)) => floor = Some(number(value, "floor")?),
                Some(("o", value)) => since = number(value, "origin")?,
                Some(("z", value)) => zstd = Some(number(value, "zstd")?),
                Some(("x", value)) => gap = Some(skipped(value)?),
                _ => {}
            }
        }
        let head = Self {
            generation: generation.ok_or(HeadError("generation"))?,
            start: start.ok_or(HeadError("start"))?,
            end: end.ok_or(HeadError("end"))?,
            floor: floor.ok_or(HeadError("floor"))?,
            since,
            zstd,
            gap,
        };
        if head.end <= head.start || head.floor > head.start || head.since > head.floor {
            return Err(HeadError("order of offsets"));
        }
        Ok(head)
    }
}

/// Reads `<reason>:<bytes>`; a reason that is not known is as good as any.
fn skipped(text: &str) -> Result<Skipped, HeadError> {
    let (why, bytes) = text.split_once(':').ok_or(HeadError("gap"))?;
    let why = match why {
        "vanished" => Gap::Vanished,
        "long-line" => Gap::LongLine,
        _ => Gap::Truncated,
    };
    Ok(Skipped { why, bytes: bytes.parse().map_err(|_| HeadError("gap"))? })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn generation(born: u64) -> Generation {
        Generation::after(None, born, 0xbad_cafe)
    }

    pub(crate) fn head(start: u64, end: u64, floor: u64) -> Head {
        Head { generation: generation(7), start, end, floor, since: 0, zstd: None, gap: None }
    }

    #[test]
    fn golden_text() {
        let plain = head(4096, 8192, 1024);
        assert_eq!(plain.to_string(), "1 g=0000000000070badcafe s=4096 e=8192 f=1024");
        let full = Head {
            since: 512,
            zstd: Some(20_000),
            gap: Some(Skipped { why: Gap::Vanished, bytes: 9 }),
            ..plain
        };
        assert_eq!(
            full.to_string(),
            "1 g=0000000000070badcafe s=4096 e=8192 f=1024 o=512 z=20000 x=vanished:9"
        );
        for head in [plain, full] {
            assert_eq!(head.to_string().parse(), Ok(head));
        }
        assert_eq!(plain.message_id(255), "0000000000070badcafe-4096-8192-ff");
        assert_eq!("1 g=0000000000070badcafe s=1 e=2 f=0 later=5".parse::<Head>().unwrap().end, 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "2 g=0000000000070badcafe s=1 e=2 f=0",
            "1 g=00000000000 s=1 e=2 f=0",
            "1 g=ü000000000070badcaf s=1 e=2 f=0",
            "1 g=0000000000070badcafe s=2 e=2 f=0",
            "1 g=0000000000070badcafe s=2 e=3 f=3",
            "1 g=0000000000070badcafe s=2 e=3 f=1 o=2",
            "1 g=0000000000070badcafe s=2 f=1",
        ] {
            assert!(text.parse::<Head>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_a_generation_older() {
        let older = generation(1_000);
        assert!(Generation::after(Some(older), 10, 0) > older);
        assert!(Generation::after(Some(older), 2_000, 0) > older);
    }

    #[test]
    fn a_generation_at_the_end_of_time_does_not_wrap() {
        let last = Generation::after(None, u64::MAX, 1);
        assert_eq!(last.to_string(), "ffffffffffff00000001");
        assert!(Generation::after(Some(last), 5, 1) >= last);
    }
}
