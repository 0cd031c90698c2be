//! How a client proves who it is, and the files in which secrets are.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use super::error::{BrokerConfigError, checked, invalid};

/// The longest password or token that is read from a file, in bytes: more is another file.
const SECRET_BYTES: u64 = 4_096;

/// How a client proves who it is. Never logged.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing, or what the URL itself says (`nats://user:password@host`).
    #[default]
    None,
    /// User name and password.
    UserPassword(String, String),
    /// A token.
    Token(String),
    /// The seed of an NKey, itself (`SU...`).
    NKey(String),
    /// A credentials file (JWT and NKey seed).
    File(PathBuf),
}

impl Credentials {
    /// The NKey whose seed a file holds.
    ///
    /// # Errors
    /// [`BrokerConfigError::File`].
    pub fn nkey_file(path: PathBuf) -> Result<Self, BrokerConfigError> {
        read_seed(path).map(Credentials::NKey)
    }

    /// Who we say that we are, in words and without secrets.
    pub(crate) fn described(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::UserPassword(user, _) => Some(format!("user {user:?}")),
            Self::Token(_) => Some("the token".to_owned()),
            Self::NKey(seed) => {
                let pair = nkeys::KeyPair::from_seed(seed).ok()?;
                Some(format!("nkey {}", pair.public_key()))
            }
            Self::File(path) => Some(format!("the user of {}", path.display())),
        }
    }
}

/// Reads a password or token, `what`, from its file: one line, whose end is no part of it.
pub(crate) fn read_secret(what: &'static str, path: PathBuf) -> Result<String, BrokerConfigError> {
    checked(what, &path, |path| {
        let mut secret = String::new();
        fs::File::open(path)?.take(SECRET_BYTES + 1).read_to_string(&mut secret)?;
        let line = secret.strip_suffix('\n').unwrap_or(&secret);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line {
            "" => Err(invalid("it is empty".to_owned())),
            _ if secret.len() as u64 > SECRET_BYTES || line.contains('\n') => {
                Err(invalid("it holds more than one line of at most 4096 bytes".to_owned()))
            }
            line => Ok(line.to_owned()),
        }
    })
}

/// Reads the seed of an NKey from its file.
pub(crate) fn read_seed(path: PathBuf) -> Result<String, BrokerConfigError> {
    checked("nkey file", &path, |path| {
        let seed = fs::read_to_string(path)?.trim().to_owned();
        if is_user_seed(&seed) {
            Ok(seed)
        } else {
            Err(invalid("it holds no seed of a user (SU...)".to_owned()))
        }
    })
}

/// Whether a text is the seed of a user's NKey.
pub(crate) fn is_user_seed(seed: &str) -> bool {
    nkeys::KeyPair::from_seed(seed)
        .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_one_line_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            read_secret("password file", file.path().to_owned())
        };
        for text in ["s3cr3t", "s3cr3t\n", "s3cr3t\r\n"] {
            assert_eq!(read(text).unwrap(), "s3cr3t");
        }
        assert_eq!(read(" with blanks \n").unwrap(), " with blanks ");
        for text in ["", "\n", "two\nlines\n", &"x".repeat(4_097)] {
            let error = read(text).unwrap_err();
            let reason = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                error.to_string().contains("password file") && !reason.contains("two"),
                "{error}: {reason}"
            );
        }
    }
}
