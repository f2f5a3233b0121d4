//! The bytes that may be in flight to a device.

use crate::backend::PageLimit;
use crate::model::limits::{MIN_FRAME_BYTES, PAGE_BYTES, WINDOW_BYTES};

/// Maximum number of bytes in flight before the first ack shows the speed of the device.
pub(super) const START_WINDOW: usize = 64 * 1024;
/// Lower bound of the bytes in flight.
pub(super) const MIN_WINDOW: usize = 16 * 1024;
/// Rows that are acknowledged sooner than this many milliseconds widen the window.
const FAST_MS: u64 = 1000;
/// Rows that are acknowledged later than this many milliseconds narrow the window.
const SLOW_MS: u64 = 3000;

/// Maximum number of bytes in flight. It follows the speed of the device: its link may be slow.
#[derive(Debug)]
pub(super) struct Window(usize);

impl Window {
    /// Returns the window for a device whose speed is not known yet.
    pub(super) const fn new() -> Self {
        Self(START_WINDOW)
    }

    pub(super) const fn bytes(&self) -> usize {
        self.0
    }

    /// Returns the size of the next page: no more than the device can take soon.
    pub(super) fn page_limit(&self) -> PageLimit {
        PageLimit { bytes: self.0.min(PAGE_BYTES), ..PageLimit::MAX }
    }

    /// Returns the size of a frame: a part of the window, so that a device acknowledges while others are on their way.
    pub(super) fn frame_bytes(&self) -> usize {
        (self.0 / 4).clamp(MIN_FRAME_BYTES, PAGE_BYTES)
    }

    /// Adapts the window to the time that rows of this size took to be acknowledged.
    pub(super) fn adapt(&mut self, bytes: usize, took_ms: u64) {
        if bytes == 0 {
            return;
        }
        if took_ms < FAST_MS {
            self.0 = self.0.saturating_add(bytes).min(WINDOW_BYTES);
        } else if took_ms > SLOW_MS {
            self.0 = (self.0 / 2).max(MIN_WINDOW);
        }
    }
}
