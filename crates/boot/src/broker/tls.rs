//! Certificates and keys, looked into before anything is started.

use std::path::{Path, PathBuf};
use std::{fs, io};

use async_nats::ConnectOptions;
use async_nats::rustls;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::{BrokerConfigError, checked, invalid, shown};

/// TLS beyond what the broker asks for by itself.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates of the authorities to trust in place of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key, PEM, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Begin with TLS, before the broker says anything: for a broker with `handshake_first`.
    pub first: bool,
}

impl Tls {
    /// Checks the files, and adds all of it to a connection's options.
    pub(crate) fn apply(
        self,
        mut options: ConnectOptions,
    ) -> Result<ConnectOptions, BrokerConfigError> {
        if self.first {
            options = options.tls_first();
        }
        if let Some(ca) = self.ca {
            checked("file of certificate authorities", &ca, has_certificates)?;
            options = options.add_root_certificates(ca).require_tls(true);
        }
        if let Some((certificate, key)) = self.identity {
            checked("certificate file", &certificate, has_certificates)?;
            checked("key file", &key, has_key)?;
            checked("key file", &key, |key| belongs_to(key, &certificate))?;
            options = options.add_client_certificate(certificate, key).require_tls(true);
        }
        Ok(options)
    }
}

fn has_certificates(path: &Path) -> io::Result<()> {
    let pem = fs::read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(invalid("it holds no certificate in PEM".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn has_key(path: &Path) -> io::Result<()> {
    let pem = fs::read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem);
    key.map(drop).map_err(|_| invalid("it holds no private key in PEM".to_owned()))
}

/// Whether a private key is that of the certificate, which is the first of its file.
fn belongs_to(key: &Path, certificate: &Path) -> io::Result<()> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&fs::read(certificate)?).collect();
    let certificates = certificates.map_err(|error| invalid(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(key)?)
        .map_err(|_| invalid("it holds no private key".to_owned()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| invalid(error.to_string()))?;
    match rustls::sign::CertifiedKey::new(certificates, key).keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(invalid(format!(
                "it is the key of another certificate than that of {}",
                shown(certificate)
            )))
        }
        // What cannot be told is for the broker to refuse.
        _ => Ok(()),
    }
}
