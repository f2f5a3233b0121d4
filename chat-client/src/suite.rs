//! The interface of an end-to-end encryption suite.

use std::fmt;

use bytes::Bytes;
use chat_core::replica::Unreadable;
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{DeviceId, InstallationId, Result};

/// Pairwise encryption between devices.
///
/// The trait is object-safe and synchronous. One task (on native targets one thread) owns the suite together
/// with the local store. All changes of the suite are part of the one open transaction, so ratchet state,
/// plaintext, cursors and outbox become durable together or not at all.
///
/// A call that panics does not stop the client: it drops the open transaction, calls [`clear_cache`](Self::clear_cache),
/// loads the last durable state, and does not repeat the call with this message, draft or bundle.
pub trait Suite: fmt::Debug + Send {
    /// Returns the number of the suite. The client lists it with the identity key, and marks prekeys and boxes with it; a
    /// device that lists no key of this suite receives no message.
    fn id(&self) -> SuiteId;

    /// Returns the public identity key of this device. The first call creates it.
    ///
    /// # Errors
    /// If the store or the system's randomness fails.
    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes>;

    /// Returns whether there is a session that can encrypt for this device.
    ///
    /// # Errors
    /// If the store fails.
    fn has_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer) -> Result<bool>;

    /// Starts a session from a prekey bundle. The caller has verified the bundle's signature by the device
    /// key.
    ///
    /// # Errors
    /// `Invalid` if the suite rejects the bundle; then nothing is changed.
    fn start_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, bundle: &PrekeyBundle) -> Result<()>;

    /// Encrypts a plaintext for a device.
    ///
    /// # Errors
    /// `NotFound` without a usable session.
    fn seal(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, plaintext: &[u8]) -> Result<Bytes>;

    /// Decrypts a message from a device, or returns the reason why it cannot be read; then nothing is
    /// changed.
    ///
    /// # Errors
    /// If the store fails.
    fn open(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, sealed: &[u8]) -> Result<DecryptResult>;

    /// Ends the session with this device, so that the next message to it starts a new one. Messages in flight
    /// in the old session stay readable.
    ///
    /// # Errors
    /// If the store fails.
    fn end_session(&mut self, tx: &mut dyn SuiteTx, peer: InstallationId) -> Result<()>;

    /// Encrypts a body under a fresh key; the box of each recipient will contain the key. Usually calls
    /// [`body::encrypt`](crate::body::encrypt).
    fn encrypt_body(&self, key: &[u8; 32], context: &[u8], content: &[u8]) -> Option<Vec<u8>>;

    /// Decrypts a body with the key from a box. Returns `None` if the body does not belong to the key.
    /// Usually calls [`body::decrypt`](crate::body::decrypt).
    fn decrypt_body(&self, key: &[u8], context: &[u8], body: &[u8]) -> Option<Vec<u8>>;

    /// Makes one-time prekeys with ids from `first`. Returns the signed part of the bundle, and the prekeys.
    ///
    /// # Errors
    /// If the store or the system's randomness fails.
    fn make_prekeys(
        &mut self,
        tx: &mut dyn SuiteTx,
        first: u64,
        count: u64,
    ) -> Result<(Bytes, Vec<OneTimePrekey>)>;

    /// Drops every session and prekey; keeps the identity.
    ///
    /// # Errors
    /// If the store fails.
    fn reset(&mut self, tx: &mut dyn SuiteTx) -> Result<()>;

    /// Drops state that is cached in memory; the next call reads the store. Called when a store is opened.
    fn clear_cache(&mut self);

    /// Writes changes that are still in memory into the transaction. The caller commits it next.
    ///
    /// # Errors
    /// If the store fails.
    fn flush(&mut self, tx: &mut dyn SuiteTx) -> Result<()>;
}

/// The plaintext of a message, or the reason why it cannot be read.
pub type DecryptResult = std::result::Result<Vec<u8>, Unreadable>;

/// The device at the other end of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Peer {
    pub installation: InstallationId,
    pub device: DeviceId,
    /// Its suite identity key, from a device list that the account key signed.
    pub identity: Bytes,
}

/// A prekey bundle as its device uploaded it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct PrekeyBundle {
    /// The part that the device key signed.
    pub signed: Bytes,
    /// A one-time prekey; empty if the device had none left.
    pub one_time: Bytes,
}

/// The suite's access to the open transaction.
pub trait SuiteTx {
    /// Returns the value of a key.
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

    /// Returns the current time in milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// A table that a suite may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(clippy::exhaustive_enums)]
pub enum Table {
    /// The device's own identity; survives [`Suite::reset`].
    Identity = 0,
    Sessions = 1,
    /// One-time prekeys.
    Prekeys = 2,
    SignedPrekeys = 3,
    KemPrekeys = 4,
    /// Base keys of first messages that used a reusable KEM prekey.
    SeenBaseKeys = 5,
}
