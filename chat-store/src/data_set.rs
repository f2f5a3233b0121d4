//! Records of a data set that is migrated from one store to another.

use bytes::Bytes;
use chat_core::backend::Feed;
use chat_core::contact::Contacts;
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::InboxCursor;
use chat_core::{ConversationId, Handle, Incarnation, UserId};

/// An account: its handle, signed device list and contacts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Account {
    pub(crate) handle: Handle,
    pub(crate) list: SignedDeviceList,
    /// Sorted by user.
    pub(crate) contacts: Contacts,
}

/// Sorts contacts by user, so that they can be compared.
pub(crate) fn sorted(mut contacts: Contacts) -> Contacts {
    contacts.entries.sort_unstable_by_key(|(user, _)| *user);
    contacts
}

/// Stored data of a device without its inbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) generation: u64,
    pub(crate) cursors: Vec<(ConversationId, InboxCursor)>,
    pub(crate) feeds: Vec<Feed>,
    /// Signed part, its signature, and the highest one-time prekey id uploaded.
    pub(crate) bundle: Option<(Bytes, Bytes, u64)>,
    pub(crate) prekeys: Vec<(u64, Bytes)>,
    /// The last incarnation, its nonce, and its time in milliseconds since 1970.
    pub(crate) incarnation: Option<(Incarnation, [u8; 16], u64)>,
    pub(crate) owner: Option<UserId>,
}
