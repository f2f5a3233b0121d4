use bytes::Bytes;
use chat_client::suite::{
    AcceptResult, DecryptResult, GroupCiphertext, Peer, PrekeyBundle, Suite, SuiteTx, Table,
};
use chat_core::replica::Unreadable;
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, Result, SenderKeyId};

/// A suite that encrypts nothing, for tests only: the server sees every message. Its sender keys behave like those of a
/// real suite, without a bound on their number. It requires the `control` of each group message.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Unencrypted;

impl Unencrypted {
    /// Returns the suite.
    pub const fn new() -> Self {
        Self
    }
}

/// A sender key and its current iteration. These bytes are its distribution and its stored state, and each message
/// begins with them.
#[derive(Clone, Copy)]
struct SenderKey {
    id: [u8; 16],
    /// Differs between two keys with one id.
    chain: [u8; 4],
    iteration: u32,
}

impl SenderKey {
    fn to_bytes(self) -> Vec<u8> {
        [&self.id[..], &self.chain, &self.iteration.to_be_bytes()].concat()
    }

    /// Reads a position. Returns the bytes after it, too.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (id, rest) = bytes.split_first_chunk()?;
        let (chain, rest) = rest.split_first_chunk()?;
        let (iteration, rest) = rest.split_first_chunk()?;
        Some((Self { id: *id, chain: *chain, iteration: u32::from_be_bytes(*iteration) }, rest))
    }

    fn entry(&self, group: ConversationId, sender: &Peer) -> Vec<u8> {
        [&group.as_bytes()[..], sender.installation.as_bytes(), &self.id].concat()
    }

    /// Returns the distribution that was accepted of the key with this id.
    fn accepted(&self, tx: &mut dyn SuiteTx, group: ConversationId, sender: &Peer) -> Result<Option<Self>> {
        let bytes = tx.get(Table::SenderKeys, &self.entry(group, sender))?;
        bytes.map(|bytes| Self::read(&bytes).map(|(key, _)| key).ok_or_else(corrupt)).transpose()
    }
}

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "failed to decode a key in the local store")
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Unavailable, "the system has no randomness"))?;
    Ok(bytes)
}

impl Suite for Unencrypted {
    fn id(&self) -> SuiteId {
        SuiteId::PRIVATE
    }

    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes> {
        if let Some(known) = tx.get(Table::Identity, b"id")? {
            return Ok(known.into());
        }
        let id = random::<33>()?;
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

    fn seal_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
        plaintext: &[u8],
        distribute: bool,
    ) -> Result<GroupCiphertext> {
        let entry = [&group.as_bytes()[..], key.as_bytes()].concat();
        let key = match tx.get(Table::OwnSenderKeys, &entry)? {
            Some(bytes) => SenderKey::read(&bytes).ok_or_else(corrupt)?.0,
            None => SenderKey { id: *key.as_bytes(), chain: random()?, iteration: 0 },
        };
        let next = SenderKey { iteration: key.iteration + 1, ..key };
        tx.put(Table::OwnSenderKeys, &entry, &next.to_bytes())?;
        Ok(GroupCiphertext {
            shared: [&key.to_bytes()[..], plaintext].concat().into(),
            distribution: if distribute { key.to_bytes().into() } else { Bytes::new() },
            control: Bytes::copy_from_slice(&key.iteration.to_be_bytes()),
        })
    }

    fn accept_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        distribution: &[u8],
    ) -> Result<AcceptResult> {
        let Some((key, [])) = SenderKey::read(distribution) else {
            return Ok(Err(Unreadable::Malformed));
        };
        match key.accepted(tx, group, sender)? {
            Some(known) if known.chain == key.chain => {}
            Some(_) => return Ok(Err(Unreadable::Malformed)),
            None => tx.put(Table::SenderKeys, &key.entry(group, sender), distribution)?,
        }
        Ok(Ok(()))
    }

    fn open_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        shared: &[u8],
        control: &[u8],
    ) -> Result<DecryptResult> {
        let (key, plaintext) = match SenderKey::read(shared) {
            Some((key, plaintext)) if key.iteration.to_be_bytes() == control => (key, plaintext),
            _ => return Ok(Err(Unreadable::Malformed)),
        };
        let first = match key.accepted(tx, group, sender)? {
            Some(known) if known.chain == key.chain => known.iteration,
            _ => return Ok(Err(Unreadable::NoSession)),
        };
        let opened = [&key.entry(group, sender)[..], &key.iteration.to_be_bytes()].concat();
        if key.iteration < first || tx.get(Table::SenderKeys, &opened)?.is_some() {
            return Ok(Err(Unreadable::Undecryptable));
        }
        tx.put(Table::SenderKeys, &opened, &[])?;
        Ok(Ok(plaintext.to_vec()))
    }

    fn drop_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
    ) -> Result<()> {
        tx.delete(Table::OwnSenderKeys, &[&group.as_bytes()[..], key.as_bytes()].concat())
    }

    fn reset(&mut self, tx: &mut dyn SuiteTx) -> Result<()> {
        tx.clear(Table::OwnSenderKeys)
    }

    fn clear_cache(&mut self) {}

    fn flush(&mut self, _: &mut dyn SuiteTx) -> Result<()> {
        Ok(())
    }
}
