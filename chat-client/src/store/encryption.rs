//! The key of an encrypted database.

use argon2::{Algorithm, Argon2, Params, Version};
use chat_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

use crate::config::Secret;
use crate::platform::{MountedProfile, Platform, random};

/// Returns the key of the database of a profile with this secret.
pub(super) fn database_key(
    secret: &Secret,
    mounted: &dyn MountedProfile,
    platform: &dyn Platform,
) -> Result<Zeroizing<[u8; 32]>> {
    match secret {
        Secret::Key(key) => Ok(key.clone()),
        Secret::Passphrase(passphrase) => stretch(passphrase, &mounted.salt(random(platform)?)?),
    }
}

fn stretch(passphrase: &str, salt: &[u8; 16]) -> Result<Zeroizing<[u8; 32]>> {
    let failed = |_| Error::new(ErrorKind::Invalid, "failed to derive a key from the passphrase");
    let params = Params::new(64 * 1024, 3, 1, Some(32)).map_err(failed)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key[..])
        .map_err(failed)?;
    Ok(key)
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Profile;
    use crate::store::open_for_test;

    fn kind(dir: &Path, profile: &Profile) -> Option<ErrorKind> {
        open_for_test(dir, profile).err().map(|error| error.kind())
    }

    #[test]
    fn encrypted_store_has_no_plaintext_and_opens_only_with_its_own_secret() {
        for secret in
            [(|profile: Profile| profile.passphrase("a passphrase")) as fn(Profile) -> Profile, |profile| {
                profile.key([7; 32])
            }]
        {
            let dir = tempfile::tempdir().unwrap();
            let plain = Profile::from("p");
            let profile = secret(plain.clone());
            {
                let mut store = open_for_test(dir.path(), &profile).unwrap();
                store.set_meta("canary-key", b"canary-value").unwrap();
                store.commit_open().unwrap();
                for entry in std::fs::read_dir(dir.path().join("p")).unwrap().flatten() {
                    let bytes = std::fs::read(entry.path()).unwrap();
                    let found = bytes.windows(6).any(|six| six == b"canary" || six == b"SQLite");
                    assert!(!found, "{:?}", entry.file_name());
                }
            }
            let store = open_for_test(dir.path(), &profile).unwrap();
            assert_eq!(store.meta("canary-key").unwrap().unwrap(), b"canary-value");
            drop(store);
            assert_eq!(kind(dir.path(), &plain.clone().passphrase("another")), Some(ErrorKind::Denied));
            assert_eq!(kind(dir.path(), &plain.clone().key([8; 32])), Some(ErrorKind::Denied));
            assert_eq!(kind(dir.path(), &plain), Some(ErrorKind::Denied), "without a key or passphrase");
        }
    }

    #[test]
    fn unencrypted_profile_rejects_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Profile::from("p");
        drop(open_for_test(dir.path(), &plain).unwrap());
        assert_eq!(kind(dir.path(), &plain.clone().key([1; 32])), Some(ErrorKind::Denied));
        assert_eq!(kind(dir.path(), &plain), None);
    }
}
