use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use chat_core::backend::{ConversationState, CursorFilter, PageLimit, SenderFilter};
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{InboxPosition, InboxRow};
use chat_core::{
    ConversationId, ConversationKind, Error, ErrorKind, Handle, InstallationId, MessageId, Result, Seq,
    StoreEpoch, UserId,
};

use super::watermark::Watermark;
use super::{SEALED, Tables, check_format, corrupt, failed, io, keys, verify};
use crate::Verification;
use crate::data_set::{Account, Device, sorted};

const TEXT: &str = "This data set was sealed for migration to a cluster. The cluster may hold newer data. If the \
     cluster never served the copy, remove this file to go back.\n";

/// The data of a sealed embedded store. The seal is durable and no process writes the store any more, so a
/// copy of it is complete.
#[derive(Debug)]
pub struct SealedStore {
    tables: Tables,
    epoch: StoreEpoch,
}

impl SealedStore {
    /// Seals the store in a directory and opens it for reading. Sealing is idempotent.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`](super::EmbeddedStore::open), and `NotFound` if there is no store.
    pub fn seal(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.join("db").exists() {
            return Err(Error::new(ErrorKind::NotFound, "there is no data set in this directory"));
        }
        check_format(path)?;
        // Opened before sealing: a running server holds the lock, and its data must not be sealed.
        let tables = Tables::open(path)?;
        Watermark::open(&path.join("watermark"), tables.commits()?)?;
        let seal = || {
            let mut file = std::fs::File::create(path.join(SEALED))?;
            file.write_all(TEXT.as_bytes())?;
            file.sync_all()?;
            std::fs::File::open(path)?.sync_all()
        };
        seal().map_err(io)?;
        let epoch = tables.epoch()?;
        Ok(Self { tables, epoch })
    }

    /// Returns the epoch of the data set.
    pub const fn epoch(&self) -> StoreEpoch {
        self.epoch
    }

    /// Reads all data and checks the store's invariants; see [`Verification`].
    ///
    /// # Errors
    /// `Corrupt` with the violated invariant.
    pub fn verify(&self) -> Result<Verification> {
        verify::run(&self.tables)
    }

    pub(crate) fn conversations(&self) -> Result<Vec<ConversationId>> {
        let parse =
            |guard: fjall::Guard| ConversationId::parse(&guard.key().map_err(failed)?).map_err(|_| corrupt());
        self.tables.heads.iter().map(parse).collect()
    }

    pub(crate) fn state(&self, conversation: ConversationId) -> Result<ConversationState> {
        self.tables.read_state(conversation, SenderFilter::All)?.ok_or_else(corrupt)
    }

    /// Returns the rows of a conversation above a seq, oldest first; none for a mailbox, which has no
    /// history.
    pub(crate) fn rows(
        &self,
        conversation: ConversationId,
        after: Seq,
    ) -> impl Iterator<Item = Result<InboxRow>> + use<> {
        let range = keys::history(conversation, after + 1)..=keys::history(conversation, Seq::MAX);
        let kept = conversation.kind() != Ok(ConversationKind::Mailbox);
        kept.then(|| self.tables.history.range(range)).into_iter().flatten().map(|guard| {
            let value = guard.value().map_err(failed)?;
            chat_core::codec::decode_row(value.into()).map_err(|_| corrupt())
        })
    }

