//! The simulator. It runs the real [`Session`](crate::session::Session), [`Replica`](crate::replica::Replica)
//! and [`Engine`](crate::Engine) over a network that loses, duplicates, reorders, delays and partitions.
//! Processes crash at any point, and a device, or the server, is restored from a backup.
//!
//! A schedule is a pure function of its seed and [`Options`], so a failing seed fails in every run.
//!
//! ```
//! use chat_core::sim::{Options, run};
//! let report = run(1, Options::default()).unwrap();
//! assert!(report.acked > 0);
//! ```

mod accounts;
mod cluster;
mod content;
mod device;
mod group_laws;
mod group_suite;
mod local_store;
mod oracle;
mod registry;
mod server;
mod store;
mod suite;
mod world;

pub use oracle::Violation;

use crate::mutant::Mutant;

/// The faults and settings of a schedule.
#[derive(Clone, Copy, Default, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Options {
    /// The rule to break, if one.
    pub mutant: Option<Mutant>,
    /// Write commits row by row, with stops at any row, and with a log that outlives the server process.
    pub split: bool,
    /// Run three server processes with a shared log and a shared store; its two shards move between them.
    /// Implies `split`.
    pub cluster: bool,
    /// The data of the one server process is copied and later put back, with a new store epoch or without. Not with
    /// `cluster`.
    pub restored_server: bool,
    /// Four users with two devices each have a group. Its roster changes during the schedule.
    pub groups: bool,
    /// With `groups`: groups with more than three devices, or in every second schedule five, are feeds.
    pub feeds: bool,
    /// With `groups`: the group is a channel, to which devices subscribe.
    pub channels: bool,
    /// Some messages disappear, and some are deleted for everyone.
    pub erasure: bool,
    /// Print every event.
    pub trace: bool,
}

/// The counts of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Report {
    pub sent: u64,
    pub acked: u64,
    /// Number of server crashes.
    pub server_crashes: u64,
    /// Number of times a shard moved to another process.
    pub moves: u64,
    /// Number of device crashes.
    pub device_crashes: u64,
    /// Number of devices restored from a backup.
    pub restores: u64,
    /// Number of servers restored from a copy.
    pub server_restores: u64,
    /// Number of processed events.
    pub events: u64,
    /// Sessions that a drain closed.
    pub drains: u64,
    /// Changes of groups that devices learned of.
    pub group_changes: u64,
    /// Typing hints and presence changes that devices received.
    pub hints: u64,
    /// Hash of everything that happened, in order: equal for equal runs.
    pub digest: u64,
}

impl Report {
    /// Adds the counts of another report.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.server_crashes += other.server_crashes;
        self.moves += other.moves;
        self.device_crashes += other.device_crashes;
        self.restores += other.restores;
        self.server_restores += other.server_restores;
        self.events += other.events;
        self.drains += other.drains;
        self.group_changes += other.group_changes;
        self.hints += other.hints;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Runs one schedule.
///
/// # Errors
/// The first invariant that was violated.
pub fn run(seed: u64, options: Options) -> Result<Report, Violation> {
    Mutant::with(options.mutant, || world::World::new(seed, options).run())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_depends_only_on_seed_and_options() {
        let options = Options::default();
        assert_eq!(run(7, options), run(7, options));
    }
}
