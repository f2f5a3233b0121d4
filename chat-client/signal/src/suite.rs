use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chat_client::body;
use chat_client::suite::{
    AcceptResult, DecryptResult, GroupCiphertext, Peer, PrekeyBundle, Suite, SuiteTx, Table,
};
use chat_core::replica::Unreadable;
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, Result, SenderKeyId};
use futures_util::FutureExt;
use libsignal_protocol::kem;
use libsignal_protocol::{
    CiphertextMessage, CiphertextMessageType, GenericSignedPreKey, IdentityKey, IdentityKeyPair, KeyPair,
    KyberPreKeyRecord, PreKeyBundle, PreKeyRecord, PreKeySignalMessage, ProtocolAddress, PublicKey,
    SessionRecord, SessionUsabilityRequirements, SignalMessage, SignalProtocolError, SignedPreKeyRecord,
    Timestamp, message_decrypt, message_encrypt, process_prekey_bundle,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::bundle::{OneTimePart, SignedPart};
use crate::checks;
use crate::stores::{Identities, OneKemPreKey, OnePreKey, OneSession, OneSignedPreKey};

mod sender_keys;

/// Milliseconds after which a signed prekey is replaced.
const ROTATE_MS: u64 = 7 * 24 * 3600 * 1000;

const DAY_MS: u64 = 24 * 3600 * 1000;

const WHISPER: u8 = CiphertextMessageType::Whisper as u8;
const FIRST: u8 = CiphertextMessageType::PreKey as u8;

/// The Signal protocol as a [`Suite`].
pub struct Signal {
    rng: StdRng,
    own: Option<(IdentityKeyPair, u32)>,
    /// Cached sessions, each with whether it changed since the last commit.
    sessions: HashMap<InstallationId, (SessionRecord, bool)>,
}

/// Maximum number of sessions that stay in the cache after a commit.
const SESSIONS: usize = 1024;

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("sessions", &self.sessions.len()).finish_non_exhaustive()
    }
}

impl Default for Signal {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the result of a libsignal future. All its stores are in memory, so it is ready at the first poll.
fn ready<T>(future: impl Future<Output = Result<T, SignalProtocolError>>) -> Result<T, SignalProtocolError> {
    future
        .now_or_never()
        .unwrap_or_else(|| Err(SignalProtocolError::InvalidState("suite", "a memory store waited".into())))
}

fn signal(error: SignalProtocolError) -> Error {
    match error {
        SignalProtocolError::SessionNotFound(_) => Error::new(ErrorKind::NotFound, "there is no session"),
        error => Error::new(ErrorKind::Invalid, "the Signal protocol failed").caused_by(error),
    }
}

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "failed to decode a key in the local store")
}

/// Returns the libsignal address of a peer. libsignal logs addresses, so the name is a constant.
fn address(peer: &Peer) -> Result<ProtocolAddress> {
    let device = libsignal_protocol::DeviceId::new(peer.device.get());
    Ok(ProtocolAddress::new("peer".into(), device.map_err(|_| corrupt())?))
}

/// Returns the libsignal address of this device, also a constant.
fn own_address() -> Result<ProtocolAddress> {
    let device = libsignal_protocol::DeviceId::new(1);
    Ok(ProtocolAddress::new("own".into(), device.map_err(|_| corrupt())?))
}

fn time(tx: &dyn SuiteTx) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(tx.now_ms())
}

impl Signal {
    /// Returns a suite with a random generator that is seeded by the system.
    pub fn new() -> Self {
        Self { rng: StdRng::from_os_rng(), own: None, sessions: HashMap::new() }
    }

    fn own(&mut self, tx: &mut dyn SuiteTx) -> Result<(IdentityKeyPair, u32)> {
        if let Some(own) = self.own {
            return Ok(own);
        }
        let own = match tx.get(Table::Identity, b"pair")? {
            Some(bytes) => {
                let (registration, pair) = bytes.split_at_checked(4).ok_or_else(corrupt)?;
                let registration = registration.try_into().map(u32::from_be_bytes).map_err(|_| corrupt())?;
                (IdentityKeyPair::try_from(pair).map_err(|_| corrupt())?, registration)
            }
            None => {
                let pair = IdentityKeyPair::generate(&mut self.rng);
                let registration: u32 = self.rng.random_range(1..16380);
                let bytes = [&registration.to_be_bytes()[..], &pair.serialize()].concat();
                tx.put(Table::Identity, b"pair", &bytes)?;
                (pair, registration)
            }
        };
        self.own = Some(own);
        Ok(own)
    }

