//! The account of a profile: its keys in the local store, and how registration and linking create them.

use bytes::Bytes;
use chat_core::backend::{Dialer, Transport};
use chat_core::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use chat_core::envelope::{Refusal, Subject};
use chat_core::signing::{deletion_transcript, prekeys_transcript};
use chat_core::suite::{SuiteId, SuiteKey};
use chat_core::wire::{ClientFrame, FirstPrekeys, Registration, ServerFrame};
use chat_core::{DeviceAddress, DeviceId, Error, ErrorKind, Handle, InstallationId, Result, UserId};
use ed25519_dalek::{Signer, SigningKey};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::linking::{LinkCode, Offer};
use crate::platform::{Platform, random};
use crate::store::LocalStore;
use crate::suite::{Suite, SuiteTx};

/// The account and device of a local store.
pub(crate) struct Account {
    pub(crate) device: DeviceAddress,
    pub(crate) handle: Handle,
    device_key: SigningKey,
    account_secret: Option<SigningKey>,
    account_key: [u8; 32],
}

fn secret(store: &LocalStore, key: &str) -> Result<Option<SigningKey>> {
    let bytes = store.meta(key)?.map(Zeroizing::new);
    Ok(bytes.and_then(|b| <[u8; 32]>::try_from(&b[..]).ok()).map(|b| SigningKey::from_bytes(&b)))
}

impl Account {
    /// Reads the account of a store.
    ///
    /// # Errors
    /// `NotFound` if the store has no registered or linked account.
    pub(crate) fn load(store: &LocalStore) -> Result<Self> {
        let missing =
            || Error::new(ErrorKind::NotFound, "the profile has no account: register or link it first");
        if store.meta("registered")?.is_none() {
            return Err(missing());
        }
        let text = store.meta("handle")?.and_then(|v| String::from_utf8(v).ok()).ok_or_else(missing)?;
        let device_key = secret(store, "device_key")?.ok_or_else(missing)?;
        let number = store.meta("device")?.and_then(|v| v.first().copied()).ok_or_else(missing)?;
        let device = DeviceAddress {
            user: UserId::parse(&store.meta("user")?.ok_or_else(missing)?)?,
            device: DeviceId::new(u32::from(number))?,
            installation: InstallationId::of_device_key(&device_key.verifying_key().to_bytes()),
        };
        let account_key = store.meta("account_key")?.and_then(|v| v.try_into().ok()).ok_or_else(missing)?;
        Ok(Self {
            device,
            handle: Handle::new(&text)?,
            device_key,
            account_secret: secret(store, "account_secret")?,
            account_key,
        })
    }

    /// Returns the public account key.
    pub(crate) const fn account_key(&self) -> &[u8; 32] {
        &self.account_key
    }

    /// Signs a message with the device key.
    pub(crate) fn sign(&self, message: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&self.device_key.sign(message).to_bytes())
    }

    /// Signs a request to delete the account. `list_version` is the version of its newest device list.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key.
    pub(crate) fn sign_deletion(&self, list_version: u64) -> Result<Bytes> {
        let key = self
            .account_secret
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Denied, "only the first device can delete the account"))?;
        let signature = key.sign(&deletion_transcript(self.device.user, list_version));
        Ok(Bytes::copy_from_slice(&signature.to_bytes()))
    }

    /// Returns the device list that follows `before`, with these devices, signed by the account key.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key.
    pub(crate) fn sign_list(
        &self,
        before: &SignedDeviceList,
        devices: Vec<DeviceEntry>,
        now: u64,
    ) -> Result<SignedDeviceList> {
        let key = self.account_secret.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Denied, "only the first device can change the device list")
        })?;
        sign_list(key, DeviceList::next(before, now, devices).encode())
    }
}

/// Creates the account of a profile: registers, replaces or links it.
pub(crate) struct Registrar<'a> {
    pub(crate) platform: &'a dyn Platform,
    pub(crate) dialer: &'a dyn Dialer,
    pub(crate) suite: &'a mut dyn Suite,
    pub(crate) token: &'a str,
}

