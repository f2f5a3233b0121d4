//! Where a profile is, and what its store is encrypted with.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use chat_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// The directory of a profile, with the key or passphrase of its store if it is encrypted at rest.
///
/// With either, every page of the database and of its write-ahead log is encrypted and authenticated
/// (SQLCipher). A passphrase is stretched by Argon2id (RFC 9106: 64 MiB, 3 passes) with a salt that lies in
/// the profile. It is set when the profile is made; a profile made without stays readable.
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
    /// Encrypted with this key, of a keychain for example.
    #[must_use]
    pub fn key(mut self, key: [u8; 32]) -> Self {
        self.secret = Some(Secret::Key(Zeroizing::new(key)));
        self
    }

    /// Encrypted with what Argon2id makes of this passphrase, which takes about a third of a second.
    #[must_use]
    pub fn passphrase(mut self, passphrase: &str) -> Self {
        self.secret = Some(Secret::Passphrase(Zeroizing::new(passphrase.to_owned())));
        self
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The key of the database, if it is encrypted.
    pub(super) fn database_key(&self) -> Result<Option<Zeroizing<[u8; 32]>>> {
        match &self.secret {
            None => Ok(None),
            Some(Secret::Key(key)) => Ok(Some(key.clone())),
            Some(Secret::Passphrase(passphrase)) => self.stretch(passphrase).map(Some),
        }
    }

    fn stretch(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>> {
        let salt = self.salt()?;
        let failed = |_| Error::new(ErrorKind::Invalid, "the passphrase cannot be used");
        let params = Params::new(64 * 1024, 3, 1, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &salt, &mut key[..])
            .map_err(failed)?;
        Ok(key)
    }

    /// The salt of the passphrase: made once, durable before anything is encrypted with it.
    fn salt(&self) -> Result<[u8; 16]> {
        let io =
            |e: std::io::Error| Error::new(ErrorKind::Unavailable, "the profile cannot be used").caused_by(e);
        let file = self.dir.join("salt");
        match std::fs::read(&file) {
            Ok(salt) => salt
                .try_into()
                .map_err(|_| Error::new(ErrorKind::Corrupt, "the salt of the passphrase does not read back")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let salt = crate::random::random()?;
                // Whole or not at all, and there before anything is encrypted with it.
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
    fn encrypted_store_leaks_nothing_and_opens_only_with_its_own_secret() {
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
            assert_eq!(kind(&plain), Some(ErrorKind::Denied), "without any");
        }
    }

    #[test]
    fn a_profile_made_without_a_secret_is_not_taken_for_an_encrypted_one() {
        let dir = tempfile::tempdir().unwrap();
        let plain = StoreConfig::from(dir.path());
        drop(LocalStore::open(&plain).unwrap());
        assert_eq!(kind(&plain.clone().key([1; 32])), Some(ErrorKind::Denied));
        assert_eq!(kind(&plain), None);
    }
}
