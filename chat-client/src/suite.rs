//! What an end-to-end encryption suite does.

use std::fmt;

use bytes::Bytes;
use chat_core::replica::Unreadable;
use chat_core::wire::OneTimePrekey;
use chat_core::{DeviceId, InstallationId, Result};

/// Pairwise encryption between devices.
///
/// Object-safe and synchronous: a suite is owned by one task (a thread where there are threads) together
/// with the local store, and everything it changes lies in the one open transaction, so ratchet state,
/// plaintext, position and outbox become durable together or not at all.
pub trait Suite: fmt::Debug + Send {
    /// The public identity key of this device, made at the first call.
    ///
    /// # Errors
    /// If the store or the system's randomness fails.
    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes>;

    /// Whether there is a session to send to this device with.
    ///
    /// # Errors
    /// If the store fails.
    fn has_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer) -> Result<bool>;

    /// Begins a session from a prekey bundle whose signature by the device key was checked.
    ///
    /// # Errors
    /// `Invalid` if the bundle is not a proper one; nothing is changed then.
    fn start_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, bundle: &PrekeyBundle) -> Result<()>;

    /// Encrypts for a device.
    ///
    /// # Errors
    /// `NotFound` without a session that can be used.
    fn seal(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, plaintext: &[u8]) -> Result<Bytes>;

    /// Decrypts what a device sent, or says why it cannot be read: nothing is changed then.
    ///
    /// # Errors
    /// If the store fails.
    fn open(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, sealed: &[u8]) -> Result<DecryptResult>;

    /// Lets the next message to this device begin a new session. What is on its way in the old one can still
    /// be read.
    ///
    /// # Errors
    /// If the store fails.
    fn end_session(&mut self, tx: &mut dyn SuiteTx, peer: InstallationId) -> Result<()>;

    /// Encrypts a body under a fresh key; the box of each recipient will hold the key. A suite that has no
    /// reason to differ calls [`body::encrypt`](crate::body::encrypt).
    fn encrypt_body(&self, key: &[u8; 32], context: &[u8], content: &[u8]) -> Option<Vec<u8>>;

    /// Opens a body with the key of a box; `None` if it does not belong to the key. Usually
    /// [`body::decrypt`](crate::body::decrypt).
    fn decrypt_body(&self, key: &[u8], context: &[u8], body: &[u8]) -> Option<Vec<u8>>;

    /// Makes one-time prekeys with ids from `first`, and the signed part of the bundle.
    ///
    /// # Errors
    /// If the store or the system's randomness fails.
    fn make_prekeys(
        &mut self,
        tx: &mut dyn SuiteTx,
        first: u64,
        count: u64,
    ) -> Result<(Bytes, Vec<OneTimePrekey>)>;

    /// Drops every session and prekey; the identity stays.
    ///
    /// # Errors
    /// If the store fails.
    fn reset(&mut self, tx: &mut dyn SuiteTx) -> Result<()>;

    /// Writes what is still in memory into the transaction, which is about to be committed.
    ///
    /// # Errors
    /// If the store fails.
    fn flush(&mut self, tx: &mut dyn SuiteTx) -> Result<()>;
}

/// What a device sent, or why it cannot be read.
pub type DecryptResult = std::result::Result<Vec<u8>, Unreadable>;

/// The device at the other end of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Peer {
    /// Its installation.
    pub installation: InstallationId,
    /// Its number.
    pub device: DeviceId,
    /// Its suite identity key, from a device list that its account key signed.
    pub identity: Bytes,
}

/// A prekey bundle as its device uploaded it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct PrekeyBundle {
    /// The part that the device key signed.
    pub signed: Bytes,
    /// A one-time prekey; empty when none was left.
    pub one_time: Bytes,
}

/// The suite's part of the open transaction.
pub trait SuiteTx {
    /// The value of a key.
    ///
    /// # Errors
    /// If the store fails.
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Sets the value of a key.
    ///
    /// # Errors
    /// If the store fails.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()>;

    /// Removes a key.
    ///
    /// # Errors
    /// If the store fails.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()>;

    /// Removes all keys of a table.
    ///
    /// # Errors
    /// If the store fails.
    fn clear(&mut self, table: Table) -> Result<()>;

    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The tables a suite may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(clippy::exhaustive_enums)]
pub enum Table {
    /// The own identity; survives everything.
    Identity = 0,
    /// Sessions.
    Sessions = 1,
    /// One-time prekeys.
    Prekeys = 2,
    /// Signed prekeys.
    SignedPrekeys = 3,
    /// KEM prekeys.
    KemPrekeys = 4,
    /// Base keys seen with reusable KEM prekeys.
    SeenBaseKeys = 5,
}
