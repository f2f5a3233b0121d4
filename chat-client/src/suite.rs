//! The interface of an end-to-end encryption suite.

use std::fmt;

use bytes::Bytes;
use chat_core::replica::Unreadable;
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{ConversationId, DeviceId, InstallationId, Result, SenderKeyId};

/// Pairwise encryption between devices, and encryption for the devices of a group.
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

    /// Encrypts a plaintext once for all devices of a group, with a sender key of this device. The first call with an id
    /// makes the key. With `distribute`, the result contains the key, for devices that lack it.
    ///
    /// The ciphertext does not authenticate the group or the sender beyond the key, and a holder of the key can distribute
    /// it as its own. So the plaintext names both.
    ///
    /// # Errors
    /// If the store fails, or if the key has encrypted 2^32 - 1 messages.
    fn seal_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
        plaintext: &[u8],
        distribute: bool,
    ) -> Result<GroupCiphertext>;

    /// Accepts the sender key of another device for a group, or returns the reason why it cannot be used; then nothing
    /// is changed. Of each device and group, the suite keeps the 8 keys that it accepted last.
    ///
    /// A key that is known already keeps its state: no message can be opened twice, and skipped messages stay readable.
    /// Only a distribution too far ahead of the known state is kept beside it. Another key with a known id is
    /// [`Unreadable::Malformed`].
    ///
    /// # Errors
    /// If the store fails.
    fn accept_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        distribution: &[u8],
    ) -> Result<AcceptResult>;

    /// Decrypts a message of a group, or returns the reason why it cannot be read; then nothing is changed.
    ///
    /// - [`Unreadable::NoSession`]: the key is unknown, or the message is too far ahead of its known state. A new
    ///   distribution of the key helps.
    /// - [`Unreadable::Undecryptable`]: the message was opened before, is older than the distribution, or is forged.
    /// - [`Unreadable::Malformed`]: it cannot be parsed.
    ///
    /// # Errors
    /// If the store fails.
    fn open_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        shared: &[u8],
        control: &[u8],
    ) -> Result<DecryptResult>;

    /// Deletes a sender key of this device that it does not use again. An unknown key is no error.
    ///
    /// # Errors
    /// If the store fails.
    fn drop_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
    ) -> Result<()>;

    /// Drops every session, prekey and sender key of this device; keeps the identity, and the sender keys of other
    /// devices. A sender key that is made afterwards needs a new id: devices that know the old id refuse another key.
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

/// Success, or the reason why a sender key cannot be used.
pub type AcceptResult = std::result::Result<(), Unreadable>;

/// A message that is encrypted once for all devices of a group.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct GroupCiphertext {
    /// The ciphertext for all holders of the sender key.
    pub shared: Bytes,
    /// The sender key as it is before this message; empty if not requested. It is secret: the caller encrypts it
    /// pairwise for devices that lack it. They can open this message and later ones, but none before.
    pub distribution: Bytes,
    /// A part that all members process, opaque to the caller and the server. Empty in the Signal suite; an MLS suite
    /// has its commit here.
    pub control: Bytes,
}

impl fmt::Debug for GroupCiphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCiphertext").field("shared", &self.shared.len()).finish_non_exhaustive()
    }
}

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
    /// The device's own sender keys.
    OwnSenderKeys = 6,
    /// Sender keys of other devices; survive [`Suite::reset`].
    SenderKeys = 7,
}
