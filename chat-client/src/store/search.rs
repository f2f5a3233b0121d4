//! The index for full-text search. It holds the text that users see, in words.

use chat_core::{ConversationId, MessageId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, failed};
use crate::message::{Message, MessageRef};

/// The version of the index. An index of another version is built again.
const VERSION: u64 = 1;
const VERSION_KEY: &str = "search_version";

/// Whether a character belongs to a script that does not separate words by spaces. Each such character is a word of the index.
/// Hangul is one of them, because endings follow a word without a space.
const fn is_word_alone(c: char) -> bool {
    matches!(c as u32,
        0x0e00..=0x0fff // Thai, Lao, Tibetan
        | 0x1000..=0x109f | 0x1780..=0x17ff // Myanmar, Khmer
        | 0x3040..=0x30ff | 0x31f0..=0x31ff // Hiragana, Katakana
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff // Han
        | 0xac00..=0xd7af) // Hangul
}

/// Returns a text with spaces around the characters that are words alone.
fn in_words(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_word_alone(c) {
            words.extend([' ', c, ' ']);
        } else {
            words.push(c);
        }
    }
    words
}

/// Returns the query of the index for a search: every word of it, at its place as a whole, or as the start of a word. `None` if it has no words.
fn query_of(search: &str) -> Option<String> {
    let words = search.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric));
    let phrases: Vec<String> = words
        .map(|word| {
            let is_start = !word.ends_with(is_word_alone);
            let phrase = in_words(word).replace('"', " ");
            format!("\"{}\"{}", phrase.trim(), if is_start { " *" } else { "" })
        })
        .collect();
    (!phrases.is_empty()).then(|| phrases.join(" AND "))
}

impl LocalStore {
    /// Builds the index if the store has none of this version.
    pub(super) fn build_search_index(&mut self) -> Result<()> {
        if self.meta_number(VERSION_KEY)? == VERSION {
            return Ok(());
        }
        self.begin()?;
        self.db
            .execute_batch(
                "DROP TABLE IF EXISTS search;
                 CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2');
                 INSERT INTO search (search, rank) VALUES ('secure-delete', 1);
                 DELETE FROM search_rows;",
            )
            .map_err(failed)?;
        let messages = self.rows(
            "SELECT conversation, user, message_id FROM messages WHERE content IS NOT x'' AND target IS NULL
             ORDER BY sent_at",
            |row| {
                Ok(MessageRef {
                    conversation: ConversationId::parse(&blob(row, 0)?)?,
                    user: UserId::parse(&blob(row, 1)?)?,
                    id: MessageId::parse(&blob(row, 2)?)?,
                })
            },
        )?;
        messages.iter().try_for_each(|message| self.index(message))?;
        self.set_meta(VERSION_KEY, &VERSION.to_be_bytes())
    }

    /// Gives the index the text that a message has now, in the open transaction.
    pub(super) fn index(&mut self, message: &MessageRef) -> Result<()> {
        let item = self.timeline_item(message.conversation, message.user, message.id)?;
        let stored = item.as_ref().filter(|(place, _)| place.seq < Seq::MAX);
        self.index_as(message, stored.and_then(|(_, item)| item.message.text()))
    }

    /// Gives the index the text of a message, in the open transaction.
    pub(super) fn index_as(&mut self, message: &MessageRef, text: Option<&str>) -> Result<()> {
        let MessageRef { conversation, user, id } = *message;
        let key = params![conversation.as_bytes(), user.as_bytes(), id.as_bytes()];
        if let Some(text) = text {
            let is_new = self.run(
                "INSERT OR IGNORE INTO search_rows (conversation, user, message_id) VALUES (?1, ?2, ?3)",
                key,
            )?;
            if is_new > 0 {
                let row = params![self.db.last_insert_rowid(), in_words(text)];
                return self.run("INSERT INTO search (rowid, text) VALUES (?1, ?2)", row).map(drop);
            }
        }
        let known: Option<i64> = self
            .db
            .prepare_cached(
                "SELECT id FROM search_rows WHERE conversation = ?1 AND user = ?2 AND message_id = ?3",
            )
            .and_then(|mut s| s.query_row(key, |row| row.get(0)).optional())
            .map_err(failed)?;
        let Some(row) = known else { return Ok(()) };
        match text {
            None => self.remove_from_index(row),
            Some(text) => {
                let text = params![row, in_words(text)];
                self.run("UPDATE search SET text = ?2 WHERE rowid = ?1", text).map(drop)
            }
        }
    }

    fn remove_from_index(&mut self, row: i64) -> Result<()> {
        self.run("DELETE FROM search WHERE rowid = ?1", [row])?;
        self.run("DELETE FROM search_rows WHERE id = ?1", [row]).map(drop)
    }

    /// Removes the messages of a conversation up to a seq from the index, before they are erased.
    pub(super) fn clear_index(&mut self, conversation: ConversationId, through: Seq) -> Result<()> {
        let rows = self.rows_with(
            "SELECT search_rows.id FROM search_rows JOIN messages USING (conversation, user, message_id)
             WHERE search_rows.conversation = ?1 AND messages.seq <= ?2",
            params![conversation.as_bytes(), through.cast_signed()],
            |row| row.get(0).map_err(failed),
        )?;
        rows.into_iter().try_for_each(|row| self.remove_from_index(row))
    }

    /// Returns the messages that contain all words of a search, or words that begin with them, the last one that arrived first.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn search(
        &self,
        search: &str,
        conversation: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<Message>> {
        let Some(query) = query_of(search) else { return Ok(Vec::new()) };
        let found = self.rows_with(
            "SELECT search_rows.conversation, user, message_id FROM search JOIN search_rows ON search_rows.id = search.rowid
             WHERE search MATCH ?1 AND (?2 IS NULL OR search_rows.conversation = ?2)
             ORDER BY search.rowid DESC LIMIT ?3",
            params![
                query,
                conversation.map(|conversation| conversation.as_bytes().to_vec()),
                i64::try_from(limit).unwrap_or(i64::MAX)
            ],
            |row| {
                let (conversation, user) = (ConversationId::parse(&blob(row, 0)?)?, UserId::parse(&blob(row, 1)?)?);
                self.timeline_item(conversation, user, MessageId::parse(&blob(row, 2)?)?)
            },
        )?;
        Ok(found.into_iter().flatten().map(|(_, item)| item.message).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_names_each_word() {
        assert_eq!(query_of("  Hello wor "), Some("\"Hello\" * AND \"wor\" *".into()));
        assert_eq!(query_of("你好"), Some("\"你  好\"".into()));
        assert_eq!(query_of("a\"b NEAR(c"), Some("\"a b\" * AND \"NEAR(c\" *".into()));
        assert_eq!(query_of(" \" * - "), None);
    }
}
