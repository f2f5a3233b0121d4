//! Settings of conversations, which all devices of the user share.

use std::time::{Duration, UNIX_EPOCH};

use chat_core::{ConversationId, DeviceAddress, InstallationId, MessageId, Result, Seq, StoreEpoch};
use prost::Message as _;
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, failed, number};
use crate::conversation_setting::ConversationSetting;
use crate::settings_sync::{MAX_SETTINGS, Settings, SettingsSync};

/// A setting in the mask of those that the other devices do not have yet.
pub(super) mod field {
    pub(crate) const MUTED: u64 = 1;
    pub(crate) const ARCHIVED: u64 = 2;
    pub(crate) const PINNED: u64 = 4;
    pub(crate) const DRAFT: u64 = 8;
    pub(crate) const READ: u64 = 16;
}

/// The settings of a conversation as they are stored.
#[derive(Debug, Default)]
pub(super) struct StoredSettings {
    pub(super) muted_until: u64,
    pub(super) archived: bool,
    pub(super) pinned: bool,
    pub(super) draft: String,
    read: Seq,
}

impl StoredSettings {
    pub(super) fn muted_until(&self) -> Option<std::time::SystemTime> {
        let until = (self.muted_until > 0).then(|| Duration::from_millis(self.muted_until));
        until.and_then(|since| UNIX_EPOCH.checked_add(since))
    }
}

