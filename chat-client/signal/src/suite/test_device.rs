//! A device for unit tests: a suite with its tables in memory.

use std::collections::HashMap;

use bytes::Bytes;
use chat_client::suite::{
    AcceptResult, DecryptResult, GroupCiphertext, Peer, PrekeyBundle, Suite, SuiteTx, Table,
};
use chat_core::{ConversationId, DeviceId, InstallationId, Result, SenderKeyId};

use super::Signal;

const START_MS: u64 = 1000 * 24 * 3600 * 1000;

/// The in-memory tables of a test device, with its own clock.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) tables: HashMap<(Table, Vec<u8>), Vec<u8>>,
    pub(super) now_ms: u64,
}

impl SuiteTx for Memory {
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.tables.get(&(table, key.to_vec())).cloned())
    }
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.tables.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.tables.remove(&(table, key.to_vec()));
        Ok(())
    }
    fn clear(&mut self, table: Table) -> Result<()> {
        self.tables.retain(|(known, _), _| *known != table);
        Ok(())
    }
    fn now_ms(&self) -> u64 {
        self.now_ms
    }
}

/// A device with an installation id of its number.
pub(super) struct Device {
    pub(super) suite: Signal,
    pub(super) tx: Memory,
    n: u8,
}

impl Device {
    pub(super) fn new(n: u8) -> Self {
        let tx = Memory { now_ms: START_MS, ..Memory::default() };
        Self { suite: Signal::new(), tx, n }
    }

    pub(super) fn peer(&mut self) -> Peer {
        let identity = self.suite.identity(&mut self.tx).unwrap();
        Peer { installation: InstallationId::from_bytes([self.n; 16]), device: DeviceId::PRIMARY, identity }
    }

    pub(super) fn bundle(&mut self, first: u64) -> PrekeyBundle {
        let (signed, mut one_time) = self.suite.make_prekeys(&mut self.tx, first, 1).unwrap();
        PrekeyBundle { signed, one_time: one_time.remove(0).data }
    }

    pub(super) fn seal(&mut self, to: &Peer, text: &str) -> Bytes {
        self.suite.seal(&mut self.tx, to, text.as_bytes()).unwrap()
    }

    pub(super) fn open(&mut self, from: &Peer, sealed: &[u8]) -> DecryptResult {
        self.suite.open(&mut self.tx, from, sealed).unwrap()
    }

    pub(super) fn seal_group(
        &mut self,
        group: ConversationId,
        key: SenderKeyId,
        text: &str,
    ) -> GroupCiphertext {
        self.suite.seal_group(&mut self.tx, group, key, text.as_bytes(), true).unwrap()
    }

    pub(super) fn accept(&mut self, group: ConversationId, from: &Peer, distribution: &[u8]) -> AcceptResult {
        self.suite.accept_sender_key(&mut self.tx, group, from, distribution).unwrap()
    }

    pub(super) fn open_group(&mut self, group: ConversationId, from: &Peer, shared: &[u8]) -> DecryptResult {
        self.suite.open_group(&mut self.tx, group, from, shared, &[]).unwrap()
    }
}
