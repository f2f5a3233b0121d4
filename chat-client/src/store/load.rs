//! The state from which a replica continues.

use std::collections::HashMap;

use chat_core::codec::decode_list;
use chat_core::group::GroupAction;
use chat_core::replica::{
    Chain, ConversationSnapshot, Draft, OutboxEntrySnapshot, Recipient, ReplicaSnapshot,
};
use chat_core::{
    ConversationId, DeviceAddress, DeviceId, Handle, InstallationId, MessageId, Result, StoreEpoch, UserId,
};

use super::{DAY_MS, LocalStore, blob, failed, number, read_publish};
use crate::suite::SuiteTx as _;

impl LocalStore {
    /// Loads the state from which a replica continues.
    ///
    /// # Errors
    /// If the store fails or its content cannot be decoded.
    pub(crate) fn load(&mut self, device: DeviceAddress) -> Result<ReplicaSnapshot> {
        self.own = Some(device);
        self.count_uncounted()?;
        self.read_unsupported()?;
        self.build_search_index()?;
        self.commit_open()?;
        let mut saved = ReplicaSnapshot::new(device);
        saved.incarnation = u32::try_from(self.meta_number("incarnation")?).unwrap_or(u32::MAX);
        saved.generation = self.meta_number("generation")?;
        saved.epoch = self.meta("epoch")?.map(|v| StoreEpoch::parse(&v)).transpose()?;
        saved.epoch_changed = self.meta("epoch_changed")?.map(|had_sent| had_sent == [1]);
        saved.nonce = self.meta("nonce")?.and_then(|v| v.try_into().ok());
        saved.unasked = self.unreadable(1)?;
        saved.asked_once = self.unreadable(2)?;
        saved.reincarnation_asked = self.meta("reincarnation_asked")?.is_some();
        saved.prekeys_at = self.meta_number("prekeys_at")?;
        let reincarnated = self.meta_number("reincarnated_at")?;
        saved.reincarnated_lately = reincarnated > 0 && self.now_ms() < reincarnated.saturating_add(DAY_MS);
        saved.conversations = self.rows(
            "SELECT id, cursor, client_seq, prev, last_own, delivered, read, excused, roster_behind,
                    coalesce((SELECT max(receipts.read) FROM receipts
                              WHERE conversation = id AND receipts.user = conversations.peer), 0)
             FROM conversations",
            |row| {
                Ok(ConversationSnapshot {
                    cursor: number(row, 1)?,
                    client_seq: number(row, 2)?,
                    prev: MessageId::parse(&blob(row, 3)?)?,
                    last_own: number(row, 4)?,
                    delivered: number(row, 5)?,
                    // Another device may have read messages that this one does not have yet.
                    read: number(row, 6)?.min(number(row, 1)?),
                    excused: number(row, 7)?,
                    roster_behind: number(row, 8)? != 0,
                    peer_read: number(row, 9)?,
                    ..ConversationSnapshot::new(ConversationId::parse(&blob(row, 0)?)?)
                })
            },
        )?;
        let mut chains: HashMap<ConversationId, Vec<_>> = HashMap::new();
        for (conversation, chain) in self.rows(
            "SELECT conversation, sender, incarnation, client_seq, message_id, excused FROM chains",
            |row| {
                let chain = Chain {
                    incarnation: number(row, 2)? as u32,
                    client_seq: number(row, 3)?,
                    id: MessageId::parse(&blob(row, 4)?)?,
                    excused: number(row, 5)?,
                };
                let sender = InstallationId::parse(&blob(row, 1)?)?;
                Ok((ConversationId::parse(&blob(row, 0)?)?, (sender, chain)))
            },
        )? {
            chains.entry(conversation).or_default().push(chain);
        }
        for conversation in &mut saved.conversations {
            conversation.chains = chains.remove(&conversation.id).unwrap_or_default();
        }
        self.load_groups(&mut saved.conversations)?;
        saved.outbox = self.rows(
            "SELECT message_id, handle, user, content, sent_at, publish, void, attempted, installation, device, bound,
                    group_id, action, waits_for
             FROM outbox ORDER BY n",
            |row| {
                let handle: Option<String> = row.get(1).map_err(failed)?;
                let installation: Option<Vec<u8>> = row.get(8).map_err(failed)?;
                let group: Option<Vec<u8>> = row.get(11).map_err(failed)?;
                let action: Option<Vec<u8>> = row.get(12).map_err(failed)?;
                let after: Option<Vec<u8>> = row.get(13).map_err(failed)?;
                let to = match (handle, installation) {
                    _ if group.is_some() => Recipient::Group(ConversationId::parse(&group.unwrap_or_default())?),
                    (Some(handle), _) => Recipient::Handle(Handle::new(&handle)?),
                    (None, None) => Recipient::User(UserId::parse(&blob(row, 2)?)?),
                    (None, Some(installation)) => Recipient::Device(DeviceAddress {
                        user: UserId::parse(&blob(row, 2)?)?,
                        device: DeviceId::new(number(row, 9)? as u32)?,
                        installation: InstallationId::parse(&installation)?,
                    }),
                };
                let publish: Option<Vec<u8>> = row.get(5).map_err(failed)?;
                Ok(OutboxEntrySnapshot {
                    draft: Draft {
                        id: MessageId::parse(&blob(row, 0)?)?,
                        to,
                        after: after.map(|id| MessageId::parse(&id)).transpose()?,
                        content: blob(row, 3)?.into(),
                        sent_at: number(row, 4)?,
                        action: action.map(|action| GroupAction::decode(&action)).transpose()?,
                    },
                    publish: publish.map(read_publish).transpose()?,
                    skip: number(row, 6)? != 0,
                    attempted: number(row, 7)? != 0,
                    bound: number(row, 10)? != 0,
                })
            },
        )?;
        saved.lists = self.rows("SELECT list FROM lists", |row| decode_list(blob(row, 0)?.into()))?;
        saved.handles = self.rows("SELECT handle, user FROM handles", |row| {
            let handle: String = row.get(0).map_err(failed)?;
            Ok((Handle::new(&handle)?, UserId::parse(&blob(row, 1)?)?))
        })?;
        Ok(saved)
    }

    /// Returns the unreadable messages in a state of their requests: 1 for those that were not requested again yet, 2 for those
    /// that were requested once.
    fn unreadable(&self, state: i64) -> Result<Vec<(DeviceAddress, ConversationId, MessageId)>> {
        self.rows_with(
            "SELECT user, device, sender, conversation, message_id FROM messages WHERE unasked > 0 AND unasked = ?1
             ORDER BY sent_at",
            [state],
            |row| {
                let sender = DeviceAddress {
                    user: UserId::parse(&blob(row, 0)?)?,
                    device: DeviceId::new(number(row, 1)? as u32)?,
                    installation: InstallationId::parse(&blob(row, 2)?)?,
                };
                Ok((sender, ConversationId::parse(&blob(row, 3)?)?, MessageId::parse(&blob(row, 4)?)?))
            },
        )
    }
}
