//! The simulator: the real [`Session`](crate::session::Session), [`Replica`](crate::replica::Replica) and
//! [`Engine`](crate::Engine) over a network that loses, duplicates, reorders, delays and partitions, with
//! processes that crash anywhere and a device that is restored from a backup.
//!
//! A schedule is a pure function of its seed and [`Options`]: a seed that fails, fails again.
//!
//! ```
//! use chat_core::sim::{Options, run};
//! let report = run(1, Options::default()).unwrap();
//! assert!(report.acked > 0);
//! ```

mod accounts;
mod cluster;
mod device;
mod oracle;
mod registry;
mod server;
mod store;
mod world;

pub use oracle::Violation;

use crate::mutant::Mutant;

/// What a schedule may contain.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Options {
    /// The rule to break, if one.
    pub mutant: Option<Mutant>,
    /// Apply commits row by row, stopping anywhere, under a log that outlives the server process.
    pub split: bool,
    /// Three server processes over one log, whose two shards move between them, and a store they share.
    /// Implies `split`.
    pub cluster: bool,
    /// Print every event.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mutant: None, split: false, cluster: false, trace: false }
    }
}

/// What happened in a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Report {
    /// Messages sent.
    pub sent: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Crashes of the server.
    pub server_crashes: u64,
    /// Shards that were given to another process.
    pub moves: u64,
    /// Crashes of devices.
    pub device_crashes: u64,
    /// Devices restored from a backup.
    pub restores: u64,
    /// Events processed.
    pub events: u64,
    /// Sessions that a drain closed.
    pub drains: u64,
    /// Typing hints and presence changes that devices received.
    pub hints: u64,
    /// Hash of everything that happened, in order: equal for equal runs.
    pub digest: u64,
}

impl Report {
    /// Adds another one up.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.server_crashes += other.server_crashes;
        self.moves += other.moves;
        self.device_crashes += other.device_crashes;
        self.restores += other.restores;
        self.events += other.events;
        self.drains += other.drains;
        self.hints += other.hints;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Runs one schedule.
///
/// # Errors
/// The first law that was broken.
pub fn run(seed: u64, options: Options) -> Result<Report, Violation> {
    Mutant::with(options.mutant, || world::World::new(seed, options).run())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_a_function_of_its_seed() {
        let options = Options::default();
        assert_eq!(run(7, options), run(7, options));
    }
}
