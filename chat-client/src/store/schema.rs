//! The tables of the local store.

/// Version of the tables. A store of a later version is not opened.
pub(super) const VERSION: i64 = 9;

/// The tables of a new store.
pub(super) const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE suite (tbl INTEGER, key BLOB, value BLOB NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID;
CREATE TABLE conversations (
  id BLOB PRIMARY KEY, peer BLOB, cursor INTEGER NOT NULL DEFAULT 0, client_seq INTEGER NOT NULL DEFAULT 0,
  prev BLOB NOT NULL DEFAULT x'00000000000000000000000000000000', last_own INTEGER NOT NULL DEFAULT 0,
  delivered INTEGER NOT NULL DEFAULT 0, read INTEGER NOT NULL DEFAULT 0, excused INTEGER NOT NULL DEFAULT 0,
  roster_behind INTEGER NOT NULL DEFAULT 0, name TEXT,
  description TEXT NOT NULL DEFAULT '', picture TEXT, profile_from BLOB, link_secret BLOB,
  unread INTEGER NOT NULL DEFAULT 0, mentions INTEGER NOT NULL DEFAULT 0,
  muted_until INTEGER NOT NULL DEFAULT 0, archived INTEGER NOT NULL DEFAULT 0, pinned INTEGER NOT NULL DEFAULT 0,
  draft TEXT NOT NULL DEFAULT '', muted_at INTEGER NOT NULL DEFAULT 0, archived_at INTEGER NOT NULL DEFAULT 0,
  pinned_at INTEGER NOT NULL DEFAULT 0, draft_at INTEGER NOT NULL DEFAULT 0,
  timer_ms INTEGER NOT NULL DEFAULT 0, timer_seq INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE search_rows (
  id INTEGER PRIMARY KEY AUTOINCREMENT, conversation BLOB NOT NULL, user BLOB NOT NULL, message_id BLOB NOT NULL,
  UNIQUE (conversation, user, message_id));
CREATE TABLE unsynced_settings (conversation BLOB PRIMARY KEY, fields INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE rosters (
  conversation BLOB NOT NULL, version INTEGER NOT NULL, roster BLOB NOT NULL,
  PRIMARY KEY (conversation, version)) WITHOUT ROWID;
CREATE TABLE sender_keys (conversation BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE channel_keys (
  conversation BLOB NOT NULL, link BLOB NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (conversation, link)) WITHOUT ROWID;
CREATE TABLE chains (
  conversation BLOB NOT NULL, sender BLOB NOT NULL, incarnation INTEGER NOT NULL, client_seq INTEGER NOT NULL,
  message_id BLOB NOT NULL, excused INTEGER NOT NULL, PRIMARY KEY (conversation, sender)) WITHOUT ROWID;
CREATE TABLE messages (
  conversation BLOB NOT NULL, seq INTEGER NOT NULL, sender BLOB NOT NULL, user BLOB NOT NULL, device INTEGER NOT NULL,
  message_id BLOB NOT NULL, content BLOB, sent_at INTEGER NOT NULL, audience BLOB,
  unasked INTEGER NOT NULL DEFAULT 0, row_hash BLOB, anchor INTEGER, body_key BLOB, roster_version INTEGER,
  target BLOB, mentioned INTEGER NOT NULL DEFAULT 0,
  lifetime_ms INTEGER NOT NULL DEFAULT 0, expires_at INTEGER, group_action BLOB,
  PRIMARY KEY (conversation, seq)) WITHOUT ROWID;
CREATE INDEX messages_by_author ON messages (message_id, user);
CREATE INDEX messages_by_target ON messages (conversation, target, seq) WHERE target IS NOT NULL;
CREATE INDEX messages_archived ON messages (conversation, anchor) WHERE anchor IS NOT NULL;
CREATE INDEX messages_unasked ON messages (unasked) WHERE unasked > 0;
CREATE UNIQUE INDEX messages_by_id ON messages (sender, message_id, conversation);
CREATE INDEX messages_shown ON messages (conversation, seq)
  WHERE (content IS NOT x'' OR group_action IS NOT NULL) AND target IS NULL;
CREATE INDEX messages_seen ON messages (conversation, seq) WHERE row_hash IS NOT NULL;
CREATE INDEX messages_expiring ON messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX messages_unexpired ON messages (conversation, seq) WHERE lifetime_ms > 0 AND expires_at IS NULL;
CREATE TABLE outbox (
  n INTEGER PRIMARY KEY AUTOINCREMENT, message_id BLOB NOT NULL UNIQUE, handle TEXT, user BLOB, content BLOB NOT NULL,
  installation BLOB, device INTEGER, bound INTEGER NOT NULL DEFAULT 0,
  sent_at INTEGER NOT NULL, publish BLOB, void INTEGER NOT NULL DEFAULT 0, attempted INTEGER NOT NULL DEFAULT 0,
  group_id BLOB, action BLOB, waits_for BLOB);
CREATE INDEX outbox_waiting ON outbox (waits_for) WHERE waits_for IS NOT NULL;
CREATE TABLE failed_messages (
  message_id BLOB PRIMARY KEY, n INTEGER NOT NULL, conversation BLOB NOT NULL, content BLOB NOT NULL,
  sent_at INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX failed_messages_by_conversation ON failed_messages (conversation);
CREATE TABLE unsupported_messages (
  conversation BLOB NOT NULL, sender BLOB NOT NULL, message_id BLOB NOT NULL,
  PRIMARY KEY (conversation, sender, message_id)) WITHOUT ROWID;
CREATE TABLE refs (ref TEXT PRIMARY KEY, message_id BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX refs_by_id ON refs (message_id);
CREATE TABLE lists (user BLOB PRIMARY KEY, list BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE contacts (user BLOB PRIMARY KEY, accepted INTEGER NOT NULL, blocked INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE handles (handle TEXT PRIMARY KEY, user BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX handles_by_user ON handles (user);
CREATE TABLE receipts (
  conversation BLOB, user BLOB, delivered INTEGER NOT NULL DEFAULT 0, read INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (conversation, user)) WITHOUT ROWID;
CREATE TABLE events (n INTEGER PRIMARY KEY AUTOINCREMENT, message_id BLOB, event BLOB NOT NULL);
CREATE INDEX events_by_id ON events (message_id) WHERE message_id IS NOT NULL;
CREATE TABLE event_cursors (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE unknown_rows (
  conversation BLOB NOT NULL, seq INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (conversation, seq)) WITHOUT ROWID;
";
