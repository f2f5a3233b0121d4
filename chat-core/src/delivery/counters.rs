use std::sync::atomic::AtomicU64;

/// Counters of an engine since it was created.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Counters {
    /// Signatures of devices that open a session.
    pub signatures: AtomicU64,
    /// Publishes that gateways received.
    pub published: AtomicU64,
    /// Messages stored, skips included.
    pub stored: AtomicU64,
    /// Repeated messages that were answered with their original seq.
    pub repeated: AtomicU64,
    /// Records that a shard refused, *retry* included.
    pub refused: AtomicU64,
    /// Batches with at least one commit.
    pub batches: AtomicU64,
    /// Events delivered to connected devices.
    pub events_delivered: AtomicU64,
    /// Batches of events forwarded to other gateways.
    pub forwarded: AtomicU64,
    /// Devices that a push service was asked to wake.
    pub push_wakeups: AtomicU64,
    /// Acks received.
    pub acked: AtomicU64,
}