    /// Returns how far each user has cleared a conversation.
    pub(crate) fn cleared(&self, conversation: ConversationId) -> Result<Vec<(UserId, Seq)>> {
        let mark = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let user = UserId::parse(key.get(17..).unwrap_or_default()).map_err(|_| corrupt())?;
            Ok((user, keys::number(&value)?))
        };
        self.tables.cleared.prefix(conversation.as_bytes()).map(mark).collect()
    }

    /// Returns a page of a conversation's history, newest first.
    pub(crate) fn history(&self, conversation: ConversationId, before: Seq) -> Result<Vec<InboxRow>> {
        self.tables.read_history(conversation, before, PageLimit::MAX)
    }

    /// Returns the message ids of a conversation, sorted by seq.
    pub(crate) fn ids(&self, conversation: ConversationId) -> Result<Vec<(Seq, InstallationId, MessageId)>> {
        let mut ids = Vec::new();
        for guard in self.tables.ids.prefix(conversation.as_bytes()) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let part = |from: usize, to: usize| key.get(from..to).ok_or_else(corrupt);
            let sender = InstallationId::parse(part(17, 33)?).map_err(|_| corrupt())?;
            let id = MessageId::parse(part(33, 49)?).map_err(|_| corrupt())?;
            ids.push((keys::number(&value)?, sender, id));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Returns every device with any stored data.
    pub(crate) fn devices(&self) -> Result<BTreeSet<InstallationId>> {
        let tables = &self.tables;
        let mut devices = BTreeSet::new();
        for table in [
            &tables.cursors,
            &tables.devices,
            &tables.inbox,
            &tables.bundles,
            &tables.incarnations,
            &tables.owners,
        ] {
            for guard in table.iter() {
                let key = guard.key().map_err(failed)?;
                let device = InstallationId::parse(key.get(..16).ok_or_else(corrupt)?);
                devices.insert(device.map_err(|_| corrupt())?);
            }
        }
        Ok(devices)
    }

    pub(crate) fn device(&self, device: InstallationId) -> Result<Device> {
        let owner = self.tables.owners.get(device.as_bytes()).map_err(failed)?;
        let prekey = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(failed)?;
            Ok((keys::number(key.get(16..).unwrap_or_default())?, Bytes::from(value)))
        };
        let mut cursors = self.tables.read_cursors(device, CursorFilter::All)?;
        cursors.sort_unstable_by_key(|(conversation, _)| *conversation);
        Ok(Device {
            generation: self.tables.read_generation(device)?,
            cursors,
            feeds: self.tables.read_feeds(device)?,
            bundle: self.tables.read_bundle(device)?,
            prekeys: self.tables.prekeys.prefix(device.as_bytes()).map(prekey).collect::<Result<_>>()?,
            incarnation: self.tables.read_incarnation(device)?,
            owner: owner.map(|user| UserId::parse(&user).map_err(|_| corrupt())).transpose()?,
        })
    }

    /// Returns a page of a device's inbox.
    pub(crate) fn inbox(&self, device: InstallationId, after: InboxPosition) -> Result<Vec<InboxRow>> {
        self.tables.read_inbox(device, after, PageLimit::MAX)
    }

    pub(crate) fn users(&self) -> Result<Vec<UserId>> {
        let parse = |guard: fjall::Guard| UserId::parse(&guard.key().map_err(failed)?).map_err(|_| corrupt());
        self.tables.lists.iter().map(parse).collect()
    }

    /// Returns the users with a deleted account.
    pub(crate) fn deleted_users(&self) -> Result<Vec<UserId>> {
        let parse = |guard: fjall::Guard| UserId::parse(&guard.key().map_err(failed)?).map_err(|_| corrupt());
        self.tables.deleted.iter().map(parse).collect()
    }

    /// Returns the revocations of tokens.
    pub(crate) fn revocations(&self) -> Result<Vec<(UserId, u64)>> {
        self.tables.read_revocations(0)
    }

    /// Returns the versions of a user's device list that were replaced, and all of them for a deleted account.
    pub(crate) fn lists(&self, user: UserId) -> Result<Vec<SignedDeviceList>> {
        let versions = self.tables.list_versions.prefix(user.as_bytes()).map(|guard| {
            let value = guard.value().map_err(failed)?;
            chat_core::codec::decode_list(value.into()).map_err(|_| corrupt())
        });
        versions.collect()
    }

    pub(crate) fn account(&self, user: UserId) -> Result<Account> {
        let name = self.tables.names.get(user.as_bytes()).map_err(failed)?.ok_or_else(corrupt)?;
        let name = std::str::from_utf8(&name).map_err(|_| corrupt())?;
        let list: SignedDeviceList = self.tables.read_list(user)?.ok_or_else(corrupt)?;
        let contacts = sorted(self.tables.read_contacts(user)?);
        Ok(Account { handle: Handle::new(name).map_err(|_| corrupt())?, list, contacts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EmbeddedStore;

    #[test]
    fn sealed_data_set_does_not_open_for_serving() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SealedStore::seal(dir.path()).unwrap_err().kind(), ErrorKind::NotFound);
        let store = EmbeddedStore::open(dir.path()).unwrap();
        assert_eq!(SealedStore::seal(dir.path()).unwrap_err().kind(), ErrorKind::Conflict, "it is open");
        drop(store);
        drop(SealedStore::seal(dir.path()).unwrap());
        drop(SealedStore::seal(dir.path()).unwrap());
        assert_eq!(EmbeddedStore::open(dir.path()).unwrap_err().kind(), ErrorKind::Unsupported);
        std::fs::remove_file(dir.path().join(SEALED)).unwrap();
        EmbeddedStore::open(dir.path()).unwrap();
    }
}
