//! Three devices with the Signal suite: a session between two of them, and one without sessions.

use std::collections::HashMap;

use chat_client::suite::Suite;
use chat_client::suite::{Peer, PrekeyBundle, SuiteTx, Table};
use chat_core::{DeviceId, InstallationId, Result};
use chat_signal::Signal;

/// The tables of a device.
#[derive(Clone, Default)]
pub struct Tables(HashMap<(Table, Vec<u8>), Vec<u8>>);

impl SuiteTx for Tables {
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.0.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.0.remove(&(table, key.to_vec()));
        Ok(())
    }
    fn clear(&mut self, table: Table) -> Result<()> {
        self.0.retain(|(known, _), _| *known != table);
        Ok(())
    }
    fn now_ms(&self) -> u64 {
        1_800_000_000_000
    }
}

/// The devices, and what they sent.
#[allow(dead_code)] // each target uses a part
pub struct World {
    pub alice: Peer,
    pub bob: Peer,
    pub bundle: PrekeyBundle,
    pub carol: Tables,
    /// Before and after Bob opened Alice's first message.
    pub bob_before: Tables,
    pub bob_after: Tables,
    pub first_message: Vec<u8>,
    pub later_message: Vec<u8>,
}

thread_local! {
    pub static WORLD: World = World::new();
}

fn device(n: u8, tables: &mut Tables) -> (Signal, Peer) {
    let mut suite = Signal::new();
    let identity = suite.identity(tables).unwrap();
    let installation = InstallationId::from_bytes([n; 16]);
    (suite, Peer { installation, device: DeviceId::PRIMARY, identity })
}

impl World {
    fn new() -> Self {
        let (mut alice_tables, mut bob_before, mut carol) = Default::default();
        let (mut alice_suite, alice) = device(1, &mut alice_tables);
        let (mut bob_suite, bob) = device(2, &mut bob_before);
        let _ = device(3, &mut carol);
        let (signed, mut one_time) = bob_suite.make_prekeys(&mut bob_before, 1, 2).unwrap();
        let bundle = PrekeyBundle { signed, one_time: one_time.remove(0).data };
        alice_suite.start_session(&mut alice_tables, &bob, &bundle).unwrap();
        let first_message = alice_suite.seal(&mut alice_tables, &bob, b"first").unwrap().to_vec();
        let mut bob_after = bob_before.clone();
        assert!(bob_suite.open(&mut bob_after, &alice, &first_message).unwrap().is_ok());
        let answer = bob_suite.seal(&mut bob_after, &alice, b"answer").unwrap();
        bob_suite.flush(&mut bob_after).unwrap();
        assert!(alice_suite.open(&mut alice_tables, &bob, &answer).unwrap().is_ok());
        let later_message = alice_suite.seal(&mut alice_tables, &bob, b"later").unwrap().to_vec();
        Self { alice, bob, bundle, carol, bob_before, bob_after, first_message, later_message }
    }
}
