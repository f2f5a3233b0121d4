use std::collections::HashMap;
use std::fmt;

use chat_client::Result;
use chat_client::suite::{SuiteTx, Table};

/// The tables of an encryption suite, in memory: for tests of a suite without a client.
///
/// ```
/// use chat_client::Suite;
/// use chat_testing::{SuiteTables, Unencrypted};
/// let mut tables = SuiteTables::default();
/// let identity = Unencrypted::new().identity(&mut tables).unwrap();
/// assert_eq!(Unencrypted::new().identity(&mut tables), Ok(identity));
/// ```
#[derive(Default)]
pub struct SuiteTables {
    values: HashMap<(Table, Vec<u8>), Vec<u8>>,
    now_ms: u64,
}

impl SuiteTables {
    /// Returns empty tables whose clock shows this time, in milliseconds since 1970. It stands still.
    pub fn at(now_ms: u64) -> Self {
        Self { now_ms, ..Self::default() }
    }

    /// Returns whether no table has a value.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

// The values are keys.
impl fmt::Debug for SuiteTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuiteTables").field("values", &self.values.len()).finish_non_exhaustive()
    }
}

impl SuiteTx for SuiteTables {
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.values.get(&(table, key.to_vec())).cloned())
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.values.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.values.remove(&(table, key.to_vec()));
        Ok(())
    }

    fn clear(&mut self, table: Table) -> Result<()> {
        self.values.retain(|(known, _), _| *known != table);
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }
}
