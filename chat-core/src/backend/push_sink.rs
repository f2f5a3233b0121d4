//! Push notifications that wake devices without a connection.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::DeviceAddress;

/// Sends push notifications without content, sender or conversation. A hint: messages wait in the inbox even
/// if a notification is lost.
///
/// # Contract
/// - [`wake`](Self::wake) accepts an empty list, many devices and repeated devices (`wakes_nobody`,
///   `wakes_many_at_once`, `wakes_the_same_again`). It does not wait for a device.
#[async_trait]
pub trait PushSink: fmt::Debug + Send + Sync + 'static {
    /// Wakes devices that have no connection.
    ///
    /// # Errors
    /// `Unavailable` if some devices may not have been woken. Callers do not depend on the result.
    async fn wake(&self, devices: &[DeviceAddress]) -> Result<()>;
}
