//! The in-memory stores of one libsignal operation, filled before the operation and saved after it.

use async_trait::async_trait;
use libsignal_protocol::error::Result as SignalResult;
use libsignal_protocol::{
    CiphertextMessageType, Direction, IdentityChange, IdentityKey, IdentityKeyPair, IdentityKeyStore,
    KyberPreKeyId, KyberPreKeyRecord, KyberPreKeyStore, PreKeyId, PreKeyRecord, PreKeyStore, ProtocolAddress,
    PublicKey, SenderKeyRecord, SenderKeyStore, SessionRecord, SessionStore, SignalProtocolError,
    SignedPreKeyId, SignedPreKeyRecord, SignedPreKeyStore,
};
use uuid::Uuid;

/// The device's own identity, and the only identity that the peer may have.
pub(crate) struct Identities {
    pub(crate) own: IdentityKeyPair,
    pub(crate) registration_id: u32,
    pub(crate) peer: IdentityKey,
}

#[async_trait(?Send)]
impl IdentityKeyStore for Identities {
    async fn get_identity_key_pair(&self) -> SignalResult<IdentityKeyPair> {
        Ok(self.own)
    }

    async fn get_local_registration_id(&self) -> SignalResult<u32> {
        Ok(self.registration_id)
    }

    async fn save_identity(
        &mut self,
        _: &ProtocolAddress,
        key: &IdentityKey,
    ) -> SignalResult<IdentityChange> {
        Ok(IdentityChange::from_changed(*key != self.peer))
    }

    async fn is_trusted_identity(
        &self,
        _: &ProtocolAddress,
        key: &IdentityKey,
        _: Direction,
    ) -> SignalResult<bool> {
        // The peer's identity comes from the device list, which the account key signed.
        Ok(*key == self.peer)
    }

    async fn get_identity(&self, _: &ProtocolAddress) -> SignalResult<Option<IdentityKey>> {
        Ok(Some(self.peer))
    }
}

/// The only session of an operation.
pub(crate) struct OneSession {
    pub(crate) record: Option<SessionRecord>,
    pub(crate) stored: bool,
}

#[async_trait(?Send)]
impl SessionStore for OneSession {
    async fn load_session(&self, _: &ProtocolAddress) -> SignalResult<Option<SessionRecord>> {
        Ok(self.record.clone())
    }

    async fn store_session(&mut self, _: &ProtocolAddress, record: &SessionRecord) -> SignalResult<()> {
        self.record = Some(record.clone());
        self.stored = true;
        Ok(())
    }
}

/// The one-time prekey that a first message names.
#[derive(Default)]
pub(crate) struct OnePreKey {
    pub(crate) record: Option<PreKeyRecord>,
    pub(crate) removed: bool,
}

#[async_trait(?Send)]
impl PreKeyStore for OnePreKey {
    async fn get_pre_key(&self, _: PreKeyId) -> SignalResult<PreKeyRecord> {
        self.record.clone().ok_or(SignalProtocolError::InvalidPreKeyId)
    }

    async fn save_pre_key(&mut self, _: PreKeyId, _: &PreKeyRecord) -> SignalResult<()> {
        Ok(())
    }

    async fn remove_pre_key(&mut self, _: PreKeyId) -> SignalResult<()> {
        self.removed = true;
        Ok(())
    }
}

/// The signed prekey that a first message names.
#[derive(Default)]
pub(crate) struct OneSignedPreKey(pub(crate) Option<SignedPreKeyRecord>);

#[async_trait(?Send)]
impl SignedPreKeyStore for OneSignedPreKey {
    async fn get_signed_pre_key(&self, _: SignedPreKeyId) -> SignalResult<SignedPreKeyRecord> {
        self.0.clone().ok_or(SignalProtocolError::InvalidSignedPreKeyId)
    }

    async fn save_signed_pre_key(&mut self, _: SignedPreKeyId, _: &SignedPreKeyRecord) -> SignalResult<()> {
        Ok(())
    }
}

/// The KEM prekey that a first message names.
#[derive(Default)]
pub(crate) struct OneKemPreKey {
    pub(crate) record: Option<KyberPreKeyRecord>,
    /// An earlier first message used the same base key with this KEM prekey.
    pub(crate) seen: bool,
    pub(crate) used: bool,
}

#[async_trait(?Send)]
impl KyberPreKeyStore for OneKemPreKey {
    async fn get_kyber_pre_key(&self, _: KyberPreKeyId) -> SignalResult<KyberPreKeyRecord> {
        self.record.clone().ok_or(SignalProtocolError::InvalidKyberPreKeyId)
    }

    async fn save_kyber_pre_key(&mut self, _: KyberPreKeyId, _: &KyberPreKeyRecord) -> SignalResult<()> {
        Ok(())
    }

    async fn mark_kyber_pre_key_used(
        &mut self,
        _: KyberPreKeyId,
        _: SignedPreKeyId,
        _: &PublicKey,
    ) -> SignalResult<()> {
        if self.seen {
            return Err(SignalProtocolError::InvalidMessage(
                CiphertextMessageType::PreKey,
                "reused base key",
            ));
        }
        self.used = true;
        Ok(())
    }
}

/// The sender key that a group message names.
#[derive(Default)]
pub(crate) struct OneSenderKey(pub(crate) Option<SenderKeyRecord>);

#[async_trait(?Send)]
impl SenderKeyStore for OneSenderKey {
    async fn store_sender_key(
        &mut self,
        _: &ProtocolAddress,
        _: Uuid,
        record: &SenderKeyRecord,
    ) -> SignalResult<()> {
        self.0 = Some(record.clone());
        Ok(())
    }

    async fn load_sender_key(
        &mut self,
        _: &ProtocolAddress,
        _: Uuid,
    ) -> SignalResult<Option<SenderKeyRecord>> {
        Ok(self.0.clone())
    }
}
