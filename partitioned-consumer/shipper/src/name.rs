//! Subjects, hosts and partitions: the names that both sides and the published tool agree on.

use std::fmt;

use natsway_partitioned_consumer::partition_of_key;

/// A host name is a DNS name at most.
const LONGEST_HOST: usize = 253;

/// What is wrong with a name, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?}: expected {expected}")]
pub struct NameError {
    what: &'static str,
    value: String,
    expected: &'static str,
}

/// The partition of a host, counted from 0: FNV-1a (32 bit) of its name modulo `partitions`; 0
/// partitions mean one.
///
/// ```
/// use natsway_shipper::name::partition_of_host;
/// assert_eq!(partition_of_host("web3.example.net", 5), 2);
/// assert_eq!(partition_of_host("web3.example.net", 0), 0);
/// ```
pub fn partition_of_host(host: &str, partitions: u32) -> u32 {
    if partitions == 0 { 0 } else { partition_of_key([host], partitions) }
}

/// What all subjects of one shipper begin with (`SHIPPER_SUBJECT`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Checks a prefix.
    ///
    /// # Errors
    /// [`NameError`] for wildcards, empty tokens, white space, and what the broker keeps for
    /// itself.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let fine = |token: &str| {
            !token.is_empty()
                && !token
                    .contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
        };
        if text.starts_with(['$', '_']) || !text.split('.').all(fine) {
            return Err(NameError {
                what: "subject",
                value: text.to_owned(),
                expected: "tokens with dots between, without wildcards, not beginning with '$' or \
                           '_'",
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// Where one source publishes: `<prefix>.p<partition>.<host>[.<file>]`.
    pub fn subject(&self, partition: u32, source: &Source) -> String {
        format!("{}.p{partition}.{source}", self.0)
    }

    /// Everything of one partition: `<prefix>.p<partition>.>`.
    pub fn of_partition(&self, partition: u32) -> String {
        format!("{}.p{partition}.>", self.0)
    }

    /// Everything below the prefix, for a stream or a group.
    pub fn everything(&self) -> String {
        format!("{}.>", self.0)
    }

    /// The subjects of one source in all partitions.
    pub fn of_source(&self, source: &Source) -> String {
        format!("{}.*.{source}", self.0)
    }

    /// The stream that is used when none is named: the prefix in capitals, `_` for what a stream
    /// name cannot have.
    pub fn default_stream(&self) -> String {
        natsway_stores::definitions::default_stream(&self.0)
    }

    /// Reads a subject back. With `has_file` its last token is the file.
    ///
    /// # Errors
    /// [`NameError`]: not below this prefix, or with a host that is not safe as the name of a
    /// directory.
    pub fn read(&self, subject: &str, has_file: bool) -> Result<(u32, Source), NameError> {
        let parts = subject.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix(".p"));
        let parts = parts.and_then(|rest| rest.split_once('.'));
        let parts = parts.and_then(|(partition, rest)| Some((partition.parse().ok()?, rest)));
        let Some((partition, rest)) = parts else {
            return Err(NameError {
                what: "subject",
                value: subject.to_owned(),
                expected: "<prefix>.p<partition>.<host>",
            });
        };
        let source = match rest.rsplit_once('.').filter(|_| has_file) {
            Some((host, file)) => Source::new(host, Some(file))?,
            None => Source::new(rest, None)?,
        };
        Ok((partition, source))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose lines they are: a host, and one of its files where several are shipped. Order is kept
/// within a source.
///
/// Both parts are checked when it is made, so that neither can leave a directory, a subject or a
/// key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    host: String,
    file: Option<String>,
}

impl Source {
    /// Checks a host and a file.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(host: &str, file: Option<&str>) -> Result<Self, NameError> {
        let token = |token: &str| {
            !token.is_empty()
                && !token.starts_with('-')
                && token.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if host.len() > LONGEST_HOST || !host.split('.').all(token) {
            return Err(NameError {
                what: "host",
                value: host.chars().take(LONGEST_HOST).collect(),
                expected: "letters, digits, '-' and '_', with single dots between (set HOSTNAME to \
                           override)",
            });
        }
        if let Some(file) = file.filter(|file| !token(file)) {
            return Err(NameError {
                what: "file",
                value: file.to_owned(),
                expected: "letters, digits, '-' and '_'",
            });
        }
        Ok(Self { host: host.to_owned(), file: file.map(str::to_owned) })
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The file's token, where the subject has one.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for Source {
    /// As in subjects and keys: `<host>` or `<host>.<file>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ".{file}"))
    }
}

/// A file's token in a subject: its name, with `_` for what a token cannot have.
pub fn file_token(name: &str) -> String {
    let token: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    token.trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_of_the_published_code() {
        for (host, of_five, of_ten) in [
            ("web1.example.net", 0, 5),
            ("web2.example.net", 0, 0),
            ("web3.example.net", 2, 7),
            ("web4.example.net", 2, 2),
        ] {
            assert_eq!(
                (partition_of_host(host, 5), partition_of_host(host, 10)),
                (of_five, of_ten),
                "{host}"
            );
            assert_eq!(partition_of_host(host, 0), 0);
        }
    }

    #[test]
    fn a_subject_is_read_back() {
        let prefix = Prefix::parse("shipper").unwrap();
        let host = Source::new("web1.example.net", None).unwrap();
        let file = Source::new("web1.example.net", Some("app_log")).unwrap();
        assert_eq!(prefix.subject(4, &host), "shipper.p4.web1.example.net");
        assert_eq!(prefix.read("shipper.p4.web1.example.net", false).unwrap(), (4, host));
        assert_eq!(prefix.read("shipper.p0.web1.example.net.app_log", true).unwrap(), (0, file));
        assert_eq!(prefix.default_stream(), "SHIPPER");
        for bad in
            ["other.p4.web1", "shipper.web1", "shipper.p4", "shipper.px.web1", "shipperXp1.web1"]
        {
            assert!(prefix.read(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_host_leaves_its_directory() {
        let prefix = Prefix::parse("s").unwrap();
        for host in ["..", "a..b", "../x", "a/b", ".hidden", "a.", "-rf", "a b", "", "a\0", "ü"] {
            assert!(Source::new(host, None).is_err(), "{host:?}");
            assert!(prefix.read(&format!("s.p1.{host}"), false).is_err(), "{host:?}");
        }
        assert!(Source::new(&"a".repeat(300), None).is_err());
    }

    #[test]
    fn prefixes_are_plain_subjects() {
        assert!(["shipper", "a.b.c"].iter().all(|text| Prefix::parse(text).is_ok()));
        assert!(
            ["", "a..b", "a.*", ">", "$JS", "_INBOX.x", "a b"]
                .iter()
                .all(|text| Prefix::parse(text).is_err())
        );
    }

    #[test]
    fn file_tokens_are_plain() {
        assert_eq!(file_token("app.log"), "app_log");
        assert_eq!(file_token("-x y.log"), "x_y_log");
    }
}
