//! The content of a message in the simulator.

use bytes::Bytes;

use crate::model::id::MessageId;

/// The part of a message that its options for the server are made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SimFacts {
    None,
    /// The message disappears after so many milliseconds.
    Lifetime(u64),
    /// The message deletes an earlier one of its user.
    Deletes(MessageId),
}

impl SimFacts {
    pub(super) const fn deletes(self) -> Option<MessageId> {
        match self {
            Self::Deletes(id) => Some(id),
            _ => None,
        }
    }
}

/// The content of a message: its id, then its facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SimContent {
    pub id: MessageId,
    pub facts: SimFacts,
}

impl SimContent {
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = self.id.as_bytes().to_vec();
        match self.facts {
            SimFacts::None => {}
            SimFacts::Lifetime(ms) => bytes.extend(ms.to_be_bytes()),
            SimFacts::Deletes(id) => bytes.extend(id.as_bytes()),
        }
        bytes.into()
    }

    /// Reads the facts of an encoded content.
    pub(super) fn facts(content: &[u8]) -> SimFacts {
        let facts = content.get(16..).unwrap_or_default();
        match (<[u8; 8]>::try_from(facts), MessageId::parse(facts)) {
            (Ok(ms), _) => SimFacts::Lifetime(u64::from_be_bytes(ms)),
            (_, Ok(id)) => SimFacts::Deletes(id),
            _ => SimFacts::None,
        }
    }
}
