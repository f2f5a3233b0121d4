use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::error::ServerError;

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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

    /// Reads the files again when they change, and on SIGHUP. New connections use the new certificate. A certificate that
    /// cannot be used is logged, and the last one stays in use.
    pub(crate) async fn reload_forever(self, acceptor: watch::Sender<TlsAcceptor>) {
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut seen = self.changed_at();
        loop {
            let is_asked = tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => false,
                Some(()) = async { hangup.as_mut()?.recv().await } => true,
            };
            let now = self.changed_at();
            if now == seen && !is_asked {
                continue;
            }
            match self.acceptor() {
                Ok(new) => {
                    tracing::info!(cert = %self.cert.display(), "read the certificate again");
                    acceptor.send_replace(new);
                    seen = now;
                }
                // The next look tries again: one of the two files may be written later.
                Err(error) => tracing::error!(%error, "the last certificate stays in use"),
            }
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.cert, &self.key].map(|path| path.metadata().and_then(|file| file.modified()).ok())
    }
}
