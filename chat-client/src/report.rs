use chat_core::{ConversationId, MessageId};

use crate::body;
use crate::message::Content;
use crate::sealed_body::context;

/// Decrypts a message of a report, for the people who moderate a service: the body as the server stored it, with the key
/// that the reporting user revealed. Returns `None` if they do not belong together.
pub fn open_reported(
    conversation: ConversationId,
    id: MessageId,
    body: &[u8],
    body_key: &[u8; 32],
) -> Option<Content> {
    body::decrypt(body_key, &context(conversation, id), body).map(|content| Content::decode(&content))
}
