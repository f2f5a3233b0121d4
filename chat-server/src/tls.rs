use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::ServerError;

/// PEM files of the certificate that clients see.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads the files. TLS 1.3 only, with post-quantum key exchange preferred.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, ServerError> {
        let failed = |path: &Path, error: PemError| {
            ServerError::new(format!("failed to read {}: {error}", path.display()))
        };
        let certs = CertificateDer::pem_file_iter(&self.cert)
            .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
            .map_err(|error| failed(&self.cert, error))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| failed(&self.key, error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable = |error| ServerError::new(format!("failed to use the certificate: {error}"));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certs, key)
            .map_err(unusable)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
