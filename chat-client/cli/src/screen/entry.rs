//! The entries of the open conversation, as lines of the terminal.

use chat_client::{Content, Message, MessageId, Status, TimelineItem};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::commands::invitation_text;
use crate::event_json::unreadable_reason;
use crate::group_change::change_text;
use crate::output::printable_lines;
use crate::timer::timer_text;

/// Maximum number of characters of a message that the screen shows.
const SHOWN: usize = 4096;

/// A message, a change of the group, or a notice of the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// The message; `None` for a notice.
    pub(super) id: Option<MessageId>,
    /// Empty if the text names it.
    author: String,
    text: String,
    /// The progress of an own message.
    mark: String,
}

impl Entry {
    /// Returns a notice of the client.
    pub(super) const fn notice(text: String) -> Self {
        Self { id: None, author: String::new(), text, mark: String::new() }
    }

    /// Returns the entry of an item of a timeline.
    pub(super) fn of(item: &TimelineItem) -> Self {
        let message = &item.message;
        let (author, text) = match message.content() {
            Content::GroupChanged { action, users, profile } => {
                let change = change_text(action, users, profile.as_deref());
                (String::new(), format!("{} {change}", message.sender))
            }
            content => (message.sender.to_string(), with_marks(message, text_of(content))),
        };
        let mark = item.status.as_ref().map(mark_of).unwrap_or_default();
        Self { id: Some(message.id), author, text, mark }
    }

    /// Appends the lines of the entry, wrapped to a width.
    fn wrap_to(&self, width: usize, lines: &mut Vec<String>) {
        let shown: String = self.text.chars().take(SHOWN).collect();
        let mut parts: Vec<String> = printable_lines(&shown).collect();
        if shown.len() < self.text.len() {
            parts.push(format!("[{} more bytes]", self.text.len() - shown.len()));
        }
        if let Some(last) = parts.last_mut() {
            last.push_str(&self.mark);
        }
        for (at, part) in parts.iter().enumerate() {
            // Only the first line of a message begins at the margin.
            let head = match (at, self.author.is_empty()) {
                (0, true) => "* ".to_owned(),
                (0, false) => format!("{}: ", self.author),
                _ => "  ".to_owned(),
            };
            wrap(&head, part, width, lines);
        }
    }
}

/// Returns the lines of entries, wrapped to a width.
pub(super) fn lines(entries: &[Entry], width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    entries.iter().for_each(|entry| entry.wrap_to(width, &mut lines));
    lines
}

fn text_of(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Deleted => "[deleted]".to_owned(),
        Content::Invitation(invitation) if invitation.secret().is_none() => {
            format!("{}: /join accepts", invitation_text(invitation))
        }
        Content::Invitation(invitation) => invitation_text(invitation),
        Content::DisappearingTimer(after) => timer_text(*after),
        content => format!("[cannot be read: {}]", unreadable_reason(content)),
    }
}

/// Adds to a text that its message is a reply, was forwarded, edited or lost by the server, and the reactions to it.
fn with_marks(message: &Message, mut text: String) -> String {
    if message.is_forwarded {
        text.insert_str(0, "(forwarded) ");
    }
    if message.reply_to.is_some() {
        text.insert_str(0, "↪ ");
    }
    if message.is_edited {
        text.push_str(" (edited)");
    }
    if message.archived {
        text.push_str(" [lost by the server]");
    }
    for reaction in &message.reactions {
        text.push_str(&format!(" [{} {}]", reaction.emoji, reaction.user));
    }
    text
}

/// Returns the mark of an own message: how far it got. In a group, how many members have it.
fn mark_of(status: &Status) -> String {
    match status {
        Status::Queued => " …".to_owned(),
        Status::Refused(reason) => format!(" ✗ refused: {}, /retry or /discard", reason.name()),
        Status::Stored { read, .. } if read.of > 0 && read.is_complete() => " ✓✓ read".to_owned(),
        Status::Stored { delivered, read, .. } if delivered.of > 1 && delivered.reached > 0 => {
            format!(" ✓✓ {} of {}, read by {}", delivered.reached, delivered.of, read.reached)
        }
        Status::Stored { delivered, .. } if delivered.reached > 0 => " ✓✓".to_owned(),
        Status::Stored { .. } => " ✓".to_owned(),
        _ => String::new(),
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
pub(super) mod tests {
    use super::*;

    /// Returns the entry of a message of bob.
    pub(in super::super) fn entry(n: u8, text: &str) -> Entry {
        Entry { id: Some(MessageId::from_bytes([n; 16])), author: "bob".into(), ..Entry::notice(text.into()) }
    }

    #[test]
    fn long_and_hostile_text_stays_in_its_message() {
        let entries = [
            entry(1, "one two three four"),
            entry(2, "hi\nme: yes\x1b[2J"),
            entry(3, "aaaaaaaaaaaaaaaaaa"),
            Entry::notice("bob left".into()),
        ];
        let wanted = [
            "bob: one two ",
            "  three four",
            "bob: hi",
            "  me: ",
            "  yes\u{fffd}[2J",
            "bob: aaaaaaa",
            "  aaaaaaaaaa",
            "  a",
            "* bob left",
        ];
        assert_eq!(lines(&entries, 12), wanted);
    }

    #[test]
    fn mark_follows_the_last_line_and_very_long_text_is_cut() {
        let own = Entry { mark: " ✓".into(), ..entry(1, "two\nlines") };
        assert_eq!(lines(&[own], 80), ["bob: two", "  lines ✓"]);
        let long = lines(&[entry(1, &"x".repeat(SHOWN + 5))], usize::MAX);
        assert_eq!((long.len(), long[1].as_str()), (2, "  [5 more bytes]"));
    }
}
