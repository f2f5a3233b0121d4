//! Sessions of a simulated device: they count keys instead of encrypting.

use std::collections::{BTreeSet, HashMap};

use bytes::{BufMut, Bytes, BytesMut};

use super::group_suite::SimSenderKeys;
use crate::model::id::{ConversationId, InstallationId, MessageId, SenderKeyId, StoreEpoch};
use crate::model::view::{RowHash, View};

/// Sessions, counters and prekeys, as the Signal protocol uses them.
#[derive(Clone, Debug, Default)]
pub(super) struct SimSuite {
    /// The session in use, by peer.
    pub current: HashMap<InstallationId, u64>,
    /// By sending session: the prekey that it began with (0: the peer began it), and the last counter.
    pub sending: HashMap<u64, (u64, u64)>,
    /// By receiving session: the counters already seen.
    pub receiving: HashMap<u64, BTreeSet<u64>>,
    pub prekeys: BTreeSet<u64>,
    pub last_prekey: u64,
    /// The reusable prekey of this incarnation.
    pub last_resort: u64,
    pub sender_keys: SimSenderKeys,
}

impl SimSuite {
    pub(super) fn has_session(&self, peer: InstallationId) -> bool {
        self.current.contains_key(&peer)
    }
}

pub(super) const LAST_RESORT: u64 = 1 << 63;
/// The direction bit of a session: the device that began the session sends without it.
pub(super) const BACK: u64 = 1;

/// One device box: the key that opens it, and its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimBox {
    pub session: u64,
    pub prekey: u64,
    pub counter: u64,
    pub from: InstallationId,
    pub to: InstallationId,
    pub conversation: ConversationId,
    pub id: MessageId,
    pub view: Option<View>,
    /// A sender key of the sending device, and the number after which it opens messages.
    pub distribution: Option<(SenderKeyId, u64)>,
}

impl SimBox {
    pub(super) fn encode_view(view: Option<View>, bytes: &mut BytesMut) {
        if let Some(view) = view {
            bytes.put_slice(view.epoch.as_bytes());
            bytes.put_u64(view.seq);
            bytes.put_slice(view.hash.as_bytes());
        }
    }

    pub(super) fn decode_view(bytes: &[u8]) -> Option<Option<View>> {
        if bytes.is_empty() {
            return Some(None);
        }
        let seq = u64::from_be_bytes(bytes.get(16..24)?.try_into().ok()?);
        let hash = RowHash::parse(bytes.get(24..)?).ok()?;
        Some(Some(View { epoch: StoreEpoch::parse(bytes.get(..16)?).ok()?, seq, hash }))
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(96);
        bytes.put_u64(self.session);
        bytes.put_u64(self.prekey);
        bytes.put_u64(self.counter);
        bytes.put_slice(self.from.as_bytes());
        bytes.put_slice(self.to.as_bytes());
        bytes.put_slice(self.conversation.as_bytes());
        bytes.put_slice(self.id.as_bytes());
        if let Some((key, after)) = self.distribution {
            bytes.put_slice(key.as_bytes());
            bytes.put_u64(after);
        }
        Self::encode_view(self.view, &mut bytes);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        // A view has 56 bytes, a distribution 24.
        let rest = bytes.get(89..)?;
        let distributes = matches!(rest.len(), 24 | 80);
        let view = rest.get(if distributes { 24 } else { 0 }..)?;
        Some(Self {
            session: number(0)?,
            prekey: number(8)?,
            counter: number(16)?,
            from: InstallationId::parse(bytes.get(24..40)?).ok()?,
            to: InstallationId::parse(bytes.get(40..56)?).ok()?,
            conversation: ConversationId::parse(bytes.get(56..73)?).ok()?,
            id: MessageId::parse(bytes.get(73..89)?).ok()?,
            view: Self::decode_view(view)?,
            distribution: match distributes {
                true => Some((SenderKeyId::parse(rest.get(..16)?).ok()?, number(105)?)),
                false => None,
            },
        })
    }
}
