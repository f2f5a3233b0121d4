use bytes::Bytes;
use chat_client::suite::{DecryptResult, Peer, PrekeyBundle, Suite, SuiteTx, Table};
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{Error, ErrorKind, InstallationId, Result};

/// A suite that encrypts nothing, for tests only: the server sees every message.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Unencrypted;

impl Unencrypted {
    /// Returns the suite.
    pub const fn new() -> Self {
        Self
    }
}

impl Suite for Unencrypted {
    fn id(&self) -> SuiteId {
        SuiteId::PRIVATE
    }

    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes> {
        if let Some(known) = tx.get(Table::Identity, b"id")? {
            return Ok(known.into());
        }
        let mut id = [0; 33];
        getrandom::fill(&mut id)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the system has no randomness"))?;
        tx.put(Table::Identity, b"id", &id)?;
        Ok(Bytes::copy_from_slice(&id))
    }

    fn has_session(&mut self, _: &mut dyn SuiteTx, _: &Peer) -> Result<bool> {
        Ok(true)
    }

    fn start_session(&mut self, _: &mut dyn SuiteTx, _: &Peer, _: &PrekeyBundle) -> Result<()> {
        Ok(())
    }

    fn seal(&mut self, _: &mut dyn SuiteTx, _: &Peer, plaintext: &[u8]) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(plaintext))
    }

    fn open(&mut self, _: &mut dyn SuiteTx, _: &Peer, sealed: &[u8]) -> Result<DecryptResult> {
        Ok(Ok(sealed.to_vec()))
    }

    fn end_session(&mut self, _: &mut dyn SuiteTx, _: InstallationId) -> Result<()> {
        Ok(())
    }

    fn encrypt_body(&self, _: &[u8; 32], _: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        Some(content.to_vec())
    }

    fn decrypt_body(&self, _: &[u8], _: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        Some(body.to_vec())
    }

    fn make_prekeys(&mut self, _: &mut dyn SuiteTx, _: u64, _: u64) -> Result<(Bytes, Vec<OneTimePrekey>)> {
        Ok((Bytes::from_static(b"unencrypted"), Vec::new()))
    }

    fn reset(&mut self, _: &mut dyn SuiteTx) -> Result<()> {
        Ok(())
    }

    fn clear_cache(&mut self) {}

    fn flush(&mut self, _: &mut dyn SuiteTx) -> Result<()> {
        Ok(())
    }
}
