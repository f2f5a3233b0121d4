use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::backend::{GatewayId, LogPosition};
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq};

/// A stage of the path of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// A gateway received the message.
    Accepted { conversation: ConversationId, sender: InstallationId },
    /// The log confirmed the append.
    Logged,
    /// The shard assigned a seq and the store made the message durable.
    Stored {
        conversation: ConversationId,
        sender: InstallationId,
        seq: Seq,
        /// Position of the record in the log of the shard.
        position: LogPosition,
        /// Append time, in microseconds of the log's own clock.
        logged_us: u64,
        /// Inbox rows written, one per device.
        rows: u32,
    },
    /// The message was stored before: the sender gets the original answer again.
    Repeated { seq: Seq },
    /// The message was not stored.
    Refused {
        /// `Refusal::name` of the refusal.
        reason: &'static str,
    },
    /// The message was routed to a gateway.
    Routed {
        gateway: GatewayId,
        /// Devices of this message that are connected to that gateway.
        devices: u32,
    },
    /// The push service was asked to wake devices.
    Pushed {
        /// Devices that are not connected.
        devices: u32,
    },
    /// The message was passed to the connection of a device.
    Delivered {
        conversation: ConversationId,
        sender: InstallationId,
        device: InstallationId,
        /// Commit time, in microseconds.
        committed_us: u64,
    },
}

/// A stage and the time at which a message reached it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct TraceEvent {
    /// The node's wall clock, in microseconds.
    pub at_us: u64,
    pub stage: Stage,
}

/// Number of rings. The ids are spread over them to reduce lock contention.
const RINGS: usize = 16;

/// Trace of the most recent messages of a process: bounded, in memory, without content.
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
    /// Capacity of each ring, in events.
    room: usize,
    follower: OnceLock<Follower>,
}

/// Receiver of new trace events; see [`MessageTrace::follow`].
#[derive(Debug)]
struct Follower {
    events: mpsc::Sender<(MessageId, TraceEvent)>,
    /// A message is followed if the last four bytes of its id, as a big-endian number, are at most this.
    up_to: u32,
    /// Events that the full channel did not accept.
    dropped: AtomicU64,
}

impl Follower {
    fn follows(&self, id: MessageId) -> bool {
        let [.., a, b, c, d] = *id.as_bytes();
        u32::from_be_bytes([a, b, c, d]) <= self.up_to
    }
}

impl MessageTrace {
    /// Creates a trace that keeps about this many events.
    pub fn new(events: usize) -> Self {
        Self {
            rings: std::array::from_fn(|_| Mutex::default()),
            room: events.div_ceil(RINGS),
            follower: OnceLock::new(),
        }
    }

    /// Returns a channel of `room` events that receives the new events of a share (0 to 1) of all messages.
    /// Every node of a cluster follows the same messages. Events that the full channel does not accept are
    /// dropped and [counted](Self::dropped). Returns `None` if there is a follower already.
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

    /// Returns the number of events that were dropped because the follower was slow.
    pub fn dropped(&self) -> u64 {
        self.follower.get().map_or(0, |follower| follower.dropped.load(Ordering::Relaxed))
    }

    fn ring(&self, id: MessageId) -> &Mutex<VecDeque<(MessageId, TraceEvent)>> {
        &self.rings[usize::from(id.as_bytes()[15]) % RINGS]
    }

    /// Records an event of a message.
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

    /// Returns the events kept for a message, in order.
    pub fn of(&self, id: MessageId) -> Vec<TraceEvent> {
        self.ring(id).lock().iter().filter(|(known, _)| *known == id).map(|(_, event)| *event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_drops_the_oldest_events_when_full() {
        let trace = MessageTrace::new(2 * RINGS);
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for at in 0..3 {
            trace.record(id(16), at, Stage::Logged);
        }
        trace.record(id(1), 9, Stage::Logged);
        assert_eq!(trace.of(id(16)).iter().map(|event| event.at_us).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(trace.of(id(1)).len(), 1, "a message of another ring keeps its event");
    }

    #[test]
    fn follower_gets_a_share_and_never_blocks_recording() {
        let trace = MessageTrace::new(RINGS);
        let mut events = trace.follow(0.5, 2).unwrap();
        assert!(trace.follow(1.0, 2).is_none(), "only one follower is allowed");
        let id = |n: u8| MessageId::from_bytes([n; 16]);
        for n in [0, 0x7f, 0x80, 0xff, 1] {
            trace.record(id(n), 1, Stage::Logged);
        }
        let followed: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|(id, _)| id).collect();
        assert_eq!((followed, trace.dropped()), (vec![id(0), id(0x7f)], 1), "the channel holds two events");
    }
}
