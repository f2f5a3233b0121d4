use ::redis::{Script, cmd};
use async_trait::async_trait;
use chat_core::backend::Presence;
use chat_core::limits::{IDLE_MS, LAST_SEEN_DAYS};
use chat_core::presence::UserPresence;
use chat_core::{InstallationId, Result, UserId};
use futures_util::future::try_join_all;
use std::fmt;

use super::connection::RedisLink;

/// Stores the time of a beat of a device, or removes the device. The key of the beats expires one second after the last of
/// them stops to count, the time at which the user was last seen much later.
const BEAT: &str = r"
if ARGV[2] == '1' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
elseif redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
local seen = redis.call('GET', KEYS[2])
if not seen or tonumber(seen) < tonumber(ARGV[3]) then
  seen = ARGV[3]
end
redis.call('SET', KEYS[2], seen, 'EX', ARGV[5])
return 1
";

/// Returns the time at which the user was last seen, or an empty string, and the times of its beats.
const QUERY: &str = r"
local answer = redis.call('HVALS', KEYS[1])
table.insert(answer, 1, redis.call('GET', KEYS[2]) or '')
return answer
";

/// A [`Presence`] in Redis: for each user one key of beats and one of the time at which it was last seen, which expire by
/// themselves.
pub struct RedisPresence {
    connection: RedisLink,
    beat: Script,
    query: Script,
}

impl fmt::Debug for RedisPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPresence").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Returns the keys of the beats of a user, and of the time at which it was last seen.
fn keys(user: UserId) -> [String; 2] {
    ["presence", "seen"].map(|part| format!("chat:{{{}}}:{part}", user.to_hex()))
}

impl RedisPresence {
    /// Returns a presence backend on this connection.
    pub fn new(connection: RedisLink) -> Self {
        Self { connection, beat: Script::new(BEAT), query: Script::new(QUERY) }
    }

    async fn presence_of(&self, user: UserId, now_ms: u64) -> Result<UserPresence> {
        let [beats, seen] = keys(user);
        let times: Vec<String> = self.connection.script(&beats, self.query.key(&beats).key(&seen)).await?;
        let mut times = times.iter().map(|time| time.parse::<u64>().ok());
        let last_seen_ms = times.next().flatten();
        if times.flatten().any(|beat| now_ms < beat.saturating_add(IDLE_MS)) {
            return Ok(UserPresence::Online);
        }
        Ok(UserPresence::Offline { last_seen_ms })
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        let [beats, seen] = keys(user);
        let mut beat = self.beat.key(&beats);
        beat.key(&seen).arg(device.to_hex()).arg(u8::from(alive)).arg(now_ms);
        beat.arg(IDLE_MS / 1000 + 1).arg(LAST_SEEN_DAYS * 24 * 3600);
        self.connection.script::<()>(&beats, &beat).await
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<UserPresence>> {
        try_join_all(users.iter().map(|user| self.presence_of(*user, now_ms))).await
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        let [beats, seen] = keys(user);
        let mut forget = cmd("DEL");
        forget.arg(&beats).arg(&seen);
        self.connection.run::<()>(&beats, &forget).await
    }
}
