//! Checks of the data directory of a server with the embedded store. No server may run on it meanwhile.

use std::path::Path;

use chat_store::{EmbeddedStore, Verification};

use crate::error::ServerError;

/// Checks that the data directory can be opened, without creating it. Returns a line about it.
///
/// # Errors
/// The directory is damaged, sealed, or open in another process.
pub fn check(path: impl AsRef<Path>) -> Result<String, ServerError> {
    let path = path.as_ref();
    if !EmbeddedStore::exists(path) {
        return Ok(format!("store: no data yet: the first start makes {}", path.display()));
    }
    open(path).map(|_| format!("store: data in {}", path.display()))
}

/// Converts the data of the previous release's format. Returns a line about it. An earlier release refuses the
/// directory afterwards. `restored`: the directory is an older copy, and devices must compare their cursors with it.
///
/// # Errors
/// There is no data, its format is of another release, or as [`check`].
pub fn migrate(path: impl AsRef<Path>, restored: bool) -> Result<String, ServerError> {
    let path = path.as_ref();
    let failed = |error| ServerError::new(format!("store: {}: {}", path.display(), ServerError::from(error)));
    let converted = EmbeddedStore::convert(path).map_err(failed)?;
    if restored {
        EmbeddedStore::renew_epoch(path).map_err(failed)?;
        return Ok(format!("store: {} has a new store epoch: devices compare their cursors", path.display()));
    }
    Ok(match converted {
        0 => format!("store: {} has this release's format", path.display()),
        count => format!("store: converted {count} conversations in {}", path.display()),
    })
}

/// Reads all data of the directory and checks every promise about it.
///
/// # Errors
/// A promise that does not hold, or as [`check`].
pub fn verify(path: impl AsRef<Path>) -> Result<Verification, ServerError> {
    let failed = |error| ServerError::new(format!("verification failed: {}", ServerError::from(error)));
    open(path.as_ref())?.verify().map_err(failed)
}

fn open(path: &Path) -> Result<EmbeddedStore, ServerError> {
    let failed = |error| ServerError::new(format!("store: {}: {}", path.display(), ServerError::from(error)));
    EmbeddedStore::open(path).map_err(failed)
}
