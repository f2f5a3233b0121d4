//! Global limits; `docs/wire.md` lists them with the result of exceeding each one.

/// Largest sequence number, version, generation, id of a prekey, and time: JSON and browsers hold it exactly. (2^53 - 1
/// microseconds after 1970 is the year 2255.)
pub const MAX_NUMBER: u64 = (1 << 53) - 1;
/// Largest frame on the wire, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;
/// Largest body, in bytes.
pub const MAX_BODY: usize = 64 * 1024 + 1024;
/// Largest box, in bytes.
pub const MAX_BOX: usize = 96 * 1024;
/// Largest text of a message, in bytes of UTF-8.
pub const MAX_TEXT: usize = 64 * 1024;
/// Maximum number of users in an audience.
pub const MAX_AUDIENCE: usize = 1024;
/// Maximum number of devices of all members of a group.
pub const MAX_GROUP_DEVICES: usize = 4096;
/// Number of devices above which a group becomes a feed, unless a server sets another one.
pub const FEED_DEVICES: u32 = 64;
/// Maximum number of users that are banned from a group.
pub const MAX_BANNED: usize = 1024;
/// Maximum number of users that one message removes from a channel. The gateway looks up their devices.
pub const MAX_REMOVED_READERS: usize = 32;
/// Maximum number of channels that a device reads as a subscriber. Each costs a read when the device connects and at a heartbeat.
pub const MAX_SUBSCRIPTIONS: usize = 1_000;
/// Maximum number of users that are invited to a group or ask to join it.
pub const MAX_PENDING: usize = 256;
/// Maximum devices of former members in the roster of a group.
pub const MAX_FORMER_DEVICES: usize = 1024;
/// Largest part of the encryption suite in a message of a group, in bytes.
pub const MAX_CONTROL: usize = 16 * 1024;
/// Maximum number of media that a message references.
pub const MAX_MEDIA: usize = 32;
/// Maximum number of milliseconds after which a message expires: 366 days.
pub const MAX_EXPIRY_MS: u64 = 366 * 24 * 3600 * 1000;
/// Largest identity key of a device in a suite, in bytes.
pub const MAX_SUITE_KEY: usize = 64;
/// Maximum number of suites, and of capabilities, of a device.
pub const MAX_SUITES: usize = 8;
/// Maximum number of devices of a user.
pub const MAX_DEVICES: usize = 6;
/// Maximum number of boxes in a publish.
pub const MAX_BOXES: usize = MAX_AUDIENCE * MAX_DEVICES;
/// Maximum number of rows in flight to a device: sent and not acknowledged.
pub const WINDOW_ROWS: usize = 256;
/// Maximum number of bytes in flight to a device: sent and not acknowledged.
pub const WINDOW_BYTES: usize = 1024 * 1024;
/// Size of the smallest frame of rows, in bytes, if more rows wait: it ends with the row that reaches it.
pub const MIN_FRAME_BYTES: usize = 16 * 1024;
/// Bytes per second of the slowest link that is supported: time limits of transfers grow with their size.
pub const MIN_BYTES_PER_SECOND: u64 = 1024;
/// Maximum number of rows in one page of an inbox or a history.
pub const PAGE_ROWS: usize = 200;
/// Maximum number of bytes in one page of an inbox or a history.
pub const PAGE_BYTES: usize = 192 * 1024;
/// Maximum number of messages in an inbox; below the 25,000 steps that libsignal allows a chain to skip.
pub const INBOX_MESSAGES: u64 = 20_000;
/// Maximum number of bytes in an inbox.
pub const INBOX_BYTES: u64 = 64 * 1024 * 1024;
/// Strangers share this part of an inbox: one in ten. Above it only their messages are refused.
pub const STRANGERS_PART: u64 = 10;
/// Maximum number of one-time prekeys in one upload.
pub const UPLOAD_PREKEYS: usize = 100;
/// Maximum number of one-time prekeys stored for a device.
pub const STORED_PREKEYS: usize = 200;
/// Below this number of one-time prekeys, the device must upload more.
pub const LOW_PREKEYS: u32 = 20;
/// Maximum number of users that a user may have accepted or blocked.
pub const MAX_CONTACTS: usize = 10_000;
/// Maximum number of users whose presence one session watches.
pub const MAX_WATCHED: usize = 512;
/// Maximum number of users to which one receipt in a group goes.
pub const MAX_RECEIPT_USERS: usize = 16;
/// Milliseconds between two heartbeats of a device.
pub const HEARTBEAT_MS: u64 = 30_000;
/// Milliseconds without a frame after which the session is closed and its user is offline.
pub const IDLE_MS: u64 = 75_000;
/// Days for which the server knows at least when a user was last seen.
pub const LAST_SEEN_DAYS: u64 = 30;
/// Milliseconds that a connection has for its handshake.
pub const GREETING_MS: u64 = 5_000;
/// The wire version of this release.
pub const WIRE_VERSION: u32 = 1;
