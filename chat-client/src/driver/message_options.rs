//! The options of messages, with which the server wakes devices and erases messages.

use bytes::Bytes;
use chat_core::ConversationId;
use chat_core::backend::Rules;
use chat_core::message_options::{Deletion, MessageOptions, Urgency};
use chat_core::replica::{Draft, Recipient};

use super::Driver;
use crate::content::ServerFacts;
use crate::settings_sync::SettingsSync;

impl Driver {
    /// Returns the options of a message, as far as the server knows them. A server of an earlier release keeps a deleted message
    /// until retention; devices erase it all the same.
    pub(super) fn message_options(
        &self,
        draft: &Draft,
        conversation: ConversationId,
    ) -> chat_core::Result<MessageOptions> {
        let rules = self.replica.server_rules();
        if rules < Rules::OPTIONS || matches!(draft.to, Recipient::Device(_)) {
            return Ok(MessageOptions::default());
        }
        let facts = ServerFacts::of(&draft.content);
        let is_shown = draft.action.is_some()
            || !draft.content.is_empty() && SettingsSync::read(&draft.content).is_none();
        let deletion = match facts.deletes.filter(|_| rules >= Rules::GROUPS) {
            Some((author, id)) => {
                self.store.place_of(conversation, author, id)?.map(|(seq, installation)| {
                    let unsigned = Deletion { seq, installation, message_id: id, signature: Bytes::new() };
                    let signature = self.account.sign(&unsigned.transcript(conversation));
                    Box::new(Deletion { signature, ..unsigned })
                })
            }
            None => None,
        };
        Ok(MessageOptions {
            urgency: if is_shown { Urgency::Normal } else { Urgency::Silent },
            expires_after_ms: if draft.action.is_some() { 0 } else { facts.lifetime_ms },
            deletion,
            ..MessageOptions::default()
        })
    }
}
