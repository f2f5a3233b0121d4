//! Body and boxes of a message. Each device receives a box with the key of the body, the body's hash, and a header that
//! names sender, recipient, conversation and number.

use bytes::Bytes;
use chat_core::envelope::{Message, SendPosition};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, DeviceAddress, InstallationId, MessageId};
use prost::Message as _;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::suite::Suite;

/// The plaintext of a box.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct BoxContent {
    /// Version of this encoding: 1.
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    body_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    sender_user: Vec<u8>,
    #[prost(uint32, tag = "5")]
    sender_device: u32,
    #[prost(bytes = "vec", tag = "6")]
    sender: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    recipient: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    conversation: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    message_id: Vec<u8>,
    #[prost(uint64, tag = "10")]
    client_seq: u64,
    #[prost(bytes = "vec", tag = "11")]
    prev: Vec<u8>,
    #[prost(uint32, tag = "12")]
    incarnation: u32,
    #[prost(uint64, tag = "13")]
    group_epoch: u64,
    /// Version of the sender's own device list. It reveals a server that hides a later version.
    #[prost(uint64, tag = "14")]
    sender_list_version: u64,
    #[prost(bytes = "vec", tag = "15")]
    sender_list_hash: Vec<u8>,
}

/// A body encrypted once, with the header that all its boxes share.
#[derive(Debug)]
pub(crate) struct SealedBody {
    /// The ciphertext.
    pub(crate) body: Bytes,
    header: BoxContent,
}

/// The version of a sender's own device list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListSeen {
    pub(crate) version: u64,
    pub(crate) hash: Bytes,
}

fn context(conversation: ConversationId, id: MessageId) -> Vec<u8> {
    [&conversation.as_bytes()[..], id.as_bytes()].concat()
}

fn hash(context: &[u8], body: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(b"chat/v1/body-hash");
    hash.update(context);
    hash.update(body);
    hash.finalize().to_vec()
}

impl SealedBody {
    /// Encrypts padded content under `key`, which must be fresh.
    pub(crate) fn seal(
        suite: &dyn Suite,
        content: &[u8],
        key: &[u8; 32],
        sender: DeviceAddress,
        number: &SendPosition,
        list: &ListSeen,
    ) -> Option<Self> {
        let context = context(number.conversation, number.message_id);
        let body = Bytes::from(suite.encrypt_body(key, &context, content)?);
        let header = BoxContent {
            version: 1,
            key: key.to_vec(),
            body_hash: hash(&context, &body),
            sender_user: sender.user.as_bytes().to_vec(),
            sender_device: u32::from(sender.device.get()),
            sender: sender.installation.as_bytes().to_vec(),
            recipient: Vec::new(),
            conversation: number.conversation.as_bytes().to_vec(),
            message_id: number.message_id.as_bytes().to_vec(),
            client_seq: number.client_seq,
            prev: number.prev.as_bytes().to_vec(),
            incarnation: number.incarnation,
            group_epoch: 0,
            sender_list_version: list.version,
            sender_list_hash: list.hash.to_vec(),
        };
        Some(Self { body, header })
    }

    /// Returns the plaintext of a device's box, for the suite to encrypt.
    pub(crate) fn box_for(&self, recipient: InstallationId) -> Zeroizing<Vec<u8>> {
        let content = BoxContent { recipient: recipient.as_bytes().to_vec(), ..self.header.clone() };
        Zeroizing::new(content.encode_to_vec())
    }
}

/// Decrypts a body with `content`, the plaintext of this device's box. Compares the header with
/// the envelope from the server. Also returns the list version that the sender claims.
///
/// # Errors
/// `Misplaced` if the header contradicts the envelope, `Malformed` if the box cannot be decoded,
/// `Undecryptable` if the body does not belong to the box.
pub(crate) fn open_body(
    suite: &dyn Suite,
    content: &[u8],
    own: InstallationId,
    conversation: ConversationId,
    message: &Message,
) -> Result<(Vec<u8>, ListSeen), Unreadable> {
    let content = BoxContent::decode(content).map_err(|_| Unreadable::Malformed)?;
    if content.version != 1 {
        return Err(Unreadable::Malformed);
    }
    let sender = message.sender;
    let placed = content.sender_user == sender.user.as_bytes()
        && content.sender_device == u32::from(sender.device.get())
        && content.sender == sender.installation.as_bytes()
        && content.recipient == own.as_bytes()
        && content.conversation == conversation.as_bytes()
        && content.message_id == message.id.as_bytes()
        && content.client_seq == message.client_seq
        && content.prev == message.prev.as_bytes()
        && content.incarnation == message.incarnation
        && content.group_epoch == 0;
    if !placed {
        return Err(Unreadable::Misplaced);
    }
    let context = context(conversation, message.id);
    if content.body_hash != hash(&context, &message.body) {
        return Err(Unreadable::Undecryptable);
    }
    let opened = suite.decrypt_body(&content.key, &context, &message.body);
    let seen = ListSeen { version: content.sender_list_version, hash: content.sender_list_hash.into() };
    Ok((opened.ok_or(Unreadable::Undecryptable)?, seen))
}
