use ::redis::{Script, cmd};
use async_trait::async_trait;
use chat_core::backend::Presence;
use chat_core::limits::IDLE_MS;
use chat_core::{InstallationId, Result, UserId};
use futures_util::future::try_join_all;
use std::fmt;

use super::connection::RedisLink;

/// Stores the time of a beat. The key expires one second after the beat stops to count.
const BEAT: &str = r"
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
";

/// A [`Presence`] in Redis: one key per user, which expires by itself.
pub struct RedisPresence {
    connection: RedisLink,
    beat: Script,
}

impl fmt::Debug for RedisPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPresence").field("connection", &self.connection).finish_non_exhaustive()
    }
}

fn key(user: UserId) -> String {
    format!("chat:{{{}}}:presence", user.to_hex())
}

impl RedisPresence {
    /// Returns a presence backend on this connection.
    pub fn new(connection: RedisLink) -> Self {
        Self { connection, beat: Script::new(BEAT) }
    }

    async fn is_present(&self, user: UserId, now_ms: u64) -> Result<bool> {
        let (key, mut values) = (key(user), cmd("HVALS"));
        values.arg(&key);
        let beats: Vec<u64> = self.connection.run(&key, &values).await?;
        Ok(beats.iter().any(|beat| now_ms < beat.saturating_add(IDLE_MS)))
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        let key = key(user);
        if alive {
            let expires = IDLE_MS / 1000 + 1;
            let beat = &self.beat;
            return self
                .connection
                .script::<()>(&key, beat.key(&key).arg(device.to_hex()).arg(now_ms).arg(expires))
                .await;
        }
        let mut forget = cmd("HDEL");
        forget.arg(&key).arg(device.to_hex());
        self.connection.run::<()>(&key, &forget).await
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<bool>> {
        try_join_all(users.iter().map(|user| self.is_present(*user, now_ms))).await
    }
}