    fn identities(&mut self, tx: &mut dyn SuiteTx, peer: &Peer) -> Result<Identities> {
        let (own, registration_id) = self.own(tx)?;
        checks::public_key(&peer.identity)?;
        let identity = IdentityKey::decode(&peer.identity).map_err(signal)?;
        if identity == *own.identity_key() {
            return Err(Error::new(ErrorKind::Invalid, "a device cannot have a session with itself"));
        }
        Ok(Identities { own, registration_id, peer: identity })
    }

    fn session(&mut self, tx: &mut dyn SuiteTx, peer: InstallationId) -> Result<Option<SessionRecord>> {
        if let Some((record, _)) = self.sessions.get(&peer) {
            return Ok(Some(record.clone()));
        }
        let Some(bytes) = tx.get(Table::Sessions, peer.as_bytes())? else {
            return Ok(None);
        };
        let record = SessionRecord::deserialize(&bytes).map_err(|_| corrupt())?;
        self.sessions.insert(peer, (record.clone(), false));
        Ok(Some(record))
    }

    fn keep(&mut self, peer: InstallationId, session: OneSession) {
        if let (true, Some(record)) = (session.stored, session.record) {
            self.sessions.insert(peer, (record, true));
        }
    }

    fn make_kem(
        &mut self,
        pair: &IdentityKeyPair,
        id: u32,
        now: u64,
    ) -> Result<(KyberPreKeyRecord, Vec<u8>)> {
        let kem = kem::KeyPair::generate(kem::KeyType::Kyber1024, &mut self.rng);
        let public = kem.public_key.serialize();
        let signature = pair.private_key().calculate_signature(&public, &mut self.rng).map_err(curve)?;
        let time = Timestamp::from_epoch_millis(now);
        Ok((KyberPreKeyRecord::new(id.into(), time, &kem, &signature), signature.to_vec()))
    }

    /// Returns the current signed part, or makes a new one if it is due.
    fn signed_part(&mut self, tx: &mut dyn SuiteTx, id: u32) -> Result<Vec<u8>> {
        let now = tx.now_ms();
        if let Some(current) = tx.get(Table::Identity, b"bundle")?
            && let Ok(part) = SignedPart::read(&current, now)
            && now < part.created.saturating_add(ROTATE_MS)
        {
            return Ok(current);
        }
        let (pair, registration_id) = self.own(tx)?;
        // `created` rises even if the clock is set back, because peers reject a bundle older than one that
        // they have seen. The exception is a clock that was a day or more ahead: peers rejected that bundle.
        let last = tx.get(Table::Identity, b"created")?.and_then(|v| v.try_into().ok());
        let last = last.map_or(0, u64::from_be_bytes);
        let created = if last < now.saturating_add(DAY_MS) { now.max(last + 1) } else { now };
        tx.put(Table::Identity, b"created", &created.to_be_bytes())?;
        let key = KeyPair::generate(&mut self.rng);
        let signed_key = key.public_key.serialize().to_vec();
        let signature = pair.private_key().calculate_signature(&signed_key, &mut self.rng).map_err(curve)?;
        let record = SignedPreKeyRecord::new(id.into(), Timestamp::from_epoch_millis(now), &key, &signature);
        tx.put(Table::SignedPrekeys, &id.to_be_bytes(), &record.serialize().map_err(signal)?)?;
        // One-time KEM prekeys have the ids of their uploads; reusable ones have the highest bit set.
        let kem_id = id | REUSABLE;
        let (kem, kem_signature) = self.make_kem(&pair, kem_id, now)?;
        tx.put(Table::KemPrekeys, &kem_id.to_be_bytes(), &kem.serialize().map_err(signal)?)?;
        let part = SignedPart {
            version: 1,
            created,
            registration_id,
            signed_id: id,
            signed_key,
            signed_signature: signature.to_vec(),
            kem_id,
            kem_key: kem.public_key().map_err(signal)?.serialize().to_vec(),
            kem_signature,
        };
        let bytes = part.to_bytes();
        tx.put(Table::Identity, b"bundle", &bytes)?;
        Ok(bytes)
    }