impl Registrar<'_> {
    /// Registers an account. A repeat after a lost answer is the same registration. If the account is registered already,
    /// this is an error, or nothing to do if it `may_exist`.
    pub(crate) async fn register(
        mut self,
        store: &mut LocalStore,
        handle: &Handle,
        may_exist: bool,
    ) -> Result<()> {
        if is_registered(store, handle)? {
            return if may_exist { Ok(()) } else { Err(has_account()) };
        }
        let transport = dial(self.dialer, store).await?;
        // New keys for another handle, too: the server may have registered the former ones without an answer.
        let former = store.meta("handle")?;
        if store.meta("account_secret")?.is_none()
            || former.is_none_or(|former| former != handle.as_str().as_bytes())
        {
            self.make_keys(store, handle, None)?;
        }
        self.open_account(store, transport, handle, false).await
    }

    /// Replaces the account key of a handle after the loss of all devices of the account.
    pub(crate) async fn replace(mut self, store: &mut LocalStore, handle: &Handle) -> Result<()> {
        if is_registered(store, handle)? {
            return Ok(());
        }
        let mut transport = dial(self.dialer, store).await?;
        // Keys from an unfinished `register` (list version 1) cannot replace an account: make new ones.
        let replaces = store.meta("first_list")?.map(DeviceList::read).transpose()?;
        let other = store.meta("handle")?.is_some_and(|former| former != handle.as_str().as_bytes());
        if other || replaces.is_none_or(|list| list.version == 1) || store.meta("account_secret")?.is_none() {
            let lookup = Registration::Lookup { token: self.token.to_owned(), handle: handle.clone() };
            match request(transport.as_mut(), lookup).await? {
                (_, Some(before)) => self.make_keys(store, handle, Some(&before))?,
                (_, None) => return Err(Error::new(ErrorKind::Invalid, "the server sent no device list")),
            }
        }
        self.open_account(store, transport, handle, true).await
    }

    /// Sends the offer of this device to the server, then its code to `shown`, and waits for the approval.
    pub(crate) async fn link(
        mut self,
        store: &mut LocalStore,
        shown: oneshot::Sender<LinkCode>,
    ) -> Result<()> {
        if store.meta("registered")?.is_some() || store.meta("account_secret")?.is_some() {
            return Err(has_account());
        }
        let device = SigningKey::from_bytes(&Zeroizing::new(random(self.platform)?));
        store.set_meta("device_key", &device.to_bytes())?;
        store.set_meta("token", self.token.as_bytes())?;
        let suite_key = self.suite.identity(store)?;
        let prekeys = self.first_prekeys(store, &device)?;
        store.commit_open()?;
        let secret = Zeroizing::new(random::<32>(self.platform)?);
        let ephemeral = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret));
        let offer = Offer {
            device_key: device.verifying_key().to_bytes().to_vec(),
            suite_key: suite_key.to_vec(),
            ephemeral: ephemeral.as_bytes().to_vec(),
            signed_prekeys: prekeys.signed.to_vec(),
            prekeys_signature: prekeys.signature.to_vec(),
            suite: Some(self.suite.id()).filter(|id| *id != SuiteId::SIGNAL).map(SuiteId::get),
        };
        let code = LinkCode::new(random(self.platform)?);
        let mut transport = dial(self.dialer, store).await?;
        let registration = Registration::Link { rendezvous: code.rendezvous()?, offer: offer.seal(&code)? };
        transport.send(vec![ClientFrame::Register(Box::new(registration)).encode()]).await?;
        link_offered(transport.as_mut()).await?;
        // The caller may have given up; then the owner of the profile ends this future.
        let _ = shown.send(code.clone());
        let joined = offer.open_answer(&code, &link_answer(transport.as_mut()).await?, &secret)?;
        store.set_meta("account_key", &joined.account_key)?;
        store.set_meta("user", joined.user.as_bytes())?;
        store.set_meta("device", &[joined.device.get()])?;
        store.set_meta("handle", joined.handle.as_str().as_bytes())?;
        store.set_meta("registered", &[1])?;
        store.commit_open()?;
        transport.close(1000).await;
        Ok(())
    }

    /// Makes the keys and the first device list of the account key, durably, before anything is sent.
    fn make_keys(
        &mut self,
        store: &mut LocalStore,
        handle: &Handle,
        before: Option<&SignedDeviceList>,
    ) -> Result<()> {
        let account = SigningKey::from_bytes(&Zeroizing::new(random(self.platform)?));
        let device = SigningKey::from_bytes(&Zeroizing::new(random(self.platform)?));
        let suite_key = SuiteKey { suite: self.suite.id(), key: self.suite.identity(store)? };
        let entry = DeviceEntry::new(DeviceId::PRIMARY, device.verifying_key().to_bytes(), suite_key);
        let list = match before {
            Some(before) => DeviceList::next(before, store.now_ms(), vec![entry]),
            None => {
                DeviceList::first(UserId::from_bytes(random(self.platform)?), store.now_ms(), vec![entry])
            }
        };
        store.set_meta("account_secret", &account.to_bytes())?;
        store.set_meta("account_key", &account.verifying_key().to_bytes())?;
        store.set_meta("device_key", &device.to_bytes())?;
        store.set_meta("user", list.user.as_bytes())?;
        store.set_meta("device", &[1])?;
        store.set_meta("handle", handle.as_str().as_bytes())?;
        store.set_meta("first_list", &list.encode())?;
        store.commit_open()
    }

    /// Makes the prekeys with which the device is listed. The caller commits them before it sends them.
    fn first_prekeys(&mut self, store: &mut LocalStore, device: &SigningKey) -> Result<FirstPrekeys> {
        let (signed, _) = self.suite.make_prekeys(store, 1, 0)?;
        let signed = self.suite.id().mark(signed);
        self.suite.flush(store)?;
        let signature = Bytes::copy_from_slice(&device.sign(&prekeys_transcript(&signed)).to_bytes());
        let installation = InstallationId::of_device_key(&device.verifying_key().to_bytes());
        Ok(FirstPrekeys { installation, signed, signature })
    }

    async fn open_account(
        mut self,
        store: &mut LocalStore,
        mut transport: Box<dyn Transport>,
        handle: &Handle,
        replace: bool,
    ) -> Result<()> {
        let missing = || Error::new(ErrorKind::Corrupt, "the profile has no account keys");
        let account = secret(store, "account_secret")?.ok_or_else(missing)?;
        let encoded: Bytes = store.meta("first_list")?.ok_or_else(missing)?.into();
        let list = sign_list(&account, encoded)?;
        let (token, handle) = (self.token.to_owned(), handle.clone());
        let user = list.list().user;
        let device = secret(store, "device_key")?.ok_or_else(missing)?;
        let prekeys = vec![self.first_prekeys(store, &device)?];
        store.commit_open()?;
        let registration = Registration::Account { token, handle, list, replace, prekeys };
        match request(transport.as_mut(), registration).await {
            Ok((opened, _)) if opened == user => {}
            Ok(_) => return Err(Error::new(ErrorKind::Invalid, "the server registered another account")),
            Err(error) => {
                if replace && error.kind() != ErrorKind::Throttled {
                    // The list that ours follows may no longer be the latest: the next attempt fetches it
                    // again.
                    store.remove_meta("account_secret")?;
                    store.commit_open()?;
                }
                return Err(error);
            }
        }
        store.set_meta("registered", &[1])?;
        store.set_meta("token", self.token.as_bytes())?;
        store.commit_open()?;
        transport.close(1000).await;
        Ok(())
    }
}

