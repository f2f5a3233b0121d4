//! Body and boxes of a message. Each device receives a box with the key of the body, the body's hash, and a header that
//! names sender, recipient, conversation and number.

use bytes::Bytes;
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{Message, SendPosition};
use chat_core::replica::Unreadable;
use chat_core::roster::RosterDigest;
use chat_core::view::{RowHash, View};
use chat_core::{ConversationId, DeviceAddress, InstallationId, MessageId, StoreEpoch};
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
    /// Version of the recipient's device list that the boxes were sealed for.
    #[prost(uint64, tag = "16")]
    recipient_list_version: u64,
    #[prost(bytes = "vec", tag = "17")]
    recipient_list_hash: Vec<u8>,
    /// The last message of the conversation that the sender saw: store epoch, seq and row hash. Empty if it saw none.
    #[prost(bytes = "vec", tag = "18")]
    view_epoch: Vec<u8>,
    #[prost(uint64, tag = "19")]
    view_seq: u64,
    #[prost(bytes = "vec", tag = "20")]
    view_hash: Vec<u8>,
    /// Installations that the sender could not encrypt for.
    #[prost(bytes = "vec", repeated, tag = "21")]
    excluded: Vec<Vec<u8>>,
    /// Hash of the options that the server reads; empty if all have their defaults.
    #[prost(bytes = "vec", tag = "22")]
    options_hash: Vec<u8>,
    /// In a group: the version of the roster that the message is for.
    #[prost(uint64, tag = "23")]
    roster_version: u64,
    /// In a group: the digest of that version.
    #[prost(bytes = "vec", tag = "24")]
    roster_digest: Vec<u8>,
    /// In a group, in the box of a device that lacks it: the sender key. Such a box has no key of the body.
    #[prost(bytes = "vec", tag = "25")]
    distribution: Vec<u8>,
}

/// A body encrypted once, with the header that all its boxes share.
#[derive(Debug)]
pub(crate) struct SealedBody {
    /// The ciphertext.
    pub(crate) body: Bytes,
    header: BoxContent,
}

/// The version of a device list that a sender saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListSeen {
    pub(crate) version: u64,
    pub(crate) hash: Bytes,
}

pub(crate) fn context(conversation: ConversationId, id: MessageId) -> Vec<u8> {
    [&conversation.as_bytes()[..], id.as_bytes()].concat()
}

fn hash(context: &[u8], body: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(b"chat/v1/body-hash");
    hash.update(context);
    hash.update(body);
    hash.finalize().to_vec()
}

impl ListSeen {
    pub(crate) fn of(list: &SignedDeviceList) -> Self {
        Self { version: list.list().version, hash: list.hash() }
    }

    /// Whether this is another list than `known`, with the same version.
    pub(crate) fn forks(&self, known: &SignedDeviceList) -> bool {
        known.list().version == self.version && known.hash() != self.hash
    }
}

/// The content of a message, and the claims in its box.
pub(crate) struct OpenedBody {
    pub(crate) content: Vec<u8>,
    pub(crate) key: Option<[u8; 32]>,
    /// The newest list of its own user that the sender has.
    pub(crate) sender_list: ListSeen,
    /// The list of the recipient that the sender has; version 0 from a release that did not say.
    pub(crate) recipient_list: ListSeen,
    /// The last message that the sender saw.
    pub(crate) view: Option<View>,
    /// Devices that the sender could not encrypt for.
    pub(crate) excluded: Vec<InstallationId>,
}

/// The claims of a sender in all boxes of a message.
#[derive(Debug)]
pub(crate) struct Claims {
    /// The newest list of its own user that the sender has.
    pub(crate) list: ListSeen,
    /// The last message that the sender saw.
    pub(crate) view: Option<View>,
    /// Devices that the sender cannot encrypt for.
    pub(crate) excluded: Vec<InstallationId>,
    /// Hash of the options that the server reads.
    pub(crate) options_hash: Bytes,
    /// In a group: version and digest of the roster that the message is for.
    pub(crate) roster: Option<(u64, RosterDigest)>,
}

impl BoxContent {
    fn view(&self) -> Option<View> {
        let epoch = StoreEpoch::parse(&self.view_epoch).ok()?;
        Some(View { epoch, seq: self.view_seq, hash: RowHash::parse(&self.view_hash).ok()? })
    }
}

