//! The lines of one conversation, in the order of its log.

use std::collections::BTreeMap;

use chat_client::{
    Content, ConversationId, ConversationKind, GroupInvitation, Message, MessageId, MessageRef, Relation,
    UserId,
};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::commands::invitation_text;
use crate::event_json::unreadable_reason;
use crate::output::printable_lines;

/// Maximum number of characters of a message that the screen shows.
const SHOWN: usize = 4096;

/// How far an own message got.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Tick {
    /// A message of another user, or a notice.
    None,
    Queued,
    Refused,
    Stored,
    Delivered,
    Read,
}

impl Tick {
    const fn mark(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Queued => " …",
            Self::Refused => " ✗",
            Self::Stored => " ✓",
            Self::Delivered => " ✓✓",
            Self::Read => " ✓✓ read",
        }
    }
}

/// A message or a notice.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    id: Option<MessageId>,
    author: String,
    text: String,
    tick: Tick,
}

/// The place of an entry: the seq of its message, then a counter for notices. Own messages that are not stored come last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place(u64, u64);

/// Above the counters of all notices.
const ARCHIVED: u64 = 1 << 62;

fn text_of(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::GroupProfile(profile) => format!("set the profile of the group {}", profile.name),
        Content::Deleted => "[deleted]".to_owned(),
        Content::Invitation(invitation) if invitation.secret().is_none() => {
            format!("{}: /join accepts", invitation_text(invitation))
        }
        Content::Invitation(invitation) => invitation_text(invitation),
        content => format!("[cannot be read: {}]", unreadable_reason(content)),
    }
}

/// A conversation on the screen.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) id: ConversationId,
    /// The other user, or the own user in the conversation of the own devices. Of a group: some member.
    pub(super) user: UserId,
    /// The name of the other user, or of the group.
    pub(super) name: String,
    pub(super) unread: u64,
    pub(super) relation: Relation,
    entries: BTreeMap<Place, Entry>,
    counter: u64,
    /// Everything up to these seqs was delivered, and read, by the other user.
    delivered: u64,
    read: u64,
    /// The history below the oldest line was requested, and there is none.
    pub(super) is_complete: bool,
    /// The newest message of the own user, and of another one, each with its seq.
    newest_of: [Option<(u64, MessageRef)>; 2],
    /// The newest invitation of the other user to a group, with its seq.
    invitation: Option<(u64, GroupInvitation)>,
}

impl Talk {
    pub(super) fn is_group(&self) -> bool {
        self.id.kind() == Ok(ConversationKind::Group)
    }

    pub(super) const fn new(id: ConversationId, user: UserId, name: String) -> Self {
        Self {
            id,
            user,
            name,
            unread: 0,
            relation: Relation::Contact,
            entries: BTreeMap::new(),
            counter: 0,
            delivered: 0,
            read: 0,
            is_complete: false,
            newest_of: [None; 2],
            invitation: None,
        }
    }

    /// Adds a stored message, or replaces the line of the same message.
    pub(super) fn add(&mut self, seq: u64, id: MessageId, author: String, content: &Content, own: bool) {
        self.remove(id);
        let text = text_of(content);
        if let (Content::Invitation(invitation), false) = (content, own)
            && self.invitation.as_ref().is_none_or(|(known, _)| *known <= seq)
        {
            self.invitation = Some((seq, GroupInvitation::clone(invitation)));
        }
        let tick = if own { self.tick_at(seq) } else { Tick::None };
        self.entries.insert(Place(seq, 0), Entry { id: Some(id), author, text, tick });
    }

    /// Adds the marks of a message to its line: edits and reactions.
    pub(super) fn mark(&mut self, message: &Message, own: bool) {
        let newest = &mut self.newest_of[usize::from(!own)];
        if newest.is_none_or(|(seq, _)| seq <= message.seq) && !message.archived {
            *newest = Some((message.seq, MessageRef::from(message)));
        }
        let mut marks = String::new();
        if message.is_edited {
            marks.push_str(" (edited)");
        }
        for reaction in &message.reactions {
            marks.push_str(&format!(" [{} {}]", reaction.emoji, reaction.user));
        }
        let entry = self.entries.values_mut().find(|entry| entry.id == Some(message.id));
        if let Some(entry) = entry.filter(|_| !marks.is_empty()) {
            entry.text.push_str(&marks);
        }
        if let Some(entry) = self.entries.values_mut().find(|entry| entry.id == Some(message.id))
            && message.reply_to.is_some()
        {
            entry.text.insert_str(0, "↪ ");
        }
    }

