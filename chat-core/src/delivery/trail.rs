use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::backend::{GatewayId, LogPosition};
use crate::id::{ConversationId, InstallationId, MessageId, Seq};

/// A stage of a message on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// A gateway took it from this device.
    Accepted {
        /// Where it belongs.
        conversation: ConversationId,
        /// Who sent it.
        sender: InstallationId,
    },
    /// The log has it.
    Logged,
    /// Its shard gave it a place and the store has it.
    Stored {
        /// In this conversation.
        conversation: ConversationId,
        /// From this device.
        sender: InstallationId,
        /// The place.
        seq: Seq,
        /// The record.
        position: LogPosition,
        /// For so many devices there is a row.
        rows: u32,
    },
    /// It was stored before: the sender gets the same answer again.
    Repeated {
        /// The place.
        seq: Seq,
    },
    /// It was not stored.
    Refused {
        /// Why, by its name on the wire.
        reason: &'static str,
    },
    /// A gateway is told, for so many devices.
    Routed {
        /// The gateway.
        gateway: GatewayId,
        /// Devices connected there.
        devices: u32,
    },
    /// The push service wakes so many devices.
    Pushed {
        /// Devices that are not connected.
        devices: u32,
    },
    /// It was handed to a device's connection.
    Delivered {
        /// Where it belongs.
        conversation: ConversationId,
        /// Who sent it.
        sender: InstallationId,
        /// The device.
        device: InstallationId,
    },
}

/// A stage, and when it was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Step {
    /// The node's wall clock, in microseconds.
    pub at_us: u64,
    /// What happened.
    pub stage: Stage,
}

/// Rings that ids are spread over, so that stages of different messages do not wait for one lock.
const RINGS: usize = 16;

/// What happened to the messages that a process saw last: bounded, in memory, without content.
///
/// ```
/// use chat_core::MessageId;
/// use chat_core::delivery::{Stage, Trail};
/// let trail = Trail::new(1000);
/// trail.note(MessageId::from_bytes([1; 16]), 5, Stage::Logged);
/// assert_eq!(trail.of(MessageId::from_bytes([1; 16]))[0].at_us, 5);
/// assert!(trail.of(MessageId::from_bytes([2; 16])).is_empty());
/// ```
#[derive(Debug)]
pub struct Trail {
    rings: [Mutex<VecDeque<(MessageId, Step)>>; RINGS],
    /// Steps that each ring remembers.
    room: usize,
}

impl Trail {
    /// Remembers about this many steps.
    pub fn new(steps: usize) -> Self {
        Self { rings: std::array::from_fn(|_| Mutex::default()), room: steps.div_ceil(RINGS) }
    }

    fn ring(&self, id: MessageId) -> &Mutex<VecDeque<(MessageId, Step)>> {
        &self.rings[usize::from(id.as_bytes()[15]) % RINGS]
    }

    /// Remembers a step of a message.
    pub fn note(&self, id: MessageId, at_us: u64, stage: Stage) {
        let mut ring = self.ring(id).lock();
        if ring.len() >= self.room {
            ring.pop_front();
        }
        ring.push_back((id, Step { at_us, stage }));
    }

    /// What is remembered of a message, in order.
    pub fn of(&self, id: MessageId) -> Vec<Step> {
        self.ring(id).lock().iter().filter(|(known, _)| *known == id).map(|(_, step)| *step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_steps_go_first() {
        let trail = Trail::new(2 * RINGS);
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for at in 0..3 {
            trail.note(id(16), at, Stage::Logged);
        }
        trail.note(id(1), 9, Stage::Logged);
        assert_eq!(trail.of(id(16)).iter().map(|step| step.at_us).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(trail.of(id(1)).len(), 1, "another ring");
    }
}
