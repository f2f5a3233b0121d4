use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chat_core::backend::{
    Commit, ContactStore, ConversationState, CursorFilter, FeedChange, KeyDirectory, MessageStore, PageLimit,
    SenderFilter, StoreIdentity,
};
use chat_core::codec::encode_list;
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{Durability, InboxPosition, InboxRow};
use chat_core::{ConversationId, InstallationId, MessageId, Result, Seq, StoreEpoch, UserId};
use scylla::value::CqlValue;

use super::commit::{LATE_DAY, big, blob, day_of, minute, now_us};
use super::connection::Write;
use super::inbox::{DAYS_READ, FLOOR_BEHIND_US};
use super::{CassandraSettings, CassandraStore, corrupt, schema, signed, unsigned};
use crate::data_set::{Account, Device, sorted};

/// A keyspace that receives a migrated data set. Writes are idempotent, and their timestamps are below those
/// of the nodes that serve the keyspace later.
#[derive(Debug)]
pub(crate) struct CassandraImport {
    store: CassandraStore,
}

impl CassandraImport {
    /// Creates the schema, or resumes an interrupted copy of the same data set.
    pub(crate) async fn begin(settings: &CassandraSettings, epoch: StoreEpoch) -> Result<Self> {
        let connection = schema::begin_import(settings, *epoch.as_bytes()).await?;
        let identity = StoreIdentity { epoch, durability: Durability::Fsync };
        Ok(Self { store: CassandraStore::new(connection, identity) })
    }

    /// Finishes the copy: the data set may be served from now on.
    pub(crate) async fn end(&self) -> Result<()> {
        schema::end_import(&self.store.connection).await
    }

    pub(crate) async fn state(&self, conversation: ConversationId) -> Result<Option<ConversationState>> {
        self.store.state(conversation, SenderFilter::All, None).await
    }

    /// Writes rows and their ids, and then the state.
    pub(crate) async fn put_rows(&self, commit: &Commit) -> Result<()> {
        self.store.commit_in_order(commit).await
    }

    pub(crate) async fn put_cleared(
        &self,
        conversation: ConversationId,
        user: UserId,
        seq: Seq,
    ) -> Result<()> {
        self.store.put_cleared(conversation, user, seq).await
    }