fn has_account() -> Error {
    Error::new(ErrorKind::Conflict, "the profile already has an account: open it, or use another profile")
}

/// Returns whether the account of this handle is registered.
///
/// # Errors
/// `Conflict` if the profile belongs to another account.
fn is_registered(store: &LocalStore, handle: &Handle) -> Result<bool> {
    if store.meta("registered")?.is_none() {
        return Ok(false);
    }
    if store.meta("handle")?.is_some_and(|known| known != handle.as_str().as_bytes()) {
        return Err(Error::new(ErrorKind::Conflict, "the profile belongs to another account"));
    }
    Ok(true)
}

/// Connects, and takes over the server's time, which dates the keys of this device.
async fn dial(dialer: &dyn Dialer, store: &mut LocalStore) -> Result<Box<dyn Transport>> {
    let mut transport = dialer.dial().await?;
    loop {
        match next_frame(transport.as_mut()).await? {
            ServerFrame::Challenge(challenge) => {
                store.set_server_time(challenge.server_time)?;
                return Ok(transport);
            }
            ServerFrame::Close { .. } => {
                return Err(Error::new(ErrorKind::Closed, "the server closed the connection"));
            }
            _ => {}
        }
    }
}

/// Waits until the server has the offer of this device: only then its code can be approved.
async fn link_offered(transport: &mut dyn Transport) -> Result<()> {
    loop {
        match next_frame(transport).await? {
            ServerFrame::LinkOffered => return Ok(()),
            ServerFrame::Refused(Subject::Opening, refusal) => return Err(refused(&refusal)),
            ServerFrame::Close { .. } => {
                return Err(Error::new(ErrorKind::Closed, "the server closed the connection"));
            }
            _ => {}
        }
    }
}

