use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::backend::{GatewayId, LogPosition};
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq};

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
pub struct TraceEvent {
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
/// use chat_core::delivery::{Stage, MessageTrace};
/// let trace = MessageTrace::new(1000);
/// trace.record(MessageId::from_bytes([1; 16]), 5, Stage::Logged);
/// assert_eq!(trace.of(MessageId::from_bytes([1; 16]))[0].at_us, 5);
/// assert!(trace.of(MessageId::from_bytes([2; 16])).is_empty());
/// ```
#[derive(Debug)]
pub struct MessageTrace {
    rings: [Mutex<VecDeque<(MessageId, TraceEvent)>>; RINGS],
    /// Steps that each ring remembers.
    room: usize,
    follower: OnceLock<Follower>,
}

/// Whoever is told of events as they are made.
#[derive(Debug)]
struct Follower {
    events: mpsc::Sender<(MessageId, TraceEvent)>,
    /// Messages of which the last four bytes are at most this.
    up_to: u32,
    /// Steps that did not find room.
    dropped: AtomicU64,
}

impl Follower {
    fn follows(&self, id: MessageId) -> bool {
        let [.., a, b, c, d] = *id.as_bytes();
        u32::from_be_bytes([a, b, c, d]) <= self.up_to
    }
}

impl MessageTrace {
    /// Remembers about this many events.
    pub fn new(events: usize) -> Self {
        Self {
            rings: std::array::from_fn(|_| Mutex::default()),
            room: events.div_ceil(RINGS),
            follower: OnceLock::new(),
        }
    }

    /// Gives the events of a share (0 to 1) of all messages as they are made; every node of a cluster follows
    /// the same messages. Steps that do not find room are left out. `None` if somebody follows already.
    ///
    /// ```
    /// use chat_core::MessageId;
    /// use chat_core::delivery::{Stage, MessageTrace};
    /// let trace = MessageTrace::new(1000);
    /// let mut events = trace.follow(1.0, 10).unwrap();
    /// trace.record(MessageId::from_bytes([1; 16]), 5, Stage::Logged);
    /// assert_eq!(events.try_recv().unwrap().1.stage, Stage::Logged);
    /// ```
    pub fn follow(&self, share: f64, room: usize) -> Option<mpsc::Receiver<(MessageId, TraceEvent)>> {
        let (events, followed) = mpsc::channel(room.max(1));
        let up_to = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        let follower = Follower { events, up_to, dropped: AtomicU64::new(0) };
        self.follower.set(follower).ok().map(|()| followed)
    }

    /// How many events the follower did not get because it is slow.
    pub fn dropped(&self) -> u64 {
        self.follower.get().map_or(0, |follower| follower.dropped.load(Ordering::Relaxed))
    }

    fn ring(&self, id: MessageId) -> &Mutex<VecDeque<(MessageId, TraceEvent)>> {
        &self.rings[usize::from(id.as_bytes()[15]) % RINGS]
    }

    /// Remembers a event of a message.
    pub fn record(&self, id: MessageId, at_us: u64, stage: Stage) {
        let event = TraceEvent { at_us, stage };
        if let Some(follower) = self.follower.get().filter(|follower| follower.follows(id)) {
            let dropped = follower.events.try_send((id, event)).is_err();
            follower.dropped.fetch_add(u64::from(dropped), Ordering::Relaxed);
        }
        let mut ring = self.ring(id).lock();
        if ring.len() >= self.room {
            ring.pop_front();
        }
        ring.push_back((id, event));
    }

    /// What is remembered of a message, in order.
    pub fn of(&self, id: MessageId) -> Vec<TraceEvent> {
        self.ring(id).lock().iter().filter(|(known, _)| *known == id).map(|(_, event)| *event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_steps_go_first() {
        let trace = MessageTrace::new(2 * RINGS);
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for at in 0..3 {
            trace.record(id(16), at, Stage::Logged);
        }
        trace.record(id(1), 9, Stage::Logged);
        assert_eq!(trace.of(id(16)).iter().map(|event| event.at_us).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(trace.of(id(1)).len(), 1, "another ring");
    }

    #[test]
    fn a_share_of_messages_is_followed_and_nothing_waits_for_the_follower() {
        let trace = MessageTrace::new(RINGS);
        let mut events = trace.follow(0.5, 2).unwrap();
        assert!(trace.follow(1.0, 2).is_none(), "one follows");
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for n in [0, 0x7f, 0x80, 0xff, 1] {
            trace.record(id(n), 1, Stage::Logged);
        }
        let followed: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|(id, _)| id).collect();
        assert_eq!((followed, trace.dropped()), (vec![id(0), id(0x7f)], 1), "the third did not find room");
    }
}