    pub(crate) async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.store.cleared_by(conversation, user).await
    }

    pub(crate) async fn put_device(
        &self,
        id: InstallationId,
        device: &Device,
        tails: &BTreeMap<ConversationId, u64>,
        first_waiting_us: Option<u64>,
    ) -> Result<()> {
        let connection = &self.store.connection;
        let write = |statement, values| Write { statement, values };
        let own = || blob(id.as_bytes());
        let born = first_waiting_us.unwrap_or(u64::MAX).min(now_us().saturating_sub(FLOOR_BEHIND_US));
        let mut cursors =
            vec![self.store.generation_write(id, device.generation), self.store.born_write(id, born)];
        for (conversation, cursor) in &device.cursors {
            // The timestamp must be below that of every row that is committed later.
            let time_us = tails.get(conversation).copied().unwrap_or(1);
            let tail =
                vec![big(signed(time_us)), big(signed(cursor.tail)), own(), blob(conversation.as_bytes())];
            cursors.push(write(&connection.statements.put_tail, tail));
            let acked = big(signed(cursor.acked));
            let acked = vec![acked.clone(), acked, own(), blob(conversation.as_bytes())];
            cursors.push(write(&connection.statements.put_acked, acked));
        }
        self.store.write_partition(&cursors).await?;
        for feed in &device.feeds {
            let change = |(seq, joins): &(Seq, bool)| FeedChange { device: id, seq: *seq, joins: *joins };
            let changes = feed.changes.iter().map(change);
            let writes = changes.map(|change| self.store.feed_write(feed.conversation, change, 1));
            self.store.write_partition(&writes.collect::<Vec<_>>()).await?;
        }
        let mut keys = Vec::new();
        if let Some((signed_part, signature, through)) = &device.bundle {
            let part = |bytes: &Bytes| CqlValue::Blob(bytes.to_vec());
            let values = vec![part(signed_part), part(signature), big(signed(*through)), own()];
            keys.push(write(&connection.statements.import_bundle, values));
        }
        if let Some((incarnation, nonce, at_ms)) = &device.incarnation {
            let incarnation = CqlValue::Int(i32::try_from(*incarnation).unwrap_or(i32::MAX));
            let values = vec![incarnation, blob(nonce), big(signed(*at_ms)), own()];
            keys.push(write(&connection.statements.import_incarnation, values));
        }
        for (number, data) in &device.prekeys {
            let values = vec![own(), big(signed(*number)), CqlValue::Blob(data.to_vec())];
            keys.push(write(&connection.statements.import_prekey, values));
        }
        self.store.write_partition(&keys).await?;
        if let Some(user) = device.owner {
            let values = (&id.as_bytes()[..], &user.as_bytes()[..]);
            connection.write(&connection.statements.import_owner, values).await?;
        }
        Ok(())
    }

    /// Writes the unacknowledged rows of a device, each to the day of its commit. Rows of days that are too
    /// old to be read go to [`LATE_DAY`].
    pub(crate) async fn put_inbox(&self, device: InstallationId, rows: &[InboxRow]) -> Result<()> {
        let mut days: BTreeMap<i32, Vec<Write<'_>>> = BTreeMap::new();
        let oldest = day_of(now_us()) - DAYS_READ / 2;
        for row in rows {
            let day = Some(day_of(row.time_us)).filter(|day| *day > oldest).unwrap_or(LATE_DAY);
            let write = self.store.inbox_write(device, day, row, row.time_us + u64::from(row.is_expired()));
            days.entry(day).or_default().push(write);
        }
        for writes in days.values() {
            self.store.write_partition(writes).await?;
        }
        Ok(())
    }

    pub(crate) async fn put_account(&self, account: &Account) -> Result<()> {
        let connection = &self.store.connection;
        let list = account.list.list();
        let handle = account.handle.as_str();
        connection.write(&connection.statements.import_handle, (handle, &list.user.as_bytes()[..])).await?;
        let values = (&list.user.as_bytes()[..], handle, signed(list.version), encode_list(&account.list));
        connection.write(&connection.statements.import_account, values).await?;
        self.store.import_contacts(list.user, &account.contacts).await
    }

    /// Writes that an account was deleted, and that its user is never used again.
    pub(crate) async fn put_deleted(&self, user: UserId) -> Result<()> {
        let statement = &self.store.connection.statements.import_deleted;
        self.store.connection.write(statement, (&user.as_bytes()[..],)).await
    }

    pub(crate) async fn is_deleted(&self, user: UserId) -> Result<bool> {
        self.store.is_deleted(user).await
    }

    pub(crate) async fn put_revocation(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        self.store.revoke(user, not_before_ms).await
    }

    pub(crate) async fn revocations(&self) -> Result<Vec<(UserId, u64)>> {
        self.store.revocations(0).await
    }

    pub(crate) async fn put_list_version(&self, list: &SignedDeviceList) -> Result<()> {
        self.store.write_list_version(list).await
    }

    pub(crate) async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        self.store.list_version(user, version).await
    }

    /// Returns a page of a conversation, newest first.
    pub(crate) async fn history(&self, conversation: ConversationId, before: Seq) -> Result<Vec<InboxRow>> {
        self.store.history(conversation, before, PageLimit::MAX).await
    }

    /// Returns the ids of a conversation by seq, from the partitions that hold the ids in `like`.
    pub(crate) async fn ids(
        &self,
        conversation: ConversationId,
        like: &[(Seq, InstallationId, MessageId)],
    ) -> Result<Vec<(Seq, InstallationId, MessageId)>> {
        let partitions: BTreeSet<(InstallationId, i32)> =
            like.iter().map(|(_, sender, id)| (*sender, minute(*id))).collect();
        let mut ids = Vec::new();
        for (sender, minute) in partitions {
            let of_sender = self.store.ids_of(conversation, sender, minute).await?;
            ids.extend(of_sender.into_iter().map(|(id, seq)| (seq, sender, id)));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Returns a page of a device's unacknowledged rows.
    pub(crate) async fn inbox(&self, device: InstallationId, after: InboxPosition) -> Result<Vec<InboxRow>> {
        self.store.read_inbox(device, after, PageLimit::MAX).await
    }

    pub(crate) async fn device(&self, id: InstallationId) -> Result<Device> {
        let connection = &self.store.connection;
        let generation = self.store.meta(id).await?.generation;
        let record = self.store.read_device(id, CursorFilter::All).await?;
        let rows = connection.rows(&connection.statements.prekeys, (&id.as_bytes()[..],)).await?;
        let mut prekeys = Vec::new();
        for row in rows.rows::<(Option<i64>, Option<Vec<u8>>)>().map_err(|_| corrupt())? {
            if let (Some(number), Some(data)) = row.map_err(|_| corrupt())? {
                prekeys.push((unsigned(number), Bytes::from(data)));
            }
        }
        let owner = self.store.owner_of(id).await?;
        let keys = self.store.read_keys(id).await?;
        let incarnation = keys.last()?;
        let bundle = match (keys.signed, keys.signature, keys.through) {
            (Some(signed), Some(signature), Some(through)) => {
                Some((signed.into(), signature.into(), unsigned(through)))
            }
            _ => None,
        };
        Ok(Device {
            generation,
            cursors: record.cursors,
            feeds: self.store.read_feeds(id).await?,
            bundle,
            prekeys,
            incarnation,
            owner: owner.map(|user| UserId::parse(&user).map_err(|_| corrupt())).transpose()?,
        })
    }

    pub(crate) async fn account(&self, like: &Account) -> Result<Option<Account>> {
        let user = self.store.resolve(&like.handle).await?;
        let Some(user) = user else { return Ok(None) };
        let contacts = sorted(self.store.contacts(user).await?);
        Ok(self.store.read_account(user).await?.map(|(handle, list)| Account { handle, list, contacts }))
    }
}
