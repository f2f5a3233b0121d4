//! Conversion of a data directory of format 1, which kept a whole state in one value.

use std::path::Path;

use chat_core::codec::state;
use chat_core::{ConversationId, Error, ErrorKind, Result};
use fjall::{KeyspaceCreateOptions, PersistMode};

use super::watermark::Watermark;
use super::{FORMAT, SEALED, Tables, corrupt, failed, io, read_format, write_format};

/// Content of the file `FORMAT` in a directory that can be converted.
const BEFORE: &str = "chat-store embedded 1\n";

/// Conversations in one batch.
const BATCH: usize = 1000;

/// Converts a directory to the format of this release. Returns the number of conversations; 0 if the directory has
/// this format.
pub(super) fn run(path: &Path) -> Result<usize> {
    match read_format(path)?.as_deref() {
        Some(FORMAT) => return Ok(0),
        Some(BEFORE) => {}
        Some(_) => {
            return Err(Error::new(ErrorKind::Unsupported, "the data directory has an unknown format"));
        }
        None => return Err(Error::new(ErrorKind::NotFound, "there is no data set in this directory")),
    }
    if path.join(SEALED).exists() {
        return Err(Error::new(ErrorKind::Unsupported, "the data set was sealed for migration to a cluster"));
    }
    let tables = Tables::open(path)?;
    Watermark::open(&path.join("watermark"), tables.commits()?)?;
    let whole = tables.database.keyspace("state", KeyspaceCreateOptions::default).map_err(failed)?;
    let mut count = 0;
    let mut batch = tables.database.batch();
    for guard in whole.iter() {
        let (key, value) = guard.into_inner().map_err(failed)?;
        let conversation = ConversationId::parse(&key).map_err(|_| corrupt())?;
        tables.put_state(&mut batch, conversation, &state::decode_format_1(&value)?.into());
        count += 1;
        if count % BATCH == 0 {
            let full = std::mem::replace(&mut batch, tables.database.batch());
            full.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
        }
    }
    batch.durability(Some(PersistMode::SyncAll)).commit().map_err(failed)?;
    // An interrupted conversion starts over until the new format is on disk. The states of format 1 are removed after it.
    write_format(path).map_err(io)?;
    tables.database.delete_keyspace(whole).map_err(failed)?;
    Ok(count)
}
