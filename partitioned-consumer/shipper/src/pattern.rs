//! Names of output files: date patterns, hosts, periods and parts.

use std::path::{Component, Path};

use jiff::Zoned;
use jiff::civil::Time;

use super::name::Source;

/// What is appended to a name without any date in it, as the published consumer does.
const DEFAULT_DATE: &str = "-%Y%m%d%H%M";

/// An output that is no name of a file below a directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("output {output:?}: {reason} (expected a relative file name such as syslog-%Y%m%d)")]
pub struct PatternError {
    output: String,
    reason: String,
}

/// When a new file is begun, by the local clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// At midnight.
    Day,
    /// At each full hour.
    Hour,
    /// Each so many minutes, counted from midnight.
    Minutes(u16),
    /// Never.
    Never,
}

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!("{text:?}: expected daily, hourly, never, or minutes such as 15m (1m to 1439m)")
        };
        match text {
            "daily" => Ok(Self::Day),
            "hourly" => Ok(Self::Hour),
            "never" => Ok(Self::Never),
            _ => {
                let minutes = text.strip_suffix('m').and_then(|number| number.parse().ok());
                minutes.filter(|m| (1..1440).contains(m)).map(Self::Minutes).ok_or_else(expected)
            }
        }
    }
}

impl Period {
    /// When the period of `now` began.
    pub fn begin(self, now: &Zoned) -> Zoned {
        let (hour, minute) = match self {
            Self::Never => return now.timestamp_zero(),
            Self::Day => (0, 0),
            Self::Hour => (now.hour(), 0),
            Self::Minutes(minutes) => {
                let of_day = i32::from(now.hour()) * 60 + i32::from(now.minute());
                let begin = of_day - of_day % i32::from(minutes);
                ((begin / 60) as i8, (begin % 60) as i8)
            }
        };
        let time = Time::new(hour, minute, 0, 0).expect("hours and minutes of a day");
        // A time that daylight saving skips is read as the next one there is; a date out of range
        // cannot be.
        now.date()
            .to_datetime(time)
            .to_zoned(now.time_zone().clone())
            .unwrap_or_else(|_| now.clone())
    }
}

trait Epoch {
    fn timestamp_zero(&self) -> Zoned;
}

impl Epoch for Zoned {
    /// One fixed moment, for files that are never rotated by time.
    fn timestamp_zero(&self) -> Zoned {
        jiff::Timestamp::UNIX_EPOCH.to_zoned(self.time_zone().clone())
    }
}

/// `<host>/<output>`: where the lines of a source go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPattern(String);

impl OutputPattern {
    /// Checks `SHIPPER_OUTPUT`: a `strftime` pattern; `{host}` and `{file}` stand for the source.
    ///
    /// # Errors
    /// [`PatternError`]: absolute, with `..`, or with a conversion that is not known.
    pub fn parse(output: &str) -> Result<Self, PatternError> {
        let failed =
            |reason: &str| PatternError { output: output.to_owned(), reason: reason.to_owned() };
        if output.is_empty() || output.ends_with('/') {
            return Err(failed("it names no file"));
        }
        let dated = if output.contains('%') {
            output.to_owned()
        } else {
            format!("{output}{DEFAULT_DATE}")
        };
        Self::fixed(&dated)
    }

    /// Checks `SHIPPER_OUTPUT` for files that are never rotated by time: the same, and nothing is
    /// added to a name without a date.
    ///
    /// # Errors
    /// As for [`OutputPattern::parse`].
    pub fn fixed(output: &str) -> Result<Self, PatternError> {
        let failed =
            |reason: &str| PatternError { output: output.to_owned(), reason: reason.to_owned() };
        if output.is_empty() || output.ends_with('/') {
            return Err(failed("it names no file"));
        }
        if conversions(output).any(|conversion| conversion == 'Q') {
            return Err(failed(
                "%Q is the name of a time zone, which not every clock has and which may have a \
                 slash in it",
            ));
        }
        let pattern = Self(output.to_owned());
        let sample = Source::new("host", Some("file")).expect("plain names");
        let sample = pattern.expand(
            &sample,
            &jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC),
            0,
        );
        match sample {
            Some(_) => Ok(pattern),
            None => Err(failed("it leaves its directory, or has a conversion that is not known")),
        }
    }

    /// Whether the name depends on the time.
    pub fn is_dated(&self) -> bool {
        let sample = Source::new("host", Some("file")).expect("plain names");
        let at = |seconds| {
            let time = jiff::Timestamp::from_second(seconds).expect("within range");
            self.expand(&sample, &time.to_zoned(jiff::tz::TimeZone::UTC), 0)
        };
        // Two moments that have no number or name in common.
        at(0) != at(2_015_935_495)
    }

    /// Whether the file is part of it, so that subjects have a file token.
    pub fn has_file(&self) -> bool {
        self.0.contains("{file}")
    }

    /// The pattern as the published consumer tells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path, relative to the directory, of the `part`th file (from 0) of the period that began
    /// at `begin`.
    ///
    /// `None` when it would leave the directory of its host.
    pub fn expand(&self, source: &Source, begin: &Zoned, part: u32) -> Option<String> {
        let dated = jiff::fmt::strtime::format(&self.0, begin).ok()?;
        let named = dated
            .replace("{host}", source.host())
            .replace("{file}", source.file().unwrap_or("log"));
        let inside =
            Path::new(&named).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || named.contains('\0') {
            return None;
        }
        let host = source.host();
        Some(if part == 0 { format!("{host}/{named}") } else { format!("{host}/{named}.{part}") })
    }
}

