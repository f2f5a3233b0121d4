//! Online state of users.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::{InstallationId, UserId};

/// Remembers which devices sent a heartbeat recently. A hint.
///
/// # Contract
/// - A user is present from a beat until [`IDLE_MS`](crate::model::limits::IDLE_MS) after the last one
///   (`present_until_the_ttl`, `one_lost_heartbeat_shows_nothing`), or until the last of its devices left
///   (`absent_after_leaving`, `a_user_is_present_by_any_device`).
/// - Answers come in the order of the users (`answers_come_in_order`).
#[async_trait]
pub trait Presence: fmt::Debug + Send + Sync + 'static {
    /// Records a heartbeat of a device (`alive`), or that the device left.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()>;

    /// Returns whether each of these users is online, in the order of `users`.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<bool>>;
}
