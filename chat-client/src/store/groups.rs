//! Groups: the rosters that this device followed, its sender keys, and the profiles of groups.

use std::collections::HashMap;

use bytes::Bytes;
use chat_core::codec::state::{decode_roster, encode_roster};
use chat_core::group::{GroupAction, LinkSecret};
use chat_core::replica::{ConversationSnapshot, SenderKey};
use chat_core::roster::Roster;
use chat_core::{ConversationId, DeviceAddress, InstallationId, MessageId, Result, SenderKeyId, Seq, UserId};
use prost::Message as _;
use rusqlite::{OptionalExtension, params};

use super::events::{EventKind, EventRow};
use super::{LocalStore, blob, corrupt, failed};
use crate::content::{ReceivedDetails, group_details};
use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;
use crate::settings_sync::SettingsSync;

/// The start of the keys of `meta` that name groups which this device leaves.
const UNWANTED: &str = "unwanted_group:";

/// The condition of messages of the outbox that the client made by itself.
pub(super) const IS_SILENT: &str = "(group_id IS NOT NULL AND action IS NULL AND content = x'')";

/// A sender key as it is stored.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SenderKeyRow {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    key_epoch: u64,
    #[prost(uint32, tag = "3")]
    incarnation: u32,
    #[prost(uint64, tag = "4")]
    first: u64,
    #[prost(uint64, tag = "5")]
    made_ms: u64,
    /// The installations one after the other.
    #[prost(bytes = "vec", tag = "6")]
    holders: Vec<u8>,
}

impl SenderKeyRow {
    fn of(key: &SenderKey) -> Self {
        Self {
            id: key.id.as_bytes().to_vec(),
            key_epoch: key.key_epoch,
            incarnation: key.incarnation,
            first: key.first,
            made_ms: key.made_ms,
            holders: key.holders.iter().flat_map(|device| *device.as_bytes()).collect(),
        }
    }

    fn read(encoded: &[u8]) -> Result<SenderKey> {
        let row = Self::decode(encoded).map_err(|_| corrupt("failed to decode a sender key"))?;
        Ok(SenderKey {
            id: SenderKeyId::parse(&row.id)?,
            key_epoch: row.key_epoch,
            incarnation: row.incarnation,
            first: row.first,
            made_ms: row.made_ms,
            holders: row.holders.chunks(16).map(InstallationId::parse).collect::<Result<_>>()?,
        })
    }
}

impl LocalStore {
    /// Adds rosters and sender keys to the conversations that a replica continues from.
    pub(super) fn load_groups(&self, conversations: &mut [ConversationSnapshot]) -> Result<()> {
        let id = |row: &rusqlite::Row<'_>| ConversationId::parse(&blob(row, 0)?);
        let rosters = self.rows(
            "SELECT conversation, roster FROM rosters AS newest WHERE version =
               (SELECT max(version) FROM rosters WHERE conversation = newest.conversation)",
            |row| Ok((id(row)?, decode_roster(&blob(row, 1)?)?)),
        )?;
        let keys = self.rows("SELECT conversation, key FROM sender_keys", |row| {
            Ok((id(row)?, SenderKeyRow::read(&blob(row, 1)?)?))
        })?;
        let mut rosters: HashMap<ConversationId, Roster> = rosters.into_iter().collect();
        let mut keys: HashMap<ConversationId, SenderKey> = keys.into_iter().collect();
        for known in conversations {
            known.roster = rosters.remove(&known.id).unwrap_or_default();
            known.sender_key = keys.remove(&known.id);
        }
        Ok(())
    }

    /// Keeps the roster of a group. Earlier ones stay, because they say which devices may have an own message.
    pub(super) fn set_roster(&mut self, id: ConversationId, roster: &Roster) -> Result<()> {
        self.ensure_conversation(id)?;
        self.revisions.touch_status(id);
        if roster.version == 0 {
            return self.run("DELETE FROM rosters WHERE conversation = ?1", [id.as_bytes()]).map(drop);
        }
        self.run(
            "INSERT OR REPLACE INTO rosters VALUES (?1, ?2, ?3)",
            params![id.as_bytes(), roster.version as i64, encode_roster(roster)],
        )
        .map(drop)
    }

    pub(super) fn set_roster_behind(&mut self, id: ConversationId, is_behind: bool) -> Result<()> {
        self.ensure_conversation(id)?;
        self.run(
            "UPDATE conversations SET roster_behind = ?2 WHERE id = ?1",
            params![id.as_bytes(), is_behind],
        )
        .map(drop)
    }

    pub(super) fn set_sender_key(&mut self, id: ConversationId, key: Option<&SenderKey>) -> Result<()> {
        match key {
            Some(key) => self.run(
                "INSERT OR REPLACE INTO sender_keys VALUES (?1, ?2)",
                params![id.as_bytes(), SenderKeyRow::of(key).encode_to_vec()],
            ),
            None => self.run("DELETE FROM sender_keys WHERE conversation = ?1", [id.as_bytes()]),
        }
        .map(drop)
    }

