//! The limits that hold everywhere; `docs/wire.md` lists them with what exceeding each one gets.

/// Largest frame on the wire, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;
/// Largest body, in bytes.
pub const MAX_BODY: usize = 64 * 1024 + 1024;
/// Largest box, in bytes.
pub const MAX_BOX: usize = 96 * 1024;
/// Largest text a person can send, in bytes of UTF-8.
pub const MAX_TEXT: usize = 64 * 1024;
/// Most users in an audience.
pub const MAX_AUDIENCE: usize = 1024;
/// Most devices of a user.
pub const MAX_DEVICES: usize = 6;
/// Most boxes in a publish.
pub const MAX_BOXES: usize = MAX_AUDIENCE * MAX_DEVICES;
/// Rows that may be on the way to a device unacknowledged.
pub const WINDOW_ROWS: usize = 256;
/// Bytes that may be on the way to a device unacknowledged.
pub const WINDOW_BYTES: usize = 1024 * 1024;
/// Most rows in one page of an inbox or a history.
pub const PAGE_ROWS: usize = 200;
/// Most bytes in one page of an inbox or a history.
pub const PAGE_BYTES: usize = 192 * 1024;
/// Most messages an inbox holds; below the 25,000 that libsignal lets a chain jump.
pub const INBOX_MESSAGES: u64 = 20_000;
/// Most bytes an inbox holds.
pub const INBOX_BYTES: u64 = 64 * 1024 * 1024;
/// Most one-time prekeys in one upload.
pub const UPLOAD_PREKEYS: usize = 100;
/// Most one-time prekeys held for a device.
pub const STORED_PREKEYS: usize = 200;
/// Fewer one-time prekeys than this are to be replenished.
pub const LOW_PREKEYS: u32 = 20;
/// Most users whose presence one session watches.
pub const MAX_WATCHED: usize = 512;
/// Milliseconds between two heartbeats of a device.
pub const HEARTBEAT_MS: u64 = 30_000;
/// Milliseconds after which a silent session is closed and its user is offline.
pub const IDLE_MS: u64 = 75_000;
/// Milliseconds a connection has to authenticate.
pub const GREETING_MS: u64 = 5_000;
/// The wire version this release speaks.
pub const WIRE_VERSION: u32 = 1;
