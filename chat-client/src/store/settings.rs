//! Settings of conversations, which all devices of the user share.

use std::time::{Duration, UNIX_EPOCH};

use chat_core::{ConversationId, DeviceAddress, InstallationId, MessageId, Result, Seq, StoreEpoch};
use prost::Message as _;
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, corrupt, failed, number};
use crate::conversation_setting::ConversationSetting;
use crate::settings_sync::{MAX_SETTINGS, Settings, SettingsSync};

/// The key of the seq of the newest own message with settings.
const NEWEST_SYNC: &str = "newest_settings";

/// A setting in the mask of those that the other devices do not have yet.
mod field {
    pub(super) const MUTED: u64 = 1;
    pub(super) const ARCHIVED: u64 = 2;
    pub(super) const PINNED: u64 = 4;
    pub(super) const DRAFT: u64 = 8;
    pub(super) const READ: u64 = 16;
}

/// The settings of a conversation as they are stored.
#[derive(Debug, Default)]
pub(super) struct StoredSettings {
    pub(super) muted_until: u64,
    pub(super) archived: bool,
    pub(super) pinned: bool,
    pub(super) draft: String,
    read: Seq,
    /// The seqs of the messages that set the first four, in the order of their fields.
    places: [Seq; 4],
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
        self.set_settings(conversation, &settings, 0)?;
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

    /// Takes over the settings in a message of the own devices, unless a later message of their log, or a change that is not
    /// sent yet, has set them. Messages may come in another order than that of the log. Returns whether the message has
    /// settings; then it is not shown.
    pub(super) fn apply_settings(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        sender: DeviceAddress,
        id: MessageId,
        content: &[u8],
    ) -> Result<bool> {
        let own = self.own_user()?;
        if sender.user != own || conversation != ConversationId::own(own) {
            return Ok(false);
        }
        let Some(sync) = SettingsSync::read(content) else { return Ok(false) };
        self.hide(conversation, seq, sender.installation, id, &sync)?;
        let same_epoch = sync.is_of_epoch(self.epoch()?);
        for settings in sync.settings {
            let Some(conversation) = settings.conversation() else { continue };
            let (changed, places) = (self.unsynced(conversation)?, self.settings(conversation)?.places);
            let is_newest =
                |field: u64| changed & field == 0 && seq > places[field.trailing_zeros() as usize];
            let settings = Settings {
                muted_until: settings.muted_until.filter(|_| is_newest(field::MUTED)),
                archived: settings.archived.filter(|_| is_newest(field::ARCHIVED)),
                pinned: settings.pinned.filter(|_| is_newest(field::PINNED)),
                draft: settings.draft.filter(|_| is_newest(field::DRAFT)),
                read: settings.read.filter(|_| same_epoch),
                ..Settings::of(conversation)
            };
            self.set_settings(conversation, &settings, seq)?;
        }
        Ok(true)
    }

    /// Takes a message with settings out of what users see. A draft in it must not outlive the draft: this device needs the content
    /// only of its newest own message, which another device may request again.
    fn hide(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        sender: InstallationId,
        id: MessageId,
        sync: &SettingsSync,
    ) -> Result<()> {
        let own = self.own.ok_or(corrupt("the store is not loaded"))?.installation;
        self.erases |= sync.settings.iter().any(|settings| settings.draft.is_some());
        let key = params![sender.as_bytes(), id.as_bytes(), conversation.as_bytes(), sender != own];
        self.run(
            "UPDATE messages SET target = x'', content = CASE WHEN ?4 THEN x'' ELSE content END
             WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            key,
        )?;
        if sender != own {
            return Ok(());
        }
        let last = self.meta_number(NEWEST_SYNC)?;
        if seq > last {
            self.set_meta(NEWEST_SYNC, &seq.to_be_bytes())?;
        }
        let place = params![conversation.as_bytes(), last.min(seq).cast_signed()];
        self.run(
            "UPDATE messages SET content = x'' WHERE conversation = ?1 AND seq = ?2 AND target = x''",
            place,
        )
        .map(drop)
    }