    fn open_first(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, bytes: &[u8]) -> Result<DecryptResult> {
        let first = match PreKeySignalMessage::try_from(bytes) {
            Ok(first) if checks::message(first.message()).is_ok() => first,
            _ => return Ok(Err(Unreadable::Malformed)),
        };
        if checks::first_message(&first, &peer.identity).is_err() {
            return Ok(Err(Unreadable::Misplaced));
        }
        let mut one_time = OnePreKey::default();
        if let Some(id) = first.pre_key_id() {
            let bytes = tx.get(Table::Prekeys, &u32::from(id).to_be_bytes())?;
            one_time.record =
                bytes.map(|b| PreKeyRecord::deserialize(&b)).transpose().map_err(|_| corrupt())?;
        }
        let signed_id = u32::from(first.signed_pre_key_id());
        let signed = tx.get(Table::SignedPrekeys, &signed_id.to_be_bytes())?;
        let signed = OneSignedPreKey(
            signed.map(|b| SignedPreKeyRecord::deserialize(&b)).transpose().map_err(|_| corrupt())?,
        );
        let mut kem = OneKemPreKey::default();
        let kem_id = first.kyber_pre_key_id().map_or(0, u32::from);
        if let Some(bytes) = tx.get(Table::KemPrekeys, &kem_id.to_be_bytes())? {
            kem.record = Some(KyberPreKeyRecord::deserialize(&bytes).map_err(|_| corrupt())?);
        }
        let base_key =
            [&kem_id.to_be_bytes()[..], &signed_id.to_be_bytes(), &first.base_key().serialize()].concat();
        kem.seen = tx.get(Table::SeenBaseKeys, &base_key)?.is_some();

        let message = CiphertextMessage::PreKeySignalMessage(first);
        let opened = self.decrypt(tx, peer, &message, &mut one_time, &signed, &mut kem)?;
        if opened.is_ok() {
            if let (true, CiphertextMessage::PreKeySignalMessage(first)) = (one_time.removed, &message)
                && let Some(id) = first.pre_key_id()
            {
                tx.delete(Table::Prekeys, &u32::from(id).to_be_bytes())?;
            }
            if kem.used && kem_id & REUSABLE == 0 {
                tx.delete(Table::KemPrekeys, &kem_id.to_be_bytes())?;
            } else if kem.used {
                tx.put(Table::SeenBaseKeys, &base_key, &[])?;
            }
        }
        Ok(opened)
    }

    fn decrypt(
        &mut self,
        tx: &mut dyn SuiteTx,
        peer: &Peer,
        message: &CiphertextMessage,
        one_time: &mut OnePreKey,
        signed: &OneSignedPreKey,
        kem: &mut OneKemPreKey,
    ) -> Result<DecryptResult> {
        let Ok(mut identities) = self.identities(tx, peer) else {
            return Ok(Err(Unreadable::Misplaced));
        };
        let record = self.session(tx, peer.installation)?;
        let mut session = OneSession { record, stored: false };
        let address = address(peer)?;
        let opened = ready(message_decrypt(
            message,
            &address,
            &mut session,
            &mut identities,
            one_time,
            signed,
            kem,
            &mut self.rng,
        ));
        Ok(match opened {
            Ok(plaintext) => {
                self.keep(peer.installation, session);
                Ok(plaintext)
            }
            Err(
                SignalProtocolError::SessionNotFound(_)
                | SignalProtocolError::InvalidPreKeyId
                | SignalProtocolError::InvalidSignedPreKeyId
                | SignalProtocolError::InvalidKyberPreKeyId,
            ) => Err(Unreadable::NoSession),
            Err(SignalProtocolError::UntrustedIdentity(_)) => Err(Unreadable::Misplaced),
            Err(_) => Err(Unreadable::Undecryptable),
        })
    }
}

