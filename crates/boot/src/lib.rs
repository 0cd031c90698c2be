//! What every Natsway binary does first and last: reach the broker, say what happens, stop when
//! told to.
//!
//! - [`BrokerConfig`]: where the broker is and how to prove who we are; made from [`BrokerArgs`] in
//!   a binary.
//! - [`Dialer`] and [`Session`]: one connection that never reconnects, for the request path.
//! - [`Clock`]: Unix time that never steps.
//! - `logs`, `traces` and `exposition`: what a program says of itself, and where to; `trace` is the
//!   part of it that libraries need.
//! - [`shutdown`]: SIGTERM and SIGINT as a token.

#[cfg(feature = "cli")]
mod args;
mod broker;
mod clock;
mod connection;
#[cfg(feature = "cli")]
pub mod exposition;
#[cfg(feature = "cli")]
pub mod logs;
pub mod shutdown;
#[cfg(feature = "trace")]
pub mod trace;
#[cfg(feature = "cli")]
pub mod traces;

use rand::Rng;

#[cfg(feature = "cli")]
pub use args::{BrokerArgs, address, duration};
pub use broker::{BrokerConfig, BrokerConfigError, Credentials, Tls};
pub use clock::Clock;
pub use connection::{
    DeniedSubscriptions, Dial, DialError, DialErrorKind, Dialer, Session, SessionEvent,
};

/// A random id, fit for a token of a subject: 16 characters out of 62, about 94 bits.
///
/// Nobody can guess it from others: it names inboxes and instances, and who knew such a name could
/// answer for a worker or cancel a request. So it comes from ChaCha keyed by the system's
/// randomness, one generator for each thread.
pub fn random_id() -> String {
    let mut random = [0; 16];
    rand::rng().fill_bytes(&mut random);
    // One draw for all of them, since every request gets one. Some letters come five times in 256,
    // others four.
    let letters = random.map(|byte| LETTERS[usize::from(byte) * LETTERS.len() / 256]);
    String::from_utf8(letters.to_vec()).expect("letters and digits")
}

/// 64 random bits for a secret, such as the token of a reply subject. Nobody can tell them from
/// others that were shown.
///
/// The quick generators (`fastrand`'s wyrand and its like) will not do: whoever is shown a few of
/// their numbers works out the next ones. This is ChaCha with 12 rounds, keyed by the system's
/// randomness and anew each 64 KiB, one generator for each thread. It makes 256 bytes at a time, so
/// a number costs about as much as a keyed hash of a counter would.
pub fn random_u64() -> u64 {
    rand::rng().next_u64()
}

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fit_for_a_subject_and_do_not_follow_from_the_quick_generator() {
        fastrand::seed(7);
        let first = random_id();
        fastrand::seed(7);
        assert_ne!(first, random_id());
        assert!(
            first.len() == 16 && first.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{first}"
        );
    }
}