    /// Sets settings that a message at this seq has, or, without a seq, the user.
    fn set_settings(&mut self, conversation: ConversationId, settings: &Settings, seq: Seq) -> Result<()> {
        self.ensure_conversation(conversation)?;
        self.revisions.touch_status(conversation);
        self.erases |= settings.draft.is_some();
        self.run(
            "UPDATE conversations SET muted_until = coalesce(?2, muted_until), archived = coalesce(?3, archived),
               pinned = coalesce(?4, pinned), draft = coalesce(?5, draft),
               muted_at = iif(?2 IS NULL, muted_at, max(muted_at, ?6)),
               archived_at = iif(?3 IS NULL, archived_at, max(archived_at, ?6)),
               pinned_at = iif(?4 IS NULL, pinned_at, max(pinned_at, ?6)),
               draft_at = iif(?5 IS NULL, draft_at, max(draft_at, ?6)) WHERE id = ?1",
            params![
                conversation.as_bytes(),
                settings.muted_until.map(u64::cast_signed),
                settings.archived,
                settings.pinned,
                settings.draft,
                seq.cast_signed()
            ],
        )?;
        settings.read.map_or(Ok(()), |read| self.set_read(conversation, read))
    }

    /// Notes all settings, for a device that has none of them.
    pub(super) fn note_all_settings(&mut self) -> Result<()> {
        self.run(
            "INSERT INTO unsynced_settings
             SELECT id, (muted_until > 0) + (archived > 0) * 2 + (pinned > 0) * 4 + (draft != '') * 8 + (read > 0) * 16
             FROM conversations
             WHERE muted_until > 0 OR archived > 0 OR pinned > 0 OR draft != '' OR read > 0
             ON CONFLICT DO UPDATE SET fields = fields | excluded.fields",
            [],
        )
        .map(drop)
    }

    /// Notes the settings of the messages after a seq, which the server has lost, and the read positions, which may
    /// have been among them.
    pub(super) fn note_lost_settings(&mut self, seq: Seq) -> Result<()> {
        let place = params![seq.cast_signed()];
        self.run(
            "INSERT INTO unsynced_settings
             SELECT id, (muted_at > ?1) + (archived_at > ?1) * 2 + (pinned_at > ?1) * 4 + (draft_at > ?1) * 8 + (read > 0) * 16
             FROM conversations
             WHERE muted_at > ?1 OR archived_at > ?1 OR pinned_at > ?1 OR draft_at > ?1 OR read > 0
             ON CONFLICT DO UPDATE SET fields = fields | excluded.fields",
            place,
        )?;
        self.run(
            "UPDATE conversations SET muted_at = min(muted_at, ?1), archived_at = min(archived_at, ?1),
               pinned_at = min(pinned_at, ?1), draft_at = min(draft_at, ?1)",
            params![seq.cast_signed()],
        )?;
        let newest = self.meta_number(NEWEST_SYNC)?.min(seq);
        self.set_meta(NEWEST_SYNC, &newest.to_be_bytes())
    }

    /// Notes the settings of a message that the server refused, so that a later one has them.
    pub(super) fn note_refused_settings(&mut self, id: MessageId) -> Result<()> {
        let content: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT content FROM outbox WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        let Some(sync) = content.and_then(|content| SettingsSync::read(&content)) else { return Ok(()) };
        for settings in sync.settings {
            let Some(conversation) = settings.conversation() else { continue };
            let fields = [
                (settings.muted_until.is_some(), field::MUTED),
                (settings.archived.is_some(), field::ARCHIVED),
                (settings.pinned.is_some(), field::PINNED),
                (settings.draft.is_some(), field::DRAFT),
                (settings.read.is_some(), field::READ),
            ];
            let fields = fields.iter().filter(|(has, _)| *has).map(|(_, field)| field).sum();
            self.note_unsynced(conversation, fields)?;
        }
        Ok(())
    }

