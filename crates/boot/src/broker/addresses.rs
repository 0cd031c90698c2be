//! The broker's addresses as people write them, and as they may be shown.

use async_nats::ServerAddr;

use percent_encoding::percent_decode_str;

use super::credentials::Credentials;
use super::error::BrokerConfigError;

/// Reads one address or several with commas between.
///
/// # Errors
/// [`BrokerConfigError::Url`]. It shows the whole list without user parts, and nothing of what a
/// parser made of it: where a password holds a `/` or a `,`, that is a piece of the password.
pub(crate) fn read(urls: &str) -> Result<Vec<ServerAddr>, BrokerConfigError> {
    let addresses = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
    let servers: Option<Vec<ServerAddr>> = addresses.map(read_one).collect();
    match servers {
        Some(servers) if !servers.is_empty() => Ok(servers),
        _ => Err(BrokerConfigError::Url { url: without_secrets(urls) }),
    }
}

fn read_one(url: &str) -> Option<ServerAddr> {
    let server: ServerAddr = url.parse().ok()?;
    // The `@` stands behind a `/`, `?` or `#` of the password: what was read as the host is none.
    let cut_short = url.contains('@') && !has_user_part(&server);
    (!server.host().is_empty() && !cut_short).then_some(server)
}

/// What the first address with a user part says, for all of them: those that a cluster tells of
/// have none.
pub(crate) fn credentials(servers: &[ServerAddr]) -> Credentials {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let Some(server) = servers.iter().find(|server| has_user_part(server)) else {
        return Credentials::None;
    };
    let user = plain(server.username().unwrap_or_default());
    match server.password() {
        Some(password) => Credentials::UserPassword(user, plain(password)),
        // A user part without a password is a token.
        None => Credentials::Token(user),
    }
}

fn has_user_part(server: &ServerAddr) -> bool {
    server.username().is_some() || server.password().is_some()
}

/// The addresses as they may be printed: everything between `://`, or the beginning, and the last
/// `@` of each is secret. An address begins behind a comma where a scheme follows, for a password
/// may hold commas.
pub(crate) fn without_secrets(urls: &str) -> String {
    let mut shown: Vec<String> = Vec::new();
    for piece in urls.split(',') {
        match shown.last_mut() {
            Some(address) if !begins_with_scheme(piece) => {
                address.push(',');
                address.push_str(piece);
            }
            _ => shown.push(piece.to_owned()),
        }
    }
    shown.iter().map(|address| hide_user_part(address)).collect::<Vec<_>>().join(",")
}

fn begins_with_scheme(piece: &str) -> bool {
    let scheme = piece.split_once("://").map(|(scheme, _)| scheme.trim_start());
    scheme.is_some_and(|scheme| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn hide_user_part(address: &str) -> String {
    let (scheme, rest) = match address.find("://") {
        Some(at) => address.split_at(at + "://".len()),
        None => ("", address),
    };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}***@{host}"),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_parts_are_hidden_whatever_stands_in_them() {
        for (urls, shown) in [
            ("nats://me:pw@a:1,tls://token@b", "nats://***@a:1,tls://***@b"),
            ("nats://me:p/w@a:1", "nats://***@a:1"),
            ("nats://me:p,w@a:1,nats://b:2", "nats://***@a:1,nats://b:2"),
            ("nats://me:p@w@a:1", "nats://***@a:1"),
            ("nats://me:a://b@c", "nats://***@c"),
            ("me:pw@a:1", "***@a:1"),
            ("nats://a:1, nats://me:pw@b:2", "nats://a:1, nats://***@b:2"),
            ("nats://a:1,b:2", "nats://a:1,b:2"),
        ] {
            assert_eq!(without_secrets(urls), shown);
        }
    }

    #[test]
    fn no_piece_of_a_password_is_in_an_error() {
        for urls in [
            "nats://me:first/second@a:1",
            "nats://me:12/second@a:1",
            "nats://me:12?second@a:1",
            "nats://me:first,second@a:1",
            "http://me:first@a:1",
            "nats://me:first second@a:1:2",
            "nats://first:second@a:99999",
        ] {
            let error = read(urls).expect_err(urls).to_string();
            assert!(!error.contains("first") && !error.contains("second"), "{error}");
            assert!(error.contains("***@a:") && error.contains("percent-encoded"), "{error}");
        }
    }

    #[test]
    fn an_address_needs_a_host() {
        for urls in ["", " , ", "nats://", "nats://me:pw@", "nats://:4222"] {
            assert!(read(urls).is_err(), "{urls}");
        }
        assert_eq!(read("nats://me:p%2Fw@a, b:2,tls://[::1]:3").unwrap().len(), 3);
    }
}
