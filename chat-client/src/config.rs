//! The configuration of a client.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "native")]
use chat_core::Result;
use chat_core::backend::Dialer;
#[cfg(feature = "encrypted")]
use zeroize::Zeroizing;

use crate::platform::{Platform, Storage};
use crate::suite::Suite;

/// The name of a profile, with the key or passphrase of its store if it is encrypted at rest.
///
/// A profile holds the keys and messages of one device. One process at a time has it open. With the feature
/// `encrypted` and a key or passphrase, every page of the database and of its write-ahead log is encrypted and
/// authenticated (SQLCipher). Argon2id (RFC 9106: 64 MiB, 3 passes) derives the key from a passphrase and a salt beside
/// the database. The key or passphrase is set when the profile is created; a profile created without one stays
/// unencrypted.
#[derive(Clone)]
pub struct Profile {
    pub(crate) name: String,
    pub(crate) secret: Option<Secret>,
}

/// The secret of an encrypted profile.
#[derive(Clone)]
pub(crate) enum Secret {
    #[cfg(feature = "encrypted")]
    Key(Zeroizing<[u8; 32]>),
    #[cfg(feature = "encrypted")]
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("name", &self.name)
            .field("encrypted", &self.secret.is_some())
            .finish()
    }
}

impl From<&str> for Profile {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), secret: None }
    }
}

impl From<String> for Profile {
    fn from(name: String) -> Self {
        Self { name, secret: None }
    }
}

#[cfg(feature = "encrypted")]
impl Profile {
    /// Sets the key that encrypts the store, for example from a keychain.
    ///
    /// ```
    /// use chat_client::Profile;
    /// let profile = Profile::from("alice").passphrase("correct horse battery staple");
    /// assert!(!format!("{profile:?}").contains("horse"));
    /// ```
    #[must_use]
    pub fn key(mut self, key: [u8; 32]) -> Self {
        self.secret = Some(Secret::Key(Zeroizing::new(key)));
        self
    }

    /// Sets the passphrase that encrypts the store. Deriving the key with Argon2id takes about a third of a
    /// second.
    #[must_use]
    pub fn passphrase(mut self, passphrase: &str) -> Self {
        self.secret = Some(Secret::Passphrase(Zeroizing::new(passphrase.to_owned())));
        self
    }
}

/// The server, profile, encryption suite and options of a client.
pub struct ClientConfig {
    pub(crate) profile: Profile,
    pub(crate) suite: Box<dyn Suite>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) token: Option<String>,
    pub(crate) strict: bool,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("profile", &self.profile)
            .field("dialer", &self.dialer)
            .field("token", &self.token.is_some())
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// Returns a configuration for a server, `wss://host[:port]`, or `ws://host:port` on this machine. Profiles are
    /// directories in the current directory; [`directory`](Self::directory) sets another one.
    ///
    /// # Errors
    /// `Invalid` if the URL has another form.
    #[cfg(feature = "native")]
    pub fn new(server: &str, profile: impl Into<Profile>, suite: Box<dyn Suite>) -> Result<Self> {
        let dialer = chat_transport::dial::WebSocketDialer::new(server)?;
        Ok(Self::with_dialer(Arc::new(dialer), profile, suite))
    }

    /// Returns a configuration for a server that a dialer reaches, for example one with its own certificates, or one in
    /// the same process.
    #[cfg(feature = "native")]
    pub fn with_dialer(dialer: Arc<dyn Dialer>, profile: impl Into<Profile>, suite: Box<dyn Suite>) -> Self {
        let storage = Arc::new(crate::platform::native::Directory::new("."));
        let platform = Arc::new(crate::platform::native::Native::new());
        Self::with_platform(platform, storage, dialer, profile, suite)
    }

    /// Sets the platform, for example one with another clock. Tasks, timers and randomness come from it too.
    #[must_use]
    pub fn platform(mut self, platform: Arc<dyn Platform>) -> Self {
        self.platform = platform;
        self
    }

    /// Returns a configuration for a platform: its tasks and clock, its storage, and its connections.
    pub fn with_platform(
        platform: Arc<dyn Platform>,
        storage: Arc<dyn Storage>,
        dialer: Arc<dyn Dialer>,
        profile: impl Into<Profile>,
        suite: Box<dyn Suite>,
    ) -> Self {
        Self { profile: profile.into(), suite, dialer, storage, platform, token: None, strict: false }
    }

    /// Sets the directory that holds profiles.
    #[cfg(feature = "native")]
    #[must_use]
    pub fn directory(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.storage = Arc::new(crate::platform::native::Directory::new(path));
        self
    }

    /// Sets the token that logs this device in. It replaces the token in the profile. A server with open registration
    /// needs none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Refuses messages to a user after a change of the account key, until
    /// [`accept_identity`](crate::Client::accept_identity) accepts the new key. Without this option the client only
    /// reports the change as an event and keeps sending. In both modes a message written before the change is never
    /// encrypted for the new key.
    #[must_use]
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }
}
