//! The directory of a profile, and the key or passphrase of its store.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use chat_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// The directory of a profile, with the key or passphrase of its store if it is encrypted at rest.
///
/// With either, every page of the database and of its write-ahead log is encrypted and authenticated
/// (SQLCipher). Argon2id (RFC 9106: 64 MiB, 3 passes) derives the key from a passphrase and a salt in the
/// profile directory. The key or passphrase is set when the profile is created; a profile created without one
/// stays unencrypted.
///
/// ```
/// use chat_client::StoreConfig;
/// let path = StoreConfig::from("./profile").passphrase("correct horse battery staple");
/// assert!(!format!("{path:?}").contains("horse"));
/// ```
#[derive(Clone)]
pub struct StoreConfig {
    dir: PathBuf,
    secret: Option<Secret>,
}

#[derive(Clone)]
enum Secret {
    Key(Zeroizing<[u8; 32]>),
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("dir", &self.dir)
            .field("encrypted", &self.secret.is_some())
            .finish()
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for StoreConfig {
    fn from(dir: &P) -> Self {
        Self { dir: dir.as_ref().to_owned(), secret: None }
    }
}

impl From<PathBuf> for StoreConfig {
    fn from(dir: PathBuf) -> Self {
        Self { dir, secret: None }
    }
}

impl StoreConfig {
    /// Sets the key that encrypts the store, for example from a keychain.
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

    /// Returns the directory of the profile.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the key of the database, or `None` if it is not encrypted.
    pub(super) fn database_key(&self) -> Result<Option<Zeroizing<[u8; 32]>>> {
        match &self.secret {
            None => Ok(None),
            Some(Secret::Key(key)) => Ok(Some(key.clone())),
            Some(Secret::Passphrase(passphrase)) => self.stretch(passphrase).map(Some),
        }
    }

    fn stretch(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>> {
        let salt = self.salt()?;
        let failed = |_| Error::new(ErrorKind::Invalid, "failed to derive a key from the passphrase");
        let params = Params::new(64 * 1024, 3, 1, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &salt, &mut key[..])
            .map_err(failed)?;
        Ok(key)
    }

    /// Returns the salt of the passphrase. The first call creates it durably, before anything is encrypted
    /// with it.
    fn salt(&self) -> Result<[u8; 16]> {
        let io =
            |e: std::io::Error| Error::new(ErrorKind::Unavailable, "failed to open the profile").caused_by(e);
        let file = self.dir.join("salt");
        match std::fs::read(&file) {
            Ok(salt) => salt
                .try_into()
                .map_err(|_| Error::new(ErrorKind::Corrupt, "the salt of the passphrase is malformed")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let salt = crate::random::random()?;
                // Atomic and durable: write a new file, sync it, rename it, then sync the directory.
                let new = self.dir.join("salt.new");
                let written = std::fs::File::create(&new).and_then(|mut file| {
                    file.write_all(&salt)?;
                    file.sync_all()
                });
                written
                    .and_then(|()| std::fs::rename(&new, &file))
                    .and_then(|()| std::fs::File::open(&self.dir)?.sync_all())
                    .map_err(io)?;
                Ok(salt)
            }
            Err(error) => Err(io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    fn kind(path: &StoreConfig) -> Option<ErrorKind> {
        LocalStore::open(path).err().map(|error| error.kind())
    }

    #[test]
    fn encrypted_store_has_no_plaintext_and_opens_only_with_its_own_secret() {
        for secret in [
            (|path: StoreConfig| path.passphrase("a passphrase")) as fn(StoreConfig) -> StoreConfig,
            |path| path.key([7; 32]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plain = StoreConfig::from(dir.path());
            let path = secret(plain.clone());
            {
                let mut store = LocalStore::open(&path).unwrap();
                store.set_meta("canary-key", b"canary-value").unwrap();
                store.commit_open().unwrap();
                for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
                    let bytes = std::fs::read(entry.path()).unwrap();
                    let found = bytes.windows(6).any(|six| six == b"canary" || six == b"SQLite");
                    assert!(!found, "{:?}", entry.file_name());
                }
            }
            let store = LocalStore::open(&path).unwrap();
            assert_eq!(store.meta("canary-key").unwrap().unwrap(), b"canary-value");
            drop(store);
            assert_eq!(kind(&plain.clone().passphrase("another")), Some(ErrorKind::Denied));
            assert_eq!(kind(&plain.clone().key([8; 32])), Some(ErrorKind::Denied));
            assert_eq!(kind(&plain), Some(ErrorKind::Denied), "without a key or passphrase");
        }
    }

    #[test]
    fn unencrypted_profile_rejects_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let plain = StoreConfig::from(dir.path());
        drop(LocalStore::open(&plain).unwrap());
        assert_eq!(kind(&plain.clone().key([1; 32])), Some(ErrorKind::Denied));
        assert_eq!(kind(&plain), None);
    }
}