/// The bit that marks the id of a reusable KEM prekey.
const REUSABLE: u32 = 1 << 31;

fn curve(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "failed to sign or decode a key").caused_by(error)
}

impl Suite for Signal {
    fn id(&self) -> SuiteId {
        SuiteId::SIGNAL
    }

    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.own(tx)?.0.identity_key().serialize()))
    }

    fn has_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer) -> Result<bool> {
        let now = time(tx);
        let record = self.session(tx, peer.installation)?;
        let usable =
            |record: SessionRecord| record.has_usable_sender_chain(now, SessionUsabilityRequirements::all());
        Ok(record.is_some_and(|record| usable(record).unwrap_or(false)))
    }

    fn start_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, bundle: &PrekeyBundle) -> Result<()> {
        let signed = SignedPart::read(&bundle.signed, tx.now_ms())?;
        // The server must not replay prekeys that their device has replaced.
        let newest = [b"newest", &peer.installation.as_bytes()[..]].concat();
        let seen = tx.get(Table::Identity, &newest)?.and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
        // A time in the future is of a clock that was wrong: it says nothing about what the device replaced.
        let seen = seen.filter(|seen| *seen <= tx.now_ms().saturating_add(DAY_MS));
        if seen.is_some_and(|seen| signed.created < seen) {
            return Err(Error::new(ErrorKind::Invalid, "a prekey bundle is older than one seen before"));
        }
        let one_time = OneTimePart::read(&bundle.one_time)?;
        let mut identities = self.identities(tx, peer)?;
        checks::public_key(&signed.signed_key)?;
        let key = |bytes: &[u8]| PublicKey::deserialize(bytes).map_err(curve);
        let kem = |bytes: &[u8]| kem::PublicKey::deserialize(bytes).map_err(signal);
        let (one_time_key, kem_id, kem_key, kem_signature) = match &one_time {
            Some(one) => {
                checks::public_key(&one.key)?;
                (Some((one.id.into(), key(&one.key)?)), one.id, kem(&one.kem_key)?, one.kem_signature.clone())
            }
            None => (None, signed.kem_id, kem(&signed.kem_key)?, signed.kem_signature.clone()),
        };
        let address = address(peer)?;
        let offered = PreKeyBundle::new(
            signed.registration_id,
            address.device_id(),
            one_time_key,
            signed.signed_id.into(),
            key(&signed.signed_key)?,
            signed.signed_signature,
            kem_id.into(),
            kem_key,
            kem_signature,
            identities.peer,
        )
        .map_err(signal)?;
        let record = self.session(tx, peer.installation)?;
        let mut session = OneSession { record, stored: false };
        let now = time(tx);
        ready(process_prekey_bundle(&address, &mut session, &mut identities, &offered, now, &mut self.rng))
            .map_err(signal)?;
        tx.put(Table::Identity, &newest, &signed.created.to_be_bytes())?;
        self.keep(peer.installation, session);
        Ok(())
    }

    fn seal(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, plaintext: &[u8]) -> Result<Bytes> {
        let mut identities = self.identities(tx, peer)?;
        let record = self.session(tx, peer.installation)?;
        let mut session = OneSession { record, stored: false };
        let now = time(tx);
        let address = address(peer)?;
        let message =
            ready(message_encrypt(plaintext, &address, &mut session, &mut identities, now, &mut self.rng))
                .map_err(signal)?;
        self.keep(peer.installation, session);
        let mut sealed = vec![message.message_type() as u8];
        sealed.extend_from_slice(message.serialize());
        Ok(sealed.into())
    }

    fn open(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, sealed: &[u8]) -> Result<DecryptResult> {
        match sealed.split_first() {
            Some((&WHISPER, bytes)) => match SignalMessage::try_from(bytes) {
                Ok(message) if checks::message(&message).is_ok() => self.decrypt(
                    tx,
                    peer,
                    &CiphertextMessage::SignalMessage(message),
                    &mut OnePreKey::default(),
                    &OneSignedPreKey::default(),
                    &mut OneKemPreKey::default(),
                ),
                _ => Ok(Err(Unreadable::Malformed)),
            },
            Some((&FIRST, bytes)) => self.open_first(tx, peer, bytes),
            _ => Ok(Err(Unreadable::Malformed)),
        }
    }

    fn end_session(&mut self, tx: &mut dyn SuiteTx, peer: InstallationId) -> Result<()> {
        if let Some(mut record) = self.session(tx, peer)? {
            record.archive_current_state().map_err(signal)?;
            self.sessions.insert(peer, (record, true));
        }
        Ok(())
    }

    fn encrypt_body(&self, key: &[u8; 32], context: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        body::encrypt(key, context, content)
    }

    fn decrypt_body(&self, key: &[u8], context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        body::decrypt(key, context, sealed)
    }

    fn make_prekeys(
        &mut self,
        tx: &mut dyn SuiteTx,
        first: u64,
        count: u64,
    ) -> Result<(Bytes, Vec<OneTimePrekey>)> {
        let too_many = || Error::new(ErrorKind::Invalid, "this device has used all prekey ids");
        let last = u32::try_from(first + count).ok().filter(|last| *last < REUSABLE).ok_or_else(too_many)?;
        let signed = self.signed_part(tx, last)?;
        let (pair, _) = self.own(tx)?;
        let now = tx.now_ms();
        let mut prekeys = Vec::new();
        for wire_id in first..first + count {
            let id = u32::try_from(wire_id).map_err(|_| too_many())?;
            let key = KeyPair::generate(&mut self.rng);
            let record = PreKeyRecord::new(id.into(), &key);
            tx.put(Table::Prekeys, &id.to_be_bytes(), &record.serialize().map_err(signal)?)?;
            let (kem, kem_signature) = self.make_kem(&pair, id, now)?;
            tx.put(Table::KemPrekeys, &id.to_be_bytes(), &kem.serialize().map_err(signal)?)?;
            let part = OneTimePart {
                id,
                key: key.public_key.serialize().to_vec(),
                kem_key: kem.public_key().map_err(signal)?.serialize().to_vec(),
                kem_signature,
            };
            prekeys.push(OneTimePrekey { id: wire_id, data: part.to_bytes().into() });
        }
        Ok((signed.into(), prekeys))
    }

    fn seal_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
        plaintext: &[u8],
        distribute: bool,
    ) -> Result<GroupCiphertext> {
        sender_keys::seal(&mut self.rng, tx, group, key, plaintext, distribute)
    }

    fn accept_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        distribution: &[u8],
    ) -> Result<AcceptResult> {
        sender_keys::accept(tx, group, sender, distribution)
    }

    fn open_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        shared: &[u8],
        control: &[u8],
    ) -> Result<DecryptResult> {
        sender_keys::open(tx, group, sender, shared, control)
    }

    fn drop_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
    ) -> Result<()> {
        sender_keys::drop_own(tx, group, key)
    }

    fn reset(&mut self, tx: &mut dyn SuiteTx) -> Result<()> {
        self.sessions.clear();
        for table in [
            Table::Sessions,
            Table::Prekeys,
            Table::SignedPrekeys,
            Table::KemPrekeys,
            Table::SeenBaseKeys,
            Table::OwnSenderKeys,
        ] {
            tx.clear(table)?;
        }
        tx.delete(Table::Identity, b"bundle")
    }

    fn clear_cache(&mut self) {
        self.own = None;
        self.sessions.clear();
    }

    fn flush(&mut self, tx: &mut dyn SuiteTx) -> Result<()> {
        for (peer, (record, changed)) in &mut self.sessions {
            if std::mem::take(changed) {
                tx.put(Table::Sessions, peer.as_bytes(), &record.serialize().map_err(signal)?)?;
            }
        }
        if self.sessions.len() > SESSIONS {
            self.sessions.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod test_device;
#[cfg(test)]
mod tests;
