//! What a failure says, and which exit code it has.

use std::process::ExitCode;

use natsway_partitioned_consumer::ErrorKind;

/// Something has to be changed before another try; also clap's own code for arguments that it
/// refuses.
pub(crate) const MISTAKE: u8 = 2;

/// What was asked for can never work, whoever asks again.
#[derive(Debug)]
pub(crate) struct Mistake(pub(crate) String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

pub(crate) fn is_mistake(error: &anyhow::Error) -> bool {
    let refused =
        error.downcast_ref::<natsway_partitioned_consumer::Error>().map(|error| error.kind());
    error.is::<Mistake>()
        || matches!(refused, Some(ErrorKind::InvalidName | ErrorKind::InvalidConfig))
}

pub(crate) fn fail(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("cg: {}", whole(error));
    code
}

/// An error with its causes, each said once: some errors name their cause themselves.
pub(crate) fn whole(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::other("disk full");
        assert_eq!(
            whole(&anyhow::Error::new(io()).context("not written")),
            "not written: disk full"
        );
        assert_eq!(
            whole(&anyhow::Error::new(io()).context("not written: disk full")),
            "not written: disk full"
        );
    }
}
