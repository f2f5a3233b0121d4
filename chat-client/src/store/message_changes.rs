//! Edits, deletions and reactions: messages that change an earlier one. They stay in the store, hidden, with their target.

use chat_core::roster::Role;
use chat_core::{ConversationId, DeviceAddress, MessageId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::events::{EventKind, EventRow};
use super::{LocalStore, blob, failed};
use crate::content::{DecodedMessage, decode_message, encode_deleted};
use crate::message::{Content, MessageRef, Reaction};
use crate::message_change::MessageChange;

/// The effect of later messages on a message.
#[derive(Debug, Default)]
pub(super) struct AppliedChanges {
    /// The newest text, if the author replaced it.
    pub text: Option<String>,
    pub reactions: Vec<Reaction>,
}

/// A message that changes another one: seq, user, change and content.
pub(super) type ChangeRow = (i64, UserId, MessageChange, Content);

/// The target of a message that changes none, although it says so: its sender may not do that.
pub(super) const NO_TARGET: &[u8] = &[];

fn key(target: &MessageRef) -> Vec<u8> {
    [target.user.as_bytes().as_slice(), target.id.as_bytes().as_slice()].concat()
}

fn read_target(conversation: ConversationId, target: Option<Vec<u8>>) -> Result<Option<MessageRef>> {
    let Some(target) = target.filter(|target| target.len() == 32) else { return Ok(None) };
    let (user, id) = target.split_at(16);
    Ok(Some(MessageRef { conversation, user: UserId::parse(user)?, id: MessageId::parse(id)? }))
}

impl LocalStore {
    /// Applies a message of the store to others: its change, if it makes one, or a deletion that came before it. Returns
    /// whether its sender may make the change; `None` if it is a message of its own.
    pub(super) fn apply_message(
        &mut self,
        conversation: ConversationId,
        sender: DeviceAddress,
        id: MessageId,
        message: &DecodedMessage,
    ) -> Result<Option<bool>> {
        if let Some(timer_ms) = message.timer_ms() {
            return self.apply_timer(conversation, sender, id, timer_ms);
        }
        self.note_unsupported(conversation, sender.installation, id, message)?;
        let Some((target, change)) = message.change.clone() else {
            let text = message.content.text();
            let message = MessageRef { conversation, user: sender.user, id };
            let changes = self.changes_to(&message)?;
            if changes.is_empty() {
                self.index_as(&message, text)?;
                return Ok(None);
            }
            if changes.iter().any(|(_, _, change, _)| *change == MessageChange::Deleted) {
                self.erase_deleted(&message)?;
            }
            self.index(&message)?;
            return Ok(None);
        };
        let may = self.may_change(sender.user, &target, &change)?;
        let target_key = if may { key(&target) } else { NO_TARGET.to_vec() };
        self.run(
            "UPDATE messages SET target = ?4 WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            params![sender.installation.as_bytes(), id.as_bytes(), conversation.as_bytes(), target_key],
        )?;
        if may && (change == MessageChange::Deleted || self.is_deleted(&target)?) {
            self.erase_deleted(&target)?;
        }
        if may && !matches!(change, MessageChange::Reacted { .. }) {
            self.index(&target)?;
        }
        Ok(Some(may))
    }

    /// Applies a message, and adds the event of its change. Returns whether it is a change, also one that has no effect.
    pub(super) fn add_change(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        sender: DeviceAddress,
        id: MessageId,
        message: &DecodedMessage,
    ) -> Result<bool> {
        let applied = self.apply_message(conversation, sender, id, message)?;
        if applied == Some(true) {
            let event = EventRow::of_message(EventKind::MessageChanged, conversation, seq, sender, id);
            self.add_event(None, event)?;
        }
        Ok(applied.is_some())
    }

    /// Returns whether a user may change a message: only its author edits it, and the author or an admin of the group
    /// deletes it.
    fn may_change(&self, user: UserId, target: &MessageRef, change: &MessageChange) -> Result<bool> {
        let is_admin = || {
            let group = target.conversation;
            let roster = if group.has_roster() { self.roster(group)? } else { return Ok(false) };
            Ok(roster.member(user).is_some_and(|member| member.role >= Role::Admin))
        };
        match change {
            MessageChange::Reacted { .. } => Ok(true),
            MessageChange::Edited => Ok(user == target.user),
            MessageChange::Deleted if user == target.user => Ok(true),
            MessageChange::Deleted => is_admin(),
        }
    }

    /// Erases the content of a deleted message, of its edits and of the reactions to it. A change itself cannot be deleted.
    fn erase_deleted(&mut self, target: &MessageRef) -> Result<()> {
        let conversation = target.conversation.as_bytes();
        self.erases = true;
        self.run(
            "UPDATE messages SET content = ?4, body_key = NULL, unasked = 0
             WHERE conversation = ?1 AND user = ?2 AND message_id = ?3 AND content IS NOT x'' AND target IS NULL",
            params![conversation, target.user.as_bytes(), target.id.as_bytes(), encode_deleted()],
        )?;
        for (seq, _, change, _) in self.changes_to(target)? {
            if change != MessageChange::Deleted {
                self.run(
                    "UPDATE messages SET content = x'', body_key = NULL, unasked = 0 WHERE conversation = ?1 AND seq = ?2",
                    params![conversation, seq],
                )?;
            }
        }
        Ok(())
    }

    /// Returns whether this device has a message, and the message is not deleted or cleared.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn has_message(&self, message: &MessageRef) -> Result<bool> {
        let content: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached(
                "SELECT content FROM messages WHERE conversation = ?1 AND user = ?2 AND message_id = ?3 AND target IS NULL
                   AND group_action IS NULL",
            )
            .and_then(|mut s| {
                let key = params![
                    message.conversation.as_bytes(),
                    message.user.as_bytes(),
                    message.id.as_bytes()
                ];
                s.query_row(key, |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        let is_gone =
            |content: Vec<u8>| matches!(Content::decode(&content), Content::Deleted | Content::Cleared);
        Ok(content.is_some_and(|content| !content.is_some_and(is_gone)))
    }

    /// Returns the target of a message.
    pub(super) fn target_of(
        &self,
        conversation: ConversationId,
        installation: &[u8],
        id: &[u8],
    ) -> Result<Option<MessageRef>> {
        read_target(conversation, self.column_of("target", conversation, installation, id)?)
    }

    /// Returns the target of the message at a seq.
    pub(super) fn target_at(&self, conversation: ConversationId, seq: Seq) -> Result<Option<MessageRef>> {
        let target: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached("SELECT target FROM messages WHERE conversation = ?1 AND seq = ?2")
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), seq.cast_signed()], |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        read_target(conversation, target.flatten())
    }

    fn is_deleted(&self, target: &MessageRef) -> Result<bool> {
        Ok(self.changes_to(target)?.iter().any(|(_, _, change, _)| *change == MessageChange::Deleted))
    }

    /// Returns what a message became by edits and reactions, in the order of the log.
    pub(super) fn changes_of(&self, target: &MessageRef) -> Result<AppliedChanges> {
        let mut applied = AppliedChanges::default();
        let mut reactions: Vec<(UserId, String)> = Vec::new();
        for (_, user, change, content) in self.changes_to(target)? {
            match change {
                MessageChange::Edited => {
                    if let Content::Text(text) = content {
                        applied.text = Some(text);
                    }
                }
                MessageChange::Reacted { emoji, removed } => {
                    reactions.retain(|known| *known != (user, emoji.clone()));
                    if !removed {
                        reactions.push((user, emoji));
                    }
                }
                MessageChange::Deleted => {}
            }
        }
        let reactions =
            reactions.into_iter().map(|(user, emoji)| Ok(Reaction { user: self.user(user)?, emoji }));
        applied.reactions = reactions.collect::<Result<_>>()?;
        Ok(applied)
    }

    /// Returns the messages that change another one, in the order of the log.
    pub(super) fn changes_to(&self, target: &MessageRef) -> Result<Vec<ChangeRow>> {
        let conversation = target.conversation;
        let rows = self.rows_with(
            // The planner prefers the primary key, and reads the whole conversation for each message.
            "SELECT seq, user, content FROM messages INDEXED BY messages_by_target
             WHERE conversation = ?1 AND target = ?2 ORDER BY seq",
            params![conversation.as_bytes(), key(target)],
            |row| {
                let content: Option<Vec<u8>> = row.get(2).map_err(failed)?;
                Ok((row.get::<_, i64>(0).map_err(failed)?, UserId::parse(&blob(row, 1)?)?, content))
            },
        )?;
        let changes = rows.into_iter().filter_map(|(seq, user, content)| {
            let DecodedMessage { content, change, .. } = decode_message(conversation, &content?);
            Some((seq, user, change?.1, content))
        });
        Ok(changes.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use chat_core::envelope::{InboxRow, RowContent};
    use chat_core::replica::{Change, Changes, Opened, Unreadable};
    use chat_core::{DeviceId, InstallationId};

    use super::*;
    use crate::config::Profile;
    use crate::content::encode_request;
    use crate::event::Event;
    use crate::send::SendRequest;
    use crate::store::{message_for_test, open_for_test};

    fn device(n: u8) -> DeviceAddress {
        let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
        DeviceAddress { user, device: DeviceId::PRIMARY, installation }
    }

    fn id(seq: u64) -> MessageId {
        MessageId::from_bytes([seq as u8; 16])
    }

    /// A store of user 1 that receives the messages of a conversation with user 2.
    struct World {
        store: LocalStore,
        conversation: ConversationId,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
            store.load(device(1)).unwrap();
            let conversation = ConversationId::direct(device(1).user, device(2).user);
            Self { store, conversation, dir }
        }

        fn target(&self, author: u8, seq: u64) -> MessageRef {
            MessageRef { conversation: self.conversation, user: device(author).user, id: id(seq) }
        }

        /// The message at a seq arrives. Without a request this device cannot read it.
        fn arrives(&mut self, seq: u64, sender: u8, request: Option<SendRequest>) {
            let message = message_for_test(id(seq), device(sender), seq);
            let content = RowContent::Message { message: Arc::new(message), sealed: Bytes::new() };
            let conversation = self.conversation;
            let row = InboxRow { conversation, seq, time_us: seq, joined: seq == 1, content };
            let content = request.map(|request| Bytes::from(encode_request(&request, 0)));
            let unreadable = Opened::unreadable(Unreadable::NoSession);
            let opened = Opened { content: content.ok_or(Unreadable::NoSession), ..unreadable };
            let list = vec![Change::Received(Box::new(row), opened)];
            self.store.commit(Changes { list, generation: seq }).unwrap();
        }

        fn recovers(&mut self, seq: u64, sender: u8, request: &SendRequest) {
            let content = encode_request(request, 0);
            self.store.recovered(device(sender), self.conversation, id(seq), &content).unwrap();
        }

        fn shown(&self) -> Vec<Content> {
            let shown = self.store.history(self.conversation, None, 10).unwrap();
            shown.iter().rev().map(|message| message.content().clone()).collect()
        }

        fn found(&self, search: &str) -> Vec<u64> {
            let found = self.store.search(search, None, 100).unwrap();
            found.iter().map(|message| message.seq).collect()
        }

        fn changes(&self) -> usize {
            let events = self.store.events(0, 100).unwrap();
            events.iter().filter(|record| matches!(record.event, Event::MessageChanged { .. })).count()
        }
    }

    fn text(text: &str) -> Content {
        Content::Text(text.to_owned())
    }

    fn edit(target: MessageRef, text: &str) -> Option<SendRequest> {
        Some(SendRequest::change(target, MessageChange::Edited, text.into()))
    }

    fn delete(target: MessageRef) -> Option<SendRequest> {
        Some(SendRequest::change(target, MessageChange::Deleted, String::new()))
    }

    #[test]
    fn forged_change_has_no_effect_and_is_not_shown() {
        let mut world = World::new();
        world.arrives(1, 1, Some(SendRequest::text("mine")));
        let target = world.target(1, 1);
        world.arrives(2, 2, edit(target, "theirs"));
        world.arrives(3, 2, delete(target));
        assert_eq!((world.shown(), world.changes()), (vec![text("mine")], 0));
        // The author named in the target is another one than that of the message.
        let misnamed = MessageRef { user: device(2).user, ..target };
        world.arrives(4, 2, edit(misnamed, "theirs"));
        world.arrives(5, 2, delete(misnamed));
        assert_eq!(world.shown(), [text("mine")]);
    }

    #[test]
    fn change_waits_for_the_content_of_its_target() {
        let mut world = World::new();
        let target = |world: &World, seq| world.target(2, seq);
        world.arrives(1, 2, None);
        world.arrives(2, 2, edit(target(&world, 1), "edited"));
        world.recovers(1, 2, &SendRequest::text("first"));
        assert_eq!(world.shown(), [text("edited")]);
        // The deletion of a message that cannot be read.
        world.arrives(3, 2, None);
        world.arrives(4, 2, delete(target(&world, 3)));
        assert_eq!(world.shown()[1], Content::Deleted);
        world.recovers(3, 2, &SendRequest::text("secret"));
        assert_eq!(world.shown()[1], Content::Deleted, "its content does not come back");
        // A deletion that arrives before its target, which another data set of the server numbers later.
        world.arrives(5, 2, delete(target(&world, 6)));
        world.arrives(6, 2, Some(SendRequest::text("late")));
        assert_eq!(world.shown()[2], Content::Deleted);
        // A change that is recovered itself.
        world.arrives(7, 2, None);
        world.recovers(7, 2, &edit(target(&world, 1), "edited again").unwrap());
        assert_eq!(world.shown(), [text("edited again"), Content::Deleted, Content::Deleted]);
    }

    #[test]
    fn deletion_erases_every_text_of_a_message() {
        let mut world = World::new();
        let target = world.target(2, 1);
        world.arrives(1, 2, Some(SendRequest::text("swordfish")));
        world.arrives(2, 2, edit(target, "mackerel"));
        world.arrives(3, 2, delete(target));
        world.arrives(4, 2, edit(target, "halibut"));
        assert_eq!((world.shown(), world.changes()), (vec![Content::Deleted], 3));
        assert!(["swordfish", "mackerel", "halibut"].iter().all(|word| world.found(word).is_empty()));
        let left = world.store.rows("SELECT content FROM messages", |row| blob(row, 0)).unwrap();
        let contains = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|at| at == word.as_bytes());
        let words = ["swordfish", "mackerel", "halibut"];
        assert!(words.iter().all(|word| !left.iter().any(|content| contains(content, word))));
        let files = std::fs::read_dir(world.dir.path().join("test")).unwrap();
        for file in files.map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(words.iter().all(|word| !contains(&bytes, word)), "{}", file.display());
        }
    }
    #[test]
    fn search_finds_words_their_starts_and_scripts_without_spaces() {
        let mut world = World::new();
        for (seq, text) in [
            (1, "Der Café ist zu"),
            (2, "我明天去北京"),
            (3, "お茶をのみます"),
            (4, "ไปตลาดพรุ่งนี้"),
            (5, "Привет, Мир!"),
            (6, "안녕하세요"),
            (7, "naïve OK"),
        ] {
            world.arrives(seq, 2, Some(SendRequest::text(text)));
        }
        for (search, seqs) in [
            ("cafe", &[1][..]),
            ("CAF", &[1]),
            ("zu caf", &[1]),
            ("afe", &[]),
            ("北京", &[2]),
            ("明天", &[2]),
            ("京北", &[]),
            ("のみ", &[3]),
            ("ตลาด", &[4]),
            ("мир", &[5]),
            ("하세", &[6]),
            ("ok", &[7]),
            ("i", &[1]),
            ("zz", &[]),
            ("\"", &[]),
            ("cafe\" OR text:ok", &[]),
        ] {
            assert_eq!(world.found(search), seqs, "{search}");
        }
    }

    #[test]
    fn search_follows_changes_recovered_and_cleared_messages() {
        let mut world = World::new();
        let target = world.target(2, 1);
        world.arrives(1, 2, Some(SendRequest::text("at seven")));
        world.arrives(2, 2, None);
        world.arrives(3, 2, edit(target, "at eight"));
        assert_eq!((world.found("seven"), world.found("eight")), (vec![], vec![1]));
        world.recovers(2, 2, &SendRequest::text("eight it is"));
        assert_eq!(world.found("eight"), [2, 1], "the one that became readable last is first");
        let other = ConversationId::direct(device(1).user, device(3).user);
        assert!(world.store.search("eight", Some(other), 10).unwrap().is_empty());
        assert_eq!(world.store.search("eight", Some(world.conversation), 1).unwrap().len(), 1);
        world.arrives(4, 2, delete(target));
        assert_eq!(world.found("eight"), [2]);
        world.store.clear_history(world.conversation, 4).unwrap();
        assert!(world.found("eight").is_empty());
        let rows = world.store.rows("SELECT id FROM search_rows", |row| row.get::<_, i64>(0).map_err(failed));
        assert!(rows.unwrap().is_empty());
    }

    /// Lets a message look as if an earlier version of the client had received it, which did not know its kind.
    fn make_unknown(world: &mut World, seq: u64, sender: u8) {
        let (conversation, sender) = (world.conversation, device(sender));
        world
            .store
            .run(
                "INSERT INTO unsupported_messages VALUES (?1, ?2, ?3)",
                params![conversation.as_bytes(), sender.installation.as_bytes(), id(seq).as_bytes()],
            )
            .unwrap();
    }

    #[test]
    fn message_of_a_later_version_is_read_after_an_update() {
        let mut world = World::new();
        let target = world.target(2, 1);
        world.arrives(1, 2, Some(SendRequest::text("at seven")));
        let content = |request: Option<SendRequest>| encode_request(&request.unwrap(), 0);
        // The earlier version kept the edit and the text as placeholders.
        for (seq, content) in
            [(2, content(edit(target, "at eight"))), (3, content(Some(SendRequest::text("bring cake"))))]
        {
            world.arrives(seq, 2, Some(SendRequest::text("")));
            let key = params![world.conversation.as_bytes(), seq.cast_signed(), content];
            world
                .store
                .run("UPDATE messages SET content = ?3 WHERE conversation = ?1 AND seq = ?2", key)
                .unwrap();
            make_unknown(&mut world, seq, 2);
        }
        let events = world.store.last_event().unwrap();
        world.store.load(device(1)).unwrap();
        assert_eq!(world.shown()[0], text("at seven"), "the same version does not read them again");
        world.store.remove_meta("message_kinds").unwrap();
        world.store.load(device(1)).unwrap();
        assert_eq!(
            (world.shown(), world.found("cake")),
            (vec![text("at eight"), text("bring cake")], vec![3])
        );
        let events = world.store.events(events, 100).unwrap();
        let kinds = events.iter().map(|record| match &record.event {
            Event::MessageChanged { .. } => "changed",
            Event::Recovered(message) => message.text().unwrap(),
            _ => "other",
        });
        assert_eq!(kinds.collect::<Vec<_>>(), ["changed", "bring cake"]);
        world.store.remove_meta("message_kinds").unwrap();
        world.store.load(device(1)).unwrap();
        assert_eq!(world.store.events(events.last().unwrap().number.unwrap(), 100), Ok(vec![]), "each once");
    }

    #[test]
    fn message_that_no_version_knows_stays_a_placeholder() {
        let mut world = World::new();
        let unknown = chat_core::padding::pad(vec![0xa2, 0x06, 1, 7]);
        world.arrives(1, 2, None);
        world.store.recovered(device(2), world.conversation, id(1), &unknown).unwrap();
        for _ in 0..2 {
            assert_eq!(world.shown(), [Content::Unsupported]);
            let kept = world.store.rows("SELECT message_id FROM unsupported_messages", |row| blob(row, 0));
            assert_eq!(kept, Ok(vec![id(1).as_bytes().to_vec()]));
            world.store.remove_meta("message_kinds").unwrap();
            world.store.load(device(1)).unwrap();
        }
    }

    #[test]
    fn index_of_an_earlier_version_is_built_again() {
        let mut world = World::new();
        world.arrives(1, 2, Some(SendRequest::text("at seven")));
        world.store.remove_meta("search_version").unwrap();
        world.store.run("DELETE FROM search", []).unwrap();
        assert!(world.found("seven").is_empty());
        world.store.load(device(1)).unwrap();
        assert_eq!(world.found("seven"), [1]);
    }
}
