//! Checks of the data directory of a server with the embedded store.

use std::path::Path;
use std::time::Duration;

use chat_core::ErrorKind;
use chat_store::{EmbeddedStore, Verification};

use crate::error::ServerError;

/// Checks that the data directory can be opened, without creating it. Returns a line about it. A directory that another
/// process has open is not checked further, and is no error.
///
/// # Errors
/// The directory is damaged or sealed.
pub fn check(path: impl AsRef<Path>) -> Result<String, ServerError> {
    let path = path.as_ref();
    if !EmbeddedStore::exists(path) {
        return Ok(format!("store: no data yet: the first start makes {}", path.display()));
    }
    match EmbeddedStore::open(path) {
        Ok(_) => Ok(format!("store: data in {}", path.display())),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(format!(
            "store: data in {}, open in another process, such as a running server",
            path.display()
        )),
        Err(error) => Err(failed(path, error)),
    }
}

/// Converts the data of the previous release's format. Returns a line about it. An earlier release refuses the
/// directory afterwards. `restored`: the directory is an older copy, and devices must compare their cursors with it.
///
/// # Errors
/// There is no data, its format is of another release, another process has it open, or as [`check`].
pub fn migrate(path: impl AsRef<Path>, restored: bool) -> Result<String, ServerError> {
    let path = path.as_ref();
    let converted = EmbeddedStore::convert(path).map_err(|error| failed(path, error))?;
    if restored {
        EmbeddedStore::renew_epoch(path).map_err(|error| failed(path, error))?;
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
/// A promise does not hold, another process has the directory open for more than 5 s, or as [`check`].
pub fn verify(path: impl AsRef<Path>) -> Result<Verification, ServerError> {
    let path = path.as_ref();
    let store = open(path).map_err(|error| failed(path, error))?;
    store
        .verify()
        .map_err(|error| ServerError::new(format!("verification failed: {}", ServerError::from(error))))
}

/// Opens the directory. Waits up to 5 seconds for another process that has it open, such as a server that is ending.
fn open(path: &Path) -> chat_core::Result<EmbeddedStore> {
    for _ in 0..50 {
        match EmbeddedStore::open(path) {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                std::thread::sleep(Duration::from_millis(100))
            }
            opened => return opened,
        }
    }
    EmbeddedStore::open(path)
}

fn failed(path: &Path, error: chat_core::Error) -> ServerError {
    ServerError::new(format!("store: {}: {}", path.display(), ServerError::from(error)))
}