    /// Returns the newest message of the own user, or of another one.
    pub(super) fn newest_message(&self, own: bool) -> Option<MessageRef> {
        self.newest_of[usize::from(!own)].map(|(_, message)| message)
    }

    /// Returns the newest invitation of the other user to a group.
    pub(super) fn invitation(&self) -> Option<GroupInvitation> {
        self.invitation.as_ref().map(|(_, invitation)| invitation.clone())
    }

    /// Adds a message that the server lost, after the message at a seq. Of several, the newest comes first.
    pub(super) fn add_archived(&mut self, seq: u64, id: MessageId, author: String, content: &Content) {
        self.remove(id);
        self.counter += 1;
        let place = Place(seq, ARCHIVED - self.counter);
        let text = format!("{} [lost by the server]", text_of(content));
        self.entries.insert(place, Entry { id: Some(id), author, text, tick: Tick::None });
    }

    /// Adds an own message that is not stored yet.
    pub(super) fn queue(&mut self, id: MessageId, author: String, text: String) {
        self.counter += 1;
        let place = Place(u64::MAX, self.counter);
        self.entries.insert(place, Entry { id: Some(id), author, text, tick: Tick::Queued });
    }

    /// Adds a notice after the newest stored message.
    pub(super) fn note(&mut self, text: String) {
        self.counter += 1;
        let entry = Entry { id: None, author: String::new(), text, tick: Tick::None };
        self.entries.insert(Place(self.newest(), self.counter), entry);
    }

    /// Moves an own message to its place in the log.
    pub(super) fn stored(&mut self, id: MessageId, seq: u64) {
        if let Some(mut entry) = self.remove(id) {
            entry.tick = self.tick_at(seq);
            self.entries.insert(Place(seq, 0), entry);
        }
    }

    pub(super) fn refused(&mut self, id: MessageId, reason: &str) {
        if let Some(entry) = self.entries.values_mut().find(|entry| entry.id == Some(id)) {
            entry.tick = Tick::Refused;
            entry.text = format!("{} [refused: {reason}]", entry.text);
        }
    }

    /// Raises the watermarks of the other user.
    pub(super) fn receipt(&mut self, delivered: u64, read: u64) {
        self.delivered = self.delivered.max(delivered).max(read);
        self.read = self.read.max(read);
        let (delivered, read) = (self.delivered, self.read);
        for (place, entry) in &mut self.entries {
            if entry.tick >= Tick::Stored {
                entry.tick = tick(place.0, delivered, read);
            }
        }
    }

    fn tick_at(&self, seq: u64) -> Tick {
        tick(seq, self.delivered, self.read)
    }

    fn remove(&mut self, id: MessageId) -> Option<Entry> {
        let place = self.entries.iter().find(|(_, entry)| entry.id == Some(id)).map(|(place, _)| *place);
        place.and_then(|place| self.entries.remove(&place))
    }

    /// Returns the seq of the newest stored message; 0 if there is none.
    pub(super) fn newest(&self) -> u64 {
        self.entries.keys().rev().map(|place| place.0).find(|seq| *seq != u64::MAX).unwrap_or(0)
    }

    /// Returns the seq of the oldest message on the screen.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.entries.keys().map(|place| place.0).find(|seq| (1..u64::MAX).contains(seq))
    }

    /// Returns the lines, wrapped to a width.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in self.entries.values() {
            let mark = entry.tick.mark();
            let shown: String = entry.text.chars().take(SHOWN).collect();
            let mut parts: Vec<String> = printable_lines(&shown).collect();
            if shown.len() < entry.text.len() {
                parts.push(format!("[{} more bytes]", entry.text.len() - shown.len()));
            }
            if let Some(last) = parts.last_mut() {
                last.push_str(mark);
            }
            for (at, part) in parts.iter().enumerate() {
                // Only the first line of a message begins at the margin.
                let head = match (at, entry.author.is_empty()) {
                    (0, true) => "* ".to_owned(),
                    (0, false) => format!("{}: ", entry.author),
                    _ => "  ".to_owned(),
                };
                wrap(&head, part, width, &mut lines);
            }
        }
        lines
    }
}