/// Waits for the approval of a link.
async fn link_answer(transport: &mut dyn Transport) -> Result<Bytes> {
    loop {
        match next_frame(transport).await? {
            ServerFrame::LinkAnswer(answer) => return Ok(answer),
            ServerFrame::Refused(Subject::Opening, refusal) => return Err(refused(&refusal)),
            ServerFrame::Close { .. } => {
                return Err(Error::new(ErrorKind::Closed, "no device approved this one: link again"));
            }
            _ => {}
        }
    }
}

/// Sends a registration and waits for the answer: the user, and the device list for a lookup.
async fn request(
    transport: &mut dyn Transport,
    registration: Registration,
) -> Result<(UserId, Option<Box<SignedDeviceList>>)> {
    transport.send(vec![ClientFrame::Register(Box::new(registration)).encode()]).await?;
    loop {
        match next_frame(transport).await? {
            ServerFrame::Registered(user, list) => return Ok((user, list)),
            ServerFrame::Refused(Subject::Opening, refusal) => return Err(refused(&refusal)),
            ServerFrame::Close { .. } => {
                return Err(Error::new(ErrorKind::Closed, "the server closed the connection"));
            }
            _ => {}
        }
    }
}

async fn next_frame(transport: &mut dyn Transport) -> Result<ServerFrame> {
    match transport.recv().await? {
        Some(bytes) => ServerFrame::parse(bytes),
        None => Err(Error::new(ErrorKind::Closed, "the server closed the connection")),
    }
}

fn refused(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::Taken => Error::new(ErrorKind::Conflict, "the handle is taken"),
        Refusal::Denied => Error::new(ErrorKind::Denied, "the token is not accepted for this handle"),
        Refusal::NotFound => Error::new(ErrorKind::NotFound, "there is no such account"),
        Refusal::Throttled(_) | Refusal::Retry(_) => {
            Error::new(ErrorKind::Throttled, "the server is busy: try again")
        }
        _ => Error::new(ErrorKind::Invalid, "the server refused the registration"),
    }
}

fn sign_list(key: &SigningKey, encoded: Bytes) -> Result<SignedDeviceList> {
    let signature = Bytes::copy_from_slice(&key.sign(&DeviceList::transcript(&encoded)).to_bytes());
    SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature)
}
