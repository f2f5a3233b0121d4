use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

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
        /// When the log took it, in microseconds of its own clock.
        logged_us: u64,
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
        /// Its commit time, in microseconds.
        committed_us: u64,
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
    follower: OnceLock<Follower>,
}

/// Whoever is told of steps as they are made.
#[derive(Debug)]
struct Follower {
    steps: mpsc::Sender<(MessageId, Step)>,
    /// Messages of which the last four bytes are at most this.
    up_to: u32,
    /// Steps that did not find room.
    left_out: AtomicU64,
}

impl Follower {
    fn follows(&self, id: MessageId) -> bool {
        let [.., a, b, c, d] = *id.as_bytes();
        u32::from_be_bytes([a, b, c, d]) <= self.up_to
    }
}

impl Trail {
    /// Remembers about this many steps.
    pub fn new(steps: usize) -> Self {
        Self {
            rings: std::array::from_fn(|_| Mutex::default()),
            room: steps.div_ceil(RINGS),
            follower: OnceLock::new(),
        }
    }

    /// Gives the steps of a share (0 to 1) of all messages as they are made; every node of a cluster follows
    /// the same messages. Steps that do not find room are left out. `None` if somebody follows already.
    ///
    /// ```
    /// use chat_core::MessageId;
    /// use chat_core::delivery::{Stage, Trail};
    /// let trail = Trail::new(1000);
    /// let mut steps = trail.follow(1.0, 10).unwrap();
    /// trail.note(MessageId::from_bytes([1; 16]), 5, Stage::Logged);
    /// assert_eq!(steps.try_recv().unwrap().1.stage, Stage::Logged);
    /// ```
    pub fn follow(&self, share: f64, room: usize) -> Option<mpsc::Receiver<(MessageId, Step)>> {
        let (steps, followed) = mpsc::channel(room.max(1));
        let up_to = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        let follower = Follower { steps, up_to, left_out: AtomicU64::new(0) };
        self.follower.set(follower).ok().map(|()| followed)
    }

    /// How many steps the follower did not get because it is slow.
    pub fn left_out(&self) -> u64 {
        self.follower.get().map_or(0, |follower| follower.left_out.load(Ordering::Relaxed))
    }

    fn ring(&self, id: MessageId) -> &Mutex<VecDeque<(MessageId, Step)>> {
        &self.rings[usize::from(id.as_bytes()[15]) % RINGS]
    }

    /// Remembers a step of a message.
    pub fn note(&self, id: MessageId, at_us: u64, stage: Stage) {
        let step = Step { at_us, stage };
        if let Some(follower) = self.follower.get().filter(|follower| follower.follows(id)) {
            let left_out = follower.steps.try_send((id, step)).is_err();
            follower.left_out.fetch_add(u64::from(left_out), Ordering::Relaxed);
        }
        let mut ring = self.ring(id).lock();
        if ring.len() >= self.room {
            ring.pop_front();
        }
        ring.push_back((id, step));
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

    #[test]
    fn a_share_of_messages_is_followed_and_nothing_waits_for_the_follower() {
        let trail = Trail::new(RINGS);
        let mut steps = trail.follow(0.5, 2).unwrap();
        assert!(trail.follow(1.0, 2).is_none(), "one follows");
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for n in [0, 0x7f, 0x80, 0xff, 1] {
            trail.note(id(n), 1, Stage::Logged);
        }
        let followed: Vec<_> = std::iter::from_fn(|| steps.try_recv().ok()).map(|(id, _)| id).collect();
        assert_eq!((followed, trail.left_out()), (vec![id(0), id(0x7f)], 1), "the third did not find room");
    }
}
