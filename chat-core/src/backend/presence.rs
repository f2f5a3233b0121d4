//! Online state of users, and when they were last seen.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::{InstallationId, UserId};
use crate::model::presence::UserPresence;

/// Remembers which devices sent a heartbeat recently, and when each user was last seen. A hint.
///
/// # Contract
/// - A user is present from a beat until [`IDLE_MS`](crate::model::limits::IDLE_MS) after the last one
///   (`present_until_the_ttl`, `one_lost_heartbeat_shows_nothing`), or until the last of its devices left
///   (`absent_after_leaving`, `a_user_is_present_by_any_device`).
/// - A user that is not present was last seen at the last beat of any of its devices, or when the last one left, for
///   [`LAST_SEEN_DAYS`](crate::model::limits::LAST_SEEN_DAYS) at least, also after it left again (`last_seen_when_the_last_device_left`,
///   `last_seen_at_the_last_beat`).
/// - A user that was forgotten is like one that was never there (`a_forgotten_user_was_never_seen`).
/// - Answers come in the order of the users (`answers_come_in_order`).
#[async_trait]
pub trait Presence: fmt::Debug + Send + Sync + 'static {
    /// Records a heartbeat of a device (`alive`), or that the device left.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()>;

    /// Returns whether each of these users is online, or when it was last seen, in the order of `users`.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<UserPresence>>;

    /// Forgets a user. The engine calls it when it deletes the account.
    ///
    /// # Errors
    /// `Unavailable`: it may be forgotten or not. A repeat is safe.
    async fn forget(&self, user: UserId) -> Result<()>;
}
