//! Wakes sleeping devices.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::DeviceAddress;

/// Wakes sleeping devices; carries no content, no sender and no conversation. A hint: an inbox waits
/// whether or not it arrives.
///
/// # Contract
/// - It takes whatever it is given, none, many and the same again (`wakes_nobody`, `wakes_many_at_once`,
///   `wakes_the_same_again`), and whoever gives it does not wait for a device.
#[async_trait]
pub trait PushSink: fmt::Debug + Send + Sync + 'static {
    /// Wakes devices that have no connection.
    ///
    /// # Errors
    /// `Unavailable` if some may not have been woken; nobody waits for that.
    async fn wake(&self, devices: &[DeviceAddress]) -> Result<()>;
}
