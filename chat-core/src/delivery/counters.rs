use std::sync::atomic::AtomicU64;

/// What an engine did since it was made.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Counters {
    /// Publishes and skips that gateways took.
    pub published: AtomicU64,
    /// Messages that got a place.
    pub stored: AtomicU64,
    /// Repeats that got their original answer.
    pub repeated: AtomicU64,
    /// Publishes refused, *retry* included.
    pub refused: AtomicU64,
    /// Batches committed.
    pub batches: AtomicU64,
    /// Rows told to connected devices.
    pub events_delivered: AtomicU64,
    /// Batches of events that went to other gateways.
    pub forwarded: AtomicU64,
    /// Devices woken by a push service.
    pub push_wakeups: AtomicU64,
    /// Acks taken.
    pub acked: AtomicU64,
}
