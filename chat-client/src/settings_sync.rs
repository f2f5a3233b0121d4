//! The message with which a device gives the settings of conversations to the other devices of its user.

use chat_core::padding::{pad, unpad};
use chat_core::{ConversationId, Seq, StoreEpoch};
use prost::Message as _;

use crate::conversation_setting::MAX_DRAFT;

/// Maximum bytes of the settings in one message, apart from the last one.
pub(crate) const MAX_SETTINGS: usize = 16_384;

/// The settings of a conversation that changed; the others are absent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Settings {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) id: Vec<u8>,
    /// Milliseconds since 1970; 0 if it is not muted.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) muted_until: Option<u64>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) archived: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) pinned: Option<bool>,
    #[prost(string, optional, tag = "5")]
    pub(crate) draft: Option<String>,
    /// The seq up to which the user has read.
    #[prost(uint64, optional, tag = "6")]
    pub(crate) read: Option<Seq>,
}

impl Settings {
    /// Returns settings of a conversation that change nothing.
    pub(crate) fn of(conversation: ConversationId) -> Self {
        Self { id: conversation.as_bytes().to_vec(), ..Self::default() }
    }

    pub(crate) fn conversation(&self) -> Option<ConversationId> {
        ConversationId::parse(&self.id).ok()
    }
}

/// The changed settings of some conversations. Field numbers are above those of other content, so that no release takes it
/// for a text.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SettingsSync {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "14")]
    pub(crate) settings: Vec<Settings>,
    /// The store epoch of the read positions.
    #[prost(bytes = "vec", tag = "15")]
    epoch: Vec<u8>,
}

impl SettingsSync {
    pub(crate) fn new(epoch: Option<StoreEpoch>, settings: Vec<Settings>) -> Self {
        let epoch = epoch.map(|epoch| epoch.as_bytes().to_vec()).unwrap_or_default();
        Self { version: 1, settings, epoch }
    }

    pub(crate) fn encode_padded(&self) -> Vec<u8> {
        pad(self.encode_to_vec())
    }

    /// Returns the settings in the content of a message; `None` if it has none. Drafts that are too long are left out.
    pub(crate) fn read(content: &[u8]) -> Option<Self> {
        let mut sync = Self::decode(unpad(content).ok()?).ok().filter(|sync| !sync.settings.is_empty())?;
        for settings in &mut sync.settings {
            settings.draft = settings.draft.take().filter(|draft| draft.len() <= MAX_DRAFT);
        }
        Some(sync)
    }

    pub(crate) fn is_of_epoch(&self, epoch: Option<StoreEpoch>) -> bool {
        epoch.is_some_and(|epoch| epoch.as_bytes()[..] == self.epoch[..])
    }
}