impl SealedBody {
    /// Encrypts padded content under `key`, which must be fresh.
    pub(crate) fn seal(
        suite: &dyn Suite,
        content: &[u8],
        key: &[u8; 32],
        sender: DeviceAddress,
        number: &SendPosition,
        claims: &Claims,
    ) -> Option<Self> {
        let Claims { list, view, excluded, options_hash, roster } = claims;
        let context = context(number.conversation, number.message_id);
        // Padded content has bytes. A message of a group without content has no body.
        let body = match content.is_empty() {
            true => Bytes::new(),
            false => Bytes::from(suite.encrypt_body(key, &context, content)?),
        };
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
            recipient_list_version: 0,
            recipient_list_hash: Vec::new(),
            view_epoch: view.map(|view| view.epoch.as_bytes().to_vec()).unwrap_or_default(),
            view_seq: view.map_or(0, |view| view.seq),
            view_hash: view.map(|view| view.hash.as_bytes().to_vec()).unwrap_or_default(),
            excluded: excluded.iter().map(|device| device.as_bytes().to_vec()).collect(),
            options_hash: options_hash.to_vec(),
            roster_version: roster.map_or(0, |(version, _)| version),
            roster_digest: roster.map(|(_, digest)| digest.as_bytes().to_vec()).unwrap_or_default(),
            distribution: Vec::new(),
        };
        Some(Self { body, header })
    }

    /// Returns the plaintext of a device's box, for the suite to encrypt. `list` is the list that contains the device.
    pub(crate) fn box_for(&self, recipient: InstallationId, list: &ListSeen) -> Zeroizing<Vec<u8>> {
        let content = BoxContent {
            recipient: recipient.as_bytes().to_vec(),
            recipient_list_version: list.version,
            recipient_list_hash: list.hash.to_vec(),
            ..self.header.clone()
        };
        Zeroizing::new(content.encode_to_vec())
    }

    /// Returns the plaintext of the box that all members of a group share.
    pub(crate) fn shared_box(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.header.encode_to_vec())
    }

    /// Returns the plaintext of the box of a device that lacks the sender key.
    pub(crate) fn key_box_for(
        &self,
        recipient: InstallationId,
        list: &ListSeen,
        distribution: &[u8],
    ) -> Zeroizing<Vec<u8>> {
        let content = BoxContent {
            key: Vec::new(),
            recipient: recipient.as_bytes().to_vec(),
            recipient_list_version: list.version,
            recipient_list_hash: list.hash.to_vec(),
            distribution: distribution.to_vec(),
            ..self.header.clone()
        };
        Zeroizing::new(content.encode_to_vec())
    }
}

impl OpenedBody {
    /// Returns the opened form of a message of a group without content.
    pub(crate) fn empty() -> Self {
        let list = || ListSeen { version: 0, hash: Bytes::new() };
        Self {
            content: Vec::new(),
            key: None,
            sender_list: list(),
            recipient_list: list(),
            view: None,
            excluded: Vec::new(),
        }
    }
}

/// Decodes a box, and compares its header with the envelope from the server. `recipient` is `None` for the box that all
/// members of a group share.
fn check_box(
    content: &[u8],
    recipient: Option<InstallationId>,
    conversation: ConversationId,
    message: &Message,
) -> Result<BoxContent, Unreadable> {
    let content = BoxContent::decode(content).map_err(|_| Unreadable::Malformed)?;
    if content.version != 1 {
        return Err(Unreadable::Malformed);
    }
    let sender = message.sender;
    let recipient = recipient.map(|one| one.as_bytes().to_vec()).unwrap_or_default();
    let part = message.group.as_ref();
    let placed = content.sender_user == sender.user.as_bytes()
        && content.sender_device == u32::from(sender.device.get())
        && content.sender == sender.installation.as_bytes()
        && content.recipient == recipient
        && content.conversation == conversation.as_bytes()
        && content.message_id == message.id.as_bytes()
        && content.client_seq == message.client_seq
        && content.prev == message.prev.as_bytes()
        && content.incarnation == message.incarnation
        && content.group_epoch == 0
        && content.roster_version == part.map_or(0, |part| part.roster_version)
        && content.roster_digest == part.map(|part| part.digest.as_bytes().to_vec()).unwrap_or_default()
        && content.options_hash == message.options.hash();
    if !placed {
        return Err(Unreadable::Misplaced);
    }
    if content.body_hash != hash(&context(conversation, message.id), &message.body) {
        return Err(Unreadable::Undecryptable);
    }
    Ok(content)
}

/// Returns the sender key in `content`, the plaintext of this device's box in a message of a group.
///
/// # Errors
/// The errors of [`open_body`].
pub(crate) fn open_distribution(
    content: &[u8],
    own: InstallationId,
    conversation: ConversationId,
    message: &Message,
) -> Result<Vec<u8>, Unreadable> {
    check_box(content, Some(own), conversation, message).map(|content| content.distribution)
}

/// Decrypts a body with `content`, the plaintext of this device's box. Compares the header with
/// the envelope from the server.
///
/// # Errors
/// `Misplaced` if the header contradicts the envelope, `Malformed` if the box cannot be decoded,
/// `Undecryptable` if the body does not belong to the box.
pub(crate) fn open_body(
    suite: &dyn Suite,
    content: &[u8],
    recipient: Option<InstallationId>,
    conversation: ConversationId,
    message: &Message,
) -> Result<OpenedBody, Unreadable> {
    let content = check_box(content, recipient, conversation, message)?;
    let context = context(conversation, message.id);
    let opened = suite.decrypt_body(&content.key, &context, &message.body);
    Ok(OpenedBody {
        view: content.view(),
        excluded: content.excluded.iter().filter_map(|one| InstallationId::parse(one).ok()).collect(),
        content: opened.ok_or(Unreadable::Undecryptable)?,
        key: content.key.try_into().ok(),
        sender_list: ListSeen { version: content.sender_list_version, hash: content.sender_list_hash.into() },
        recipient_list: ListSeen {
            version: content.recipient_list_version,
            hash: content.recipient_list_hash.into(),
        },
    })
}