    /// Returns the sender key of this device in a group.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn sender_key(&self, id: ConversationId) -> Result<Option<SenderKey>> {
        let key: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT key FROM sender_keys WHERE conversation = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        key.map(|key| SenderKeyRow::read(&key)).transpose()
    }

    /// Records a change of a group. Its message may have a new profile of the group.
    pub(super) fn group_changed(
        &mut self,
        id: ConversationId,
        seq: Seq,
        sender: DeviceAddress,
        message: MessageId,
        action: &GroupAction,
    ) -> Result<()> {
        self.ensure_conversation(id)?;
        if action.added().contains(&self.own_user()?) {
            // The timer is that of the addition, not one of an earlier membership.
            self.run("UPDATE conversations SET timer_seq = 0 WHERE id = ?1", [id.as_bytes()])?;
        }
        let has_profile = match action {
            GroupAction::Create { .. } | GroupAction::Edit => true,
            // A new member gets the profile that it could not read. It changes none that a message of the group set.
            GroupAction::Add(_) => !self.has_profile_of_member(id)?,
            _ => false,
        };
        if has_profile {
            self.run(
                "UPDATE conversations SET profile_from = ?2 WHERE id = ?1",
                params![id.as_bytes(), message.as_bytes()],
            )?;
            self.take_own_group_details(id, message)?;
        }
        let encoded = action.encode().to_vec();
        let is_shown = self.was_in_group(id)?;
        let known = !is_shown || self.run(
            "UPDATE messages SET group_action = ?4 WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            params![sender.installation.as_bytes(), message.as_bytes(), id.as_bytes(), encoded],
        )? > 0;
        if !known {
            self.received_action = Some((id, message, encoded.clone()));
        }
        let event = EventRow {
            action: encoded,
            ..EventRow::of_message(EventKind::GroupChanged, id, seq, sender, message)
        };
        self.add_event(None, event)
    }

    /// Takes the profile of a group from a message that may change it, and the secret of its link from any member.
    pub(super) fn take_group_details(
        &mut self,
        id: ConversationId,
        message: MessageId,
        content: &[u8],
    ) -> Result<()> {
        let ReceivedDetails { profile, link, timer_ms } = group_details(content);
        let secret = link.filter(|link| link.group() == id).and_then(|link| link.secret().cloned());
        if let Some(secret) = secret
            && self.roster(id)?.link.is_some_and(|link| link.key == secret.key())
        {
            self.set_link_secret(id, &secret)?;
        }
        let Some(GroupProfile { name, description, picture }) = profile else { return Ok(()) };
        let taken = self.run(
            "UPDATE conversations SET name = ?3, description = ?4, picture = ?5 WHERE id = ?1 AND profile_from = ?2",
            params![id.as_bytes(), message.as_bytes(), name, description, picture],
        )?;
        match timer_ms.filter(|_| taken > 0) {
            Some(timer_ms) => self.take_first_timer(id, timer_ms),
            None => Ok(()),
        }
    }

    /// Takes the profile of a group from an own message, which was stored before its change was followed.
    fn take_own_group_details(&mut self, id: ConversationId, message: MessageId) -> Result<()> {
        let own = self.own.ok_or(corrupt("the store is not loaded"))?.installation;
        let content = self.column_of("content", id, own.as_bytes(), message.as_bytes())?;
        content.map_or(Ok(()), |content| self.take_group_details(id, message, &content))
    }

    fn has_profile_of_member(&self, id: ConversationId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM conversations WHERE id = ?1 AND profile_from IS NOT NULL")
            .and_then(|mut s| s.exists([id.as_bytes()]))
            .map_err(failed)
    }

    /// Returns the profile of a group, if this device knows it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn group_profile(&self, id: ConversationId) -> Result<Option<GroupProfile>> {
        self.db
            .prepare_cached(
                "SELECT name, description, picture FROM conversations WHERE id = ?1 AND name IS NOT NULL",
            )
            .and_then(|mut s| {
                s.query_row([id.as_bytes()], |row| {
                    Ok(GroupProfile { name: row.get(0)?, description: row.get(1)?, picture: row.get(2)? })
                })
                .optional()
            })
            .map_err(failed)
    }

    /// Prepares to found or join a group: notes its name, and the secret that the invitation has.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn expect_group(
        &mut self,
        id: ConversationId,
        name: Option<&str>,
        secret: Option<&LinkSecret>,
    ) -> Result<()> {
        self.ensure_conversation(id)?;
        let (own, roster) = (self.own_user()?, self.roster(id)?);
        if roster.member(own).is_some() {
            // A new writer of a channel takes over its key.
            let is_current = |secret: &&LinkSecret| roster.link.is_some_and(|link| link.key == secret.key());
            let key = secret.filter(is_current).filter(|_| id.is_channel());
            if key.is_some() {
                // The profile may be in a message from before this device had the key.
                self.run(
                    "UPDATE conversations SET name = ?2 WHERE id = ?1 AND name IS NULL",
                    params![id.as_bytes(), name],
                )?;
            }
            return key.map_or(Ok(()), |secret| self.set_link_secret(id, secret));
        }
        if let Some(name) = name {
            // Only a message of the group confirms a name.
            self.run(
                "UPDATE conversations SET name = ?2 WHERE id = ?1 AND profile_from IS NULL",
                params![id.as_bytes(), name],
            )?;
        }
        secret.map_or(Ok(()), |secret| self.set_link_secret(id, secret))
    }

    /// Notes, in the open transaction, that this device leaves a group.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn note_unwanted_group(&mut self, id: ConversationId) -> Result<()> {
        self.set_meta(&format!("{UNWANTED}{}", id.to_hex()), &[])
    }

    /// Returns the groups that this device leaves, and ends their notes in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn take_unwanted_groups(&mut self) -> Result<Vec<ConversationId>> {
        let keys =
            self.rows_with("SELECT key FROM meta WHERE key LIKE ?1", [format!("{UNWANTED}%")], |row| {
                row.get::<_, String>(0).map_err(failed)
            })?;
        keys.iter().try_for_each(|key| self.remove_meta(key))?;
        let ids = keys.iter().filter_map(|key| key.strip_prefix(UNWANTED));
        ids.map(ConversationId::from_hex).collect()
    }

    /// Returns whether this user asks to join a group, as the stored roster says.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn asks_to_join(&self, id: ConversationId) -> Result<bool> {
        Ok(self.roster(id)?.asks_to_join(self.own_user()?))
    }

    /// Returns the name of a group in the newest invitation to it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn invited_to(&self, id: ConversationId) -> Result<Option<String>> {
        let invitations = self.rows_with(
            "SELECT content FROM messages WHERE instr(content, ?1) > 0 ORDER BY sent_at DESC LIMIT 10",
            [id.as_bytes()],
            |row| Ok(group_details(&blob(row, 0)?).link),
        )?;
        let of_group = |invitation: &GroupInvitation| invitation.group() == id;
        let found = invitations.into_iter().flatten().find(of_group);
        Ok(found.and_then(|invitation| invitation.name().map(str::to_owned)))
    }

    /// Keeps the secret of a group's link.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_link_secret(&mut self, id: ConversationId, secret: &LinkSecret) -> Result<()> {
        self.ensure_conversation(id)?;
        self.run(
            "UPDATE conversations SET link_secret = ?2 WHERE id = ?1",
            params![id.as_bytes(), secret.as_bytes()],
        )?;
        if id.is_channel() { self.add_channel_key(id, secret) } else { Ok(()) }
    }

    /// Returns the last secret of a group's link that this device has seen.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn link_secret(&self, id: ConversationId) -> Result<Option<LinkSecret>> {
        let secret: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached("SELECT link_secret FROM conversations WHERE id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        let bytes = secret.flatten().map(|secret| secret.try_into());
        bytes
            .transpose()
            .map(|bytes| bytes.map(LinkSecret::from_bytes))
            .map_err(|_| corrupt("a link's secret"))
    }

    /// Returns whether this user is a contact of another one, as far as this device knows: the other user has written to
    /// it, or a receipt of that user arrived, which only contacts get.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn is_contact_of(&self, user: UserId) -> Result<bool> {
        let direct = ConversationId::direct(self.own_user()?, user);
        self.db
            .prepare_cached(
                "SELECT 1 FROM messages WHERE conversation = ?1 AND user = ?2
                 UNION ALL SELECT 1 FROM receipts WHERE conversation = ?1 AND user = ?2 AND max(delivered, read) > 0",
            )
            .and_then(|mut s| s.exists(params![direct.as_bytes(), user.as_bytes()]))
            .map_err(failed)
    }

    /// Returns the newest roster of a group that this device has; version 0 without one.
    pub(super) fn roster(&self, id: ConversationId) -> Result<Roster> {
        let roster: Option<Vec<u8>> = self
            .db
            .prepare_cached(
                "SELECT roster FROM rosters WHERE conversation = ?1 ORDER BY version DESC LIMIT 1",
            )
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        roster.map_or(Ok(Roster::default()), |roster| decode_roster(&roster))
    }

    /// Returns the change of a group that a message makes.
    pub(super) fn group_action(
        &self,
        sender: InstallationId,
        id: ConversationId,
        message: MessageId,
    ) -> Result<Option<GroupAction>> {
        let action = self.column_of("group_action", id, sender.as_bytes(), message.as_bytes())?;
        Ok(action.and_then(|action| GroupAction::decode(&action).ok()))
    }

    /// Returns whether this user is a member of a group, or was one before the last change. Only to
    /// such a user changes are shown: a user that declines an invitation does not see the group any more.
    pub(super) fn was_in_group(&self, id: ConversationId) -> Result<bool> {
        let own = self.own_user()?;
        let rosters = self.rows_with(
            "SELECT roster FROM rosters WHERE conversation = ?1 ORDER BY version DESC LIMIT 2",
            [id.as_bytes()],
            |row| blob(row, 0),
        )?;
        for roster in rosters {
            if decode_roster(&roster)?.member(own).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether users see a group that has no message: this user is a member, or asks to join.
    pub(super) fn is_in_group(&self, id: ConversationId) -> Result<bool> {
        let (roster, own) = (self.roster(id)?, self.own_user()?);
        Ok(roster.member(own).is_some() || roster.asks_to_join(own))
    }

    /// Returns whether a device belonged to a member in the roster that an own message was sealed for.
    pub(super) fn may_read(&self, id: ConversationId, version: u64, device: InstallationId) -> Result<bool> {
        let roster: Option<Vec<u8>> = self
            .db
            .prepare_cached(
                // Without one that is old enough, the first one that this device followed.
                "SELECT roster FROM rosters WHERE conversation = ?1
                 ORDER BY version <= ?2 DESC, abs(version - ?2) LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row(params![id.as_bytes(), version as i64], |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        let Some(roster) = roster.map(|roster| decode_roster(&roster)).transpose()? else { return Ok(false) };
        Ok(roster.installations().any(|one| one == device))
    }

    /// Returns the content of an own message of a group for a device that requests it again.
    pub(super) fn recall_in_group(
        &self,
        id: ConversationId,
        message: MessageId,
        asker: DeviceAddress,
    ) -> Result<Option<Bytes>> {
        let own = self.own.ok_or(corrupt("the store is not loaded"))?.installation;
        let key = params![own.as_bytes(), message.as_bytes(), id.as_bytes()];
        let stored: Option<(Option<Vec<u8>>, Option<i64>)> = self
            .db
            .prepare_cached(
                "SELECT content, roster_version FROM messages
                 WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            )
            .and_then(|mut s| s.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        let (content, version, is_named) = match stored {
            Some((content, version)) => (content.unwrap_or_default(), version.unwrap_or(0) as u64, false),
            None => match self.waiting(message)? {
                Some((content, publish)) if publish.number.conversation == id => {
                    // The roster after a change that waits is not known yet.
                    let is_named = publish.audience.iter().any(|named| named.user == asker.user);
                    (content, publish.group.map_or(0, |part| part.roster_version), is_named)
                }
                _ => return Ok(None),
            },
        };
        let may_read = is_named || self.may_read(id, version, asker.installation)?;
        Ok((may_read && !content.is_empty()).then(|| content.into()))
    }

    /// Voids the numbers and ciphertexts of messages in the outbox.
    pub(super) fn unsealed(
        &mut self,
        id: ConversationId,
        client_seq: u64,
        prev: MessageId,
        messages: &[MessageId],
    ) -> Result<()> {
        self.run(
            "UPDATE conversations SET client_seq = ?2, prev = ?3 WHERE id = ?1",
            params![id.as_bytes(), client_seq as i64, prev.as_bytes()],
        )?;
        messages.iter().try_for_each(|message| {
            self.run(
                "UPDATE outbox SET publish = NULL, attempted = 1 WHERE message_id = ?1",
                [message.as_bytes()],
            )
            .map(drop)
        })
    }

    /// Returns whether the client made a message of the outbox by itself. Such a message is not shown.
    pub(super) fn is_silent(&self, message: MessageId) -> Result<bool> {
        let own = self.own_user()?;
        let found: Option<(bool, bool, Vec<u8>)> = self
            .db
            .prepare_cached(&format!(
                "SELECT {IS_SILENT}, coalesce(user = ?2, 0), content FROM outbox WHERE message_id = ?1"
            ))
            .and_then(|mut s| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
                s.query_row(params![message.as_bytes(), own.as_bytes()], row).optional()
            })
            .map_err(failed)?;
        Ok(found.is_some_and(|(is_silent, is_own, content)| {
            is_silent || is_own && SettingsSync::read(&content).is_some()
        }))
    }

    /// Returns whether this device has heard of a group.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn knows_group(&self, id: ConversationId) -> Result<bool> {
        let known = self
            .db
            .prepare_cached("SELECT 1 FROM conversations WHERE id = ?1")
            .and_then(|mut s| s.exists([id.as_bytes()]))
            .map_err(failed)?;
        Ok(known && id.has_roster())
    }
}
