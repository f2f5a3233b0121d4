//! Presence. Beats are in memory; the time at which a user was last seen outlives the process.

use async_trait::async_trait;
use chat_core::backend::Presence;
use chat_core::presence::UserPresence;
use chat_core::{InstallationId, Result, UserId};

use super::{EmbeddedStore, Tables, failed, keys};

impl Tables {
    fn read_last_seen(&self, user: UserId) -> Result<Option<u64>> {
        let found = self.last_seen.get(user.as_bytes()).map_err(failed)?;
        found.map(|at| keys::number(&at)).transpose()
    }

    /// Writes the time without waiting for the disk: a crash may lose the last ones.
    fn write_last_seen(&self, user: UserId, at_ms: u64) -> Result<()> {
        self.last_seen.insert(user.as_bytes(), at_ms.to_be_bytes()).map_err(failed)
    }
}

impl EmbeddedStore {
    /// Returns the presence of a user as far as this process knows it.
    async fn beats_of(&self, user: UserId, now_ms: u64) -> Result<UserPresence> {
        let answers = self.beats.query(&[user], now_ms).await?;
        Ok(answers.into_iter().next().unwrap_or(UserPresence::HIDDEN))
    }
}

#[async_trait]
impl Presence for EmbeddedStore {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        let before = self.beats_of(user, now_ms).await?;
        self.beats.beat(user, device, alive, now_ms).await?;
        match self.beats_of(user, now_ms).await? {
            after if after == before => Ok(()),
            UserPresence::Online => self.tables.write_last_seen(user, now_ms),
            UserPresence::Offline { last_seen_ms } => {
                last_seen_ms.map_or(Ok(()), |at| self.tables.write_last_seen(user, at))
            }
        }
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<UserPresence>> {
        let mut answers = self.beats.query(users, now_ms).await?;
        for (user, answer) in users.iter().zip(&mut answers) {
            if *answer == UserPresence::HIDDEN {
                *answer = UserPresence::Offline { last_seen_ms: self.tables.read_last_seen(*user)? };
            }
        }
        Ok(answers)
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        self.beats.forget(user).await?;
        self.tables.last_seen.remove(user.as_bytes()).map_err(failed)
    }
}