/// The letters of the conversions of a pattern, without what stands between `%` and them.
fn conversions(pattern: &str) -> impl Iterator<Item = char> + '_ {
    let mut characters = pattern.chars();
    std::iter::from_fn(move || {
        characters.find(|character| *character == '%')?;
        characters.find(|character| character.is_ascii_alphabetic() || *character == '%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn a_plain_name_gets_the_published_date() {
        let pattern = OutputPattern::parse("logfile").unwrap();
        let source = Source::new("web1.example.net", None).unwrap();
        let begin = Period::Day.begin(&at("2020-03-20T12:11:11+01:00[Europe/Berlin]"));
        assert_eq!(pattern.as_str(), "logfile-%Y%m%d%H%M");
        assert_eq!(
            pattern.expand(&source, &begin, 0).unwrap(),
            "web1.example.net/logfile-202003200000"
        );
        assert_eq!(
            pattern.expand(&source, &begin, 2).unwrap(),
            "web1.example.net/logfile-202003200000.2"
        );
    }

    #[test]
    fn names_stand_for_the_source() {
        let pattern = OutputPattern::parse("%Y/{file}-{host}.log").unwrap();
        let source = Source::new("h", Some("app_log")).unwrap();
        assert!(pattern.has_file());
        assert_eq!(
            pattern.expand(&source, &at("2024-05-06T00:00:00Z[UTC]"), 0).unwrap(),
            "h/2024/app_log-h.log"
        );
    }

    #[test]
    fn no_pattern_leaves_the_directory() {
        for output in ["", "/etc/passwd", "../x", "a/../../b", "x/", "%", "%!", "log-%Q", "%Y-%:Q"]
        {
            assert!(OutputPattern::parse(output).is_err(), "{output:?}");
        }
    }

    #[test]
    fn files_that_are_never_rotated_have_no_date() {
        let fixed = |output: &str| OutputPattern::fixed(output).unwrap();
        let source = Source::new("h", None).unwrap();
        let begin = Period::Never.begin(&at("2024-05-06T00:00:00Z[UTC]"));
        assert_eq!(fixed("syslog").expand(&source, &begin, 0).unwrap(), "h/syslog");
        assert_eq!(fixed("syslog").expand(&source, &begin, 1).unwrap(), "h/syslog.1");
        assert!(!fixed("syslog").is_dated() && !fixed("%%Q-log").is_dated());
        assert!(["%Y", "log-%H", "%j"].iter().all(|output| fixed(output).is_dated()));
    }

    #[test]
    fn periods_begin_where_the_clock_says() {
        let now = at("2024-03-31T14:38:09+02:00[Europe/Berlin]");
        let begin = |period: &str| period.parse::<Period>().unwrap().begin(&now).to_string();
        assert_eq!(begin("daily"), "2024-03-31T00:00:00+01:00[Europe/Berlin]");
        assert_eq!(begin("hourly"), "2024-03-31T14:00:00+02:00[Europe/Berlin]");
        assert_eq!(begin("15m"), "2024-03-31T14:30:00+02:00[Europe/Berlin]");
        assert_eq!(begin("never"), "1970-01-01T01:00:00+01:00[Europe/Berlin]");
        for bad in ["", "0m", "1440m", "weekly", "m"] {
            assert!(bad.parse::<Period>().is_err(), "{bad:?}");
        }
    }
}