impl LocalStore {
    /// Changes a setting of a conversation, in the open transaction, and notes that other devices do not have it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn change_setting(
        &mut self,
        conversation: ConversationId,
        setting: &ConversationSetting,
    ) -> Result<()> {
        let mut settings = Settings::of(conversation);
        let field = match setting {
            ConversationSetting::MutedUntil(until) => {
                let since = until.and_then(|until| until.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
                // Later times are for ever.
                settings.muted_until = Some(since.as_millis().min(1 << 52) as u64);
                field::MUTED
            }
            ConversationSetting::Archived(archived) => {
                settings.archived = Some(*archived);
                field::ARCHIVED
            }
            ConversationSetting::Pinned(pinned) => {
                settings.pinned = Some(*pinned);
                field::PINNED
            }
            ConversationSetting::Draft(draft) => {
                settings.draft = Some(draft.clone());
                field::DRAFT
            }
        };
        self.set_settings(conversation, &settings)?;
        self.note_unsynced(conversation, field)
    }

    /// Notes that other devices do not have the read position of a conversation, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn note_read(&mut self, conversation: ConversationId) -> Result<()> {
        self.note_unsynced(conversation, field::READ)
    }

    fn note_unsynced(&mut self, conversation: ConversationId, field: u64) -> Result<()> {
        self.run(
            "INSERT INTO unsynced_settings VALUES (?1, ?2) ON CONFLICT DO UPDATE SET fields = fields | excluded.fields",
            params![conversation.as_bytes(), field.cast_signed()],
        )
        .map(drop)
    }

    fn unsynced(&self, conversation: ConversationId) -> Result<u64> {
        let fields: Option<i64> = self
            .db
            .prepare_cached("SELECT fields FROM unsynced_settings WHERE conversation = ?1")
            .and_then(|mut s| s.query_row([conversation.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        Ok(fields.unwrap_or(0).cast_unsigned())
    }

    /// Returns whether this device has settings that the other devices do not have.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn has_unsynced_settings(&self) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM unsynced_settings LIMIT 1")
            .and_then(|mut s| s.exists([]))
            .map_err(failed)
    }

    /// Takes settings that the other devices do not have, up to the size of a message, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn take_unsynced_settings(&mut self) -> Result<Option<SettingsSync>> {
        let noted = self.rows("SELECT conversation, fields FROM unsynced_settings LIMIT 256", |row| {
            Ok((ConversationId::parse(&blob(row, 0)?)?, number(row, 1)?))
        })?;
        let (mut taken, mut size) = (Vec::new(), 0);
        for (conversation, fields) in noted {
            let stored = self.settings(conversation)?;
            let has = |field| fields & field != 0;
            let settings = Settings {
                muted_until: has(field::MUTED).then_some(stored.muted_until),
                archived: has(field::ARCHIVED).then_some(stored.archived),
                pinned: has(field::PINNED).then_some(stored.pinned),
                draft: has(field::DRAFT).then_some(stored.draft),
                read: has(field::READ).then_some(stored.read),
                ..Settings::of(conversation)
            };
            size += settings.encoded_len();
            taken.push(settings);
            self.run("DELETE FROM unsynced_settings WHERE conversation = ?1", [conversation.as_bytes()])?;
            if size >= MAX_SETTINGS {
                break;
            }
        }
        let epoch = self.epoch()?;
        Ok((!taken.is_empty()).then(|| SettingsSync::new(epoch, taken)))
    }

    /// Takes over the settings in a message of the own devices, which has this place in their order. A setting that this
    /// device has changed since comes later in that order. Returns whether the message has settings; then it is not shown.
    pub(super) fn apply_settings(
        &mut self,
        conversation: ConversationId,
        sender: DeviceAddress,
        id: MessageId,
        content: &[u8],
    ) -> Result<bool> {
        let own = self.own_user()?;
        if sender.user != own || conversation != ConversationId::own(own) {
            return Ok(false);
        }
        let Some(sync) = SettingsSync::read(content) else { return Ok(false) };
        self.hide(conversation, sender.installation, id)?;
        let same_epoch = sync.is_of_epoch(self.epoch()?);
        for settings in sync.settings {
            let Some(conversation) = settings.conversation() else { continue };
            let later = self.unsynced(conversation)?;
            let is_newest = |field| later & field == 0;
            let settings = Settings {
                muted_until: settings.muted_until.filter(|_| is_newest(field::MUTED)),
                archived: settings.archived.filter(|_| is_newest(field::ARCHIVED)),
                pinned: settings.pinned.filter(|_| is_newest(field::PINNED)),
                draft: settings.draft.filter(|_| is_newest(field::DRAFT)),
                read: settings.read.filter(|_| same_epoch),
                ..Settings::of(conversation)
            };
            self.set_settings(conversation, &settings)?;
        }
        Ok(true)
    }

    fn hide(&mut self, conversation: ConversationId, sender: InstallationId, id: MessageId) -> Result<()> {
        self.run(
            "UPDATE messages SET target = x'' WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            params![sender.as_bytes(), id.as_bytes(), conversation.as_bytes()],
        )
        .map(drop)
    }

    fn set_settings(&mut self, conversation: ConversationId, settings: &Settings) -> Result<()> {
        self.ensure_conversation(conversation)?;
        self.revisions.touch_status(conversation);
        self.run(
            "UPDATE conversations SET muted_until = coalesce(?2, muted_until), archived = coalesce(?3, archived),
               pinned = coalesce(?4, pinned), draft = coalesce(?5, draft) WHERE id = ?1",
            params![
                conversation.as_bytes(),
                settings.muted_until.map(u64::cast_signed),
                settings.archived,
                settings.pinned,
                settings.draft
            ],
        )?;
        settings.read.map_or(Ok(()), |read| self.set_read(conversation, read))
    }

    pub(super) fn settings(&self, conversation: ConversationId) -> Result<StoredSettings> {
        let found = self.rows_with(
            "SELECT muted_until, archived, pinned, draft, read FROM conversations WHERE id = ?1",
            [conversation.as_bytes()],
            |row| {
                Ok(StoredSettings {
                    muted_until: number(row, 0)?,
                    archived: row.get(1).map_err(failed)?,
                    pinned: row.get(2).map_err(failed)?,
                    draft: row.get(3).map_err(failed)?,
                    read: number(row, 4)?,
                })
            },
        )?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    fn epoch(&self) -> Result<Option<StoreEpoch>> {
        self.meta("epoch")?.map(|epoch| StoreEpoch::parse(&epoch)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use chat_core::{DeviceId, UserId};

    use super::*;
    use crate::config::Profile;
    use crate::store::open_for_test;

    #[test]
    fn setting_that_this_device_has_changed_since_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
        let user = UserId::from_bytes([1; 16]);
        let device = |n| DeviceAddress {
            user,
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([n; 16]),
        };
        store.load(device(1)).unwrap();
        let with_bob = ConversationId::direct(user, UserId::from_bytes([2; 16]));
        store.change_setting(with_bob, &ConversationSetting::Draft("new".into())).unwrap();
        let earlier = Settings { draft: Some("old".into()), pinned: Some(true), ..Settings::of(with_bob) };
        let content = SettingsSync::new(None, vec![earlier]).encode_padded();
        let arrives = |store: &mut LocalStore, conversation, sender| {
            store.apply_settings(conversation, sender, MessageId::NIL, &content).unwrap()
        };
        let other = DeviceAddress { user: UserId::from_bytes([2; 16]), ..device(9) };
        assert!(!arrives(&mut store, with_bob, other), "another user sends no settings");
        assert!(!arrives(&mut store, ConversationId::own(user), other));
        assert!(!store.settings(with_bob).unwrap().pinned);
        assert!(arrives(&mut store, ConversationId::own(user), device(9)));
        let stored = store.settings(with_bob).unwrap();
        assert_eq!((&stored.draft[..], stored.pinned), ("new", true));
        let sent = store.take_unsynced_settings().unwrap().unwrap().settings;
        assert_eq!((sent[0].draft.as_deref(), sent[0].pinned, sent.len()), (Some("new"), None, 1));
        // The message is on its way: one that arrives before it is stored comes before it.
        assert!(arrives(&mut store, ConversationId::own(user), device(9)));
        assert_eq!(store.settings(with_bob).unwrap().draft, "old");
    }
}