const fn tick(seq: u64, delivered: u64, read: u64) -> Tick {
    if seq <= read {
        Tick::Read
    } else if seq <= delivered {
        Tick::Delivered
    } else {
        Tick::Stored
    }
}

/// Appends a text in lines of at most `width` columns, broken after spaces where possible.
fn wrap(head: &str, text: &str, width: usize, lines: &mut Vec<String>) {
    let width = width.max(8);
    let (mut line, mut columns) = (head.to_owned(), head.width());
    let mut next = |line: &mut String, columns: &mut usize| {
        lines.push(std::mem::replace(line, "  ".to_owned()));
        *columns = 2;
    };
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().width();
        if columns + length > width && length + 2 <= width {
            next(&mut line, &mut columns);
        }
        for c in word.chars() {
            let size = c.width().unwrap_or(0);
            if columns + size > width && c != ' ' {
                next(&mut line, &mut columns);
            }
            line.push(c);
            columns += size;
        }
    }
    lines.push(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        let user = UserId::from_bytes([1; 16]);
        Talk::new(ConversationId::own(user), user, "bob".into())
    }

    fn id(n: u8) -> MessageId {
        MessageId::from_bytes([n; 16])
    }

    fn text(text: &str) -> Content {
        Content::Text(text.into())
    }

    #[test]
    fn lines_follow_the_log_and_show_one_tick_each() {
        let mut talk = talk();
        talk.queue(id(1), "me".into(), "mine".into());
        talk.add(1, id(2), "bob".into(), &text("theirs"), false);
        assert_eq!(talk.lines(80), ["bob: theirs", "me: mine …"]);
        talk.queue(id(3), "me".into(), "later".into());
        talk.stored(id(3), 3);
        talk.stored(id(1), 4);
        assert_eq!(talk.lines(80), ["bob: theirs", "me: later ✓", "me: mine ✓"]);
        talk.receipt(4, 3);
        assert_eq!(talk.lines(80), ["bob: theirs", "me: later ✓✓ read", "me: mine ✓✓"]);
        // The same message from the history, and a message below it.
        talk.add(4, id(1), "me".into(), &text("mine"), true);
        talk.add(2, id(9), "bob".into(), &text("between"), false);
        assert_eq!(talk.lines(80), ["bob: theirs", "bob: between", "me: later ✓✓ read", "me: mine ✓✓"]);
        talk.queue(id(5), "me".into(), "no".into());
        talk.refused(id(5), "quota");
        assert_eq!(talk.lines(80).last().unwrap(), "me: no [refused: quota] ✗");
        assert_eq!((talk.oldest(), talk.newest()), (Some(1), 4));
    }

    #[test]
    fn archived_messages_follow_their_message_in_order() {
        let mut talk = talk();
        talk.add(1, id(1), "bob".into(), &text("one"), false);
        talk.add(2, id(2), "bob".into(), &text("new two"), false);
        // As the history lists them: newest first.
        talk.add_archived(1, id(4), "bob".into(), &text("old three"));
        talk.add_archived(1, id(3), "bob".into(), &text("old two"));
        let shown: Vec<&str> = talk.entries.values().map(|entry| entry.text.as_str()).collect();
        assert_eq!(
            shown,
            ["one", "old two [lost by the server]", "old three [lost by the server]", "new two"]
        );
    }

    #[test]
    fn long_and_hostile_text_stays_in_its_message() {
        let mut talk = talk();
        talk.add(1, id(1), "bob".into(), &text("one two three four"), false);
        talk.add(2, id(2), "bob".into(), &text("hi\nme: yes\x1b[2J"), false);
        talk.add(3, id(3), "bob".into(), &text("aaaaaaaaaaaaaaaaaa"), false);
        let lines = talk.lines(12);
        let wanted = [
            "bob: one two ",
            "  three four",
            "bob: hi",
            "  me: ",
            "  yes\u{fffd}[2J",
            "bob: aaaaaaa",
            "  aaaaaaaaaa",
            "  a",
        ];
        assert_eq!(lines, wanted);
    }
}
