//! Why the broker, or we, would not go on: connection errors in words that say what to do.

use std::error::Error;
use std::io;

use async_nats::rustls::{self, AlertDescription, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind};

use super::dial_error::DialErrorKind;

/// What kind of failure it is, and what to tell the user. `who` is how we presented ourselves,
/// without secrets.
pub(crate) fn explain(error: &ConnectError, who: Option<&str>) -> (DialErrorKind, String) {
    if let Some(tls) = tls_error(error) {
        return (DialErrorKind::Untrusted, of_tls(tls));
    }
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            (DialErrorKind::Refused, refused(who))
        }
        ConnectErrorKind::Tls => {
            (DialErrorKind::Untrusted, format!("TLS is not possible: {}", chain(error)))
        }
        ConnectErrorKind::TimedOut => (DialErrorKind::Unavailable, TIMED_OUT.to_owned()),
        _ if is_silent_close(error) => (DialErrorKind::Unavailable, CLOSED.to_owned()),
        _ => (DialErrorKind::Unavailable, format!("is not reachable: {}", chain(error))),
    }
}

/// Whether the other end took the connection, and closed it before it said anything.
fn is_silent_close(error: &ConnectError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)) {
            return true;
        }
        // The client library's word for the end of the stream in place of the greeting.
        if error.to_string().ends_with("expected INFO, got nothing") {
            return true;
        }
        next = error.source();
    }
    false
}

const CLOSED: &str = "took the connection and closed it without a word: a broker with \
                      handshake_first waits for us to begin with TLS (NATS_TLS_FIRST=true); else \
                      it is no broker's port, or the broker is being stopped";

const TIMED_OUT: &str =
    "did not answer in time (a broker with handshake_first waits for us: NATS_TLS_FIRST=true)";

fn refused(who: Option<&str>) -> String {
    match who {
        Some(who) => format!(
            "refuses {who}: check that it is the one the broker's configuration has, in force and \
             not expired"
        ),
        None => {
            "asks who we are: give one of NATS_CREDS, NATS_NKEY, NATS_USER with NATS_PASSWORD, and \
                 NATS_TOKEN, or a certificate that it knows"
                .to_owned()
        }
    }
}

fn of_tls(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate is signed by nobody whom we trust: give the authority's certificate \
              by NATS_CA"
            .to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is not for the name in NATS_URL: use a name or address that the \
             certificate has"
            .to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired: renew it at the broker".to_owned(),
        rustls::Error::InvalidCertificate(reason) => format!(
            "its certificate is refused: \
                                                              {reason}"
        ),
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "wants a certificate of ours: give NATS_CERTIFICATE and NATS_KEY".to_owned()
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateUnknown,
        ) => format!(
            "refuses our certificate ({error}): check NATS_CERTIFICATE and the broker's \
                      ca_file"
        ),
        rustls::Error::InvalidMessage(_) => {
            "speaks no TLS, or not at once: check the port, the broker's tls block and \
             NATS_TLS_FIRST"
                .to_owned()
        }
        other => format!("TLS is not possible: {other}"),
    }
}

/// The error of TLS that a connection error comes from; an error of I/O may carry it.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}

/// An error with what it comes from, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let reason = error.to_string();
        if !told.contains(&reason) {
            told = format!("{told}: {reason}");
        }
        next = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_below_errors_of_io() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error: ConnectError = io::Error::new(io::ErrorKind::InvalidData, tls).into();
        let (kind, told) = explain(&error, None);
        assert_eq!(kind, DialErrorKind::Untrusted);
        assert!(told.contains("NATS_CA"), "{told}");
    }

    #[test]
    fn each_alert_says_what_to_give() {
        for (alert, told) in [
            (AlertDescription::CertificateRequired, "NATS_CERTIFICATE and NATS_KEY"),
            (AlertDescription::UnknownCA, "refuses our certificate"),
            (AlertDescription::InternalError, "TLS is not possible"),
        ] {
            let words = of_tls(&rustls::Error::AlertReceived(alert));
            assert!(words.contains(told), "{words}");
        }
    }

    #[test]
    fn who_is_refused_is_named_and_who_gave_nothing_is_told_what_to_give() {
        assert!(refused(Some("user \"apiproxy\"")).contains("user \"apiproxy\""));
        assert!(refused(None).contains("NATS_CREDS"));
    }
}