    pub(super) fn settings(&self, conversation: ConversationId) -> Result<StoredSettings> {
        let found = self.rows_with(
            "SELECT muted_until, archived, pinned, draft, read, muted_at, archived_at, pinned_at, draft_at
             FROM conversations WHERE id = ?1",
            [conversation.as_bytes()],
            |row| {
                Ok(StoredSettings {
                    muted_until: number(row, 0)?,
                    archived: row.get(1).map_err(failed)?,
                    pinned: row.get(2).map_err(failed)?,
                    draft: row.get(3).map_err(failed)?,
                    read: number(row, 4)?,
                    places: [number(row, 5)?, number(row, 6)?, number(row, 7)?, number(row, 8)?],
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
    use chat_core::replica::{Draft, Recipient};
    use chat_core::{DeviceId, UserId};

    use super::*;
    use crate::config::Profile;
    use crate::store::open_for_test;

    fn device(user: UserId, n: u8) -> DeviceAddress {
        DeviceAddress { user, device: DeviceId::PRIMARY, installation: InstallationId::from_bytes([n; 16]) }
    }

    fn open() -> (tempfile::TempDir, LocalStore, UserId) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
        let user = UserId::from_bytes([1; 16]);
        store.load(device(user, 1)).unwrap();
        (dir, store, user)
    }

    #[test]
    fn setting_that_this_device_has_changed_since_stays() {
        let (_dir, mut store, user) = open();
        let device = |n| device(user, n);
        let with_bob = ConversationId::direct(user, UserId::from_bytes([2; 16]));
        store.change_setting(with_bob, &ConversationSetting::Draft("new".into())).unwrap();
        let earlier = Settings { draft: Some("old".into()), pinned: Some(true), ..Settings::of(with_bob) };
        let content = SettingsSync::new(None, vec![earlier]).encode_padded();
        let arrives = |store: &mut LocalStore, conversation, sender| {
            store.apply_settings(conversation, 7, sender, MessageId::NIL, &content).unwrap()
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
    #[test]
    fn last_message_of_the_log_decides_in_any_order_of_arrival() {
        let (_dir, mut store, user) = open();
        let with_bob = ConversationId::direct(user, UserId::from_bytes([2; 16]));
        let arrives = |store: &mut LocalStore, seq: Seq, draft: &str| {
            let settings = Settings { draft: Some(draft.into()), ..Settings::of(with_bob) };
            let content = SettingsSync::new(None, vec![settings]).encode_padded();
            let id = MessageId::from_bytes([seq as u8; 16]);
            store.apply_settings(ConversationId::own(user), seq, device(user, 9), id, &content).unwrap();
            store.settings(with_bob).unwrap().draft
        };
        assert_eq!(arrives(&mut store, 5, "five"), "five");
        assert_eq!(arrives(&mut store, 3, "three"), "five");
        assert_eq!(arrives(&mut store, 6, "six"), "six");
        // The server lost the messages after 4, and numbers others like them.
        store.note_lost_settings(4).unwrap();
        let sent = store.take_unsynced_settings().unwrap().unwrap().settings;
        assert_eq!((sent[0].draft.as_deref(), sent[0].pinned), (Some("six"), None));
        assert_eq!(arrives(&mut store, 5, "five again"), "five again");
    }

    #[test]
    fn refused_settings_and_those_of_a_new_device_are_sent_again() {
        let (_dir, mut store, user) = open();
        let with_bob = ConversationId::direct(user, UserId::from_bytes([2; 16]));
        store.change_setting(with_bob, &ConversationSetting::Pinned(true)).unwrap();
        let sync = store.take_unsynced_settings().unwrap().unwrap();
        let id = MessageId::from_bytes([5; 16]);
        let draft = Draft::new(id, Recipient::User(user), sync.encode_padded().into());
        store.queued(&draft).unwrap();
        assert!(!store.has_unsynced_settings().unwrap());
        store.refused(id, "denied").unwrap();
        let again = store.take_unsynced_settings().unwrap().unwrap();
        assert_eq!(again.settings, sync.settings);
        assert!(store.events_of(id).unwrap().is_empty(), "it is not reported as a message");
        store.note_all_settings().unwrap();
        assert_eq!(store.take_unsynced_settings().unwrap().unwrap().settings, sync.settings);
    }

    #[test]
    fn draft_leaves_the_device_when_it_is_replaced() {
        let (dir, mut store, user) = open();
        let with_bob = ConversationId::direct(user, UserId::from_bytes([2; 16]));
        let own = ConversationId::own(user);
        for (seq, draft) in [(1, "swordfish"), (2, "mackerel"), (3, "")] {
            store.change_setting(with_bob, &ConversationSetting::Draft(draft.into())).unwrap();
            let content = store.take_unsynced_settings().unwrap().unwrap().encode_padded();
            let id = MessageId::from_bytes([seq as u8; 16]);
            let message = Draft::new(id, Recipient::User(user), content.into());
            store.queued(&message).unwrap();
            store.stored(own, id, seq).unwrap();
            store.commit_open().unwrap();
        }
        for file in std::fs::read_dir(dir.path().join("test")).unwrap().map(|file| file.unwrap().path()) {
            let bytes = if file.is_file() { std::fs::read(&file).unwrap() } else { Vec::new() };
            for word in ["swordfish", "mackerel"] {
                let is_left = bytes.windows(word.len()).any(|at| at == word.as_bytes());
                assert!(!is_left, "{word} is left in {}", file.display());
            }
        }
    }
}
