//! A profile: the keys of an account and a device in a local store. Registration and linking create it.

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::codec::encode_list;
use chat_core::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use chat_core::envelope::{Refusal, Subject};
use chat_core::wire::{ClientFrame, Registration, ServerFrame};
use chat_core::{DeviceAddress, DeviceId, Error, ErrorKind, Handle, InstallationId, Result, UserId};
use chat_transport::dial::Dialer;
use ed25519_dalek::{Signer, SigningKey};
use zeroize::Zeroizing;

use crate::linking::{LinkCode, Offer};
use crate::random::random;
use crate::store::{LocalStore, StoreConfig};
use crate::suite::{Suite, SuiteTx};

/// The account and device of a local store.
pub struct Profile {
    pub device: DeviceAddress,
    pub handle: Handle,
    device_key: SigningKey,
    account_secret: Option<SigningKey>,
    account_key: [u8; 32],
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("device", &self.device).field("primary", &self.is_primary()).finish()
    }
}

/// A new device that waits for the approval of its link code.
#[derive(Debug)]
pub struct PendingLink {
    store: LocalStore,
    transport: Box<dyn Transport>,
    offer: Offer,
    secret: Zeroizing<[u8; 32]>,
    code: LinkCode,
}

fn secret(store: &LocalStore, key: &str) -> Result<Option<SigningKey>> {
    let bytes = store.meta(key)?.map(Zeroizing::new);
    Ok(bytes.and_then(|b| <[u8; 32]>::try_from(&b[..]).ok()).map(|b| SigningKey::from_bytes(&b)))
}

impl Profile {
    /// Reads the profile of a store.
    ///
    /// # Errors
    /// `NotFound` if the store has no registered or linked account.
    pub fn load(store: &LocalStore) -> Result<Self> {
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

    /// Returns whether this device holds the account key and so can approve other devices.
    pub const fn is_primary(&self) -> bool {
        self.account_secret.is_some()
    }

    /// Returns the public account key.
    pub const fn account_key(&self) -> &[u8; 32] {
        &self.account_key
    }

    /// Signs a message with the device key.
    pub fn sign(&self, message: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&self.device_key.sign(message).to_bytes())
    }

    /// Returns the device list that follows `before`, with these devices, signed by the account key.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key.
    pub fn sign_list(
        &self,
        before: &SignedDeviceList,
        devices: Vec<DeviceEntry>,
        now: u64,
    ) -> Result<SignedDeviceList> {
        let key = self.account_secret.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Denied, "only the first device can change the device list")
        })?;
        sign_list(key, &DeviceList::next(before, now, devices))
    }

    /// Registers an account. The call is idempotent: a repeat after a lost answer is the same registration.
    ///
    /// # Errors
    /// `Conflict` if the handle is taken or the profile belongs to another account, `Denied` if the server
    /// rejects the token, and the errors of dialling.
    pub async fn register(
        profile: impl Into<StoreConfig>,
        dialer: &Dialer,
        suite: &mut dyn Suite,
        handle: &Handle,
        token: &str,
    ) -> Result<()> {
        let Some(mut store) = Self::begin(profile.into(), handle)? else { return Ok(()) };
        if store.meta("account_secret")?.is_none() {
            Self::make_keys(&mut store, suite, handle, None)?;
        }
        let transport = dialer.dial().await?;
        Self::open_account(store, transport, handle, token, false).await
    }

    /// Replaces the account key of this handle, for an account whose devices are all lost. The user id stays
    /// the same. Clients that have the old account key report the change as an `IdentityChanged` event.
    /// Requires a token that names the handle.
    ///
    /// # Errors
    /// `NotFound` if there is no such account, `Denied` without a token for it, `Conflict` if the profile
    /// belongs to another account or if the account changed concurrently (retry), and the errors of dialling.
    pub async fn replace(
        profile: impl Into<StoreConfig>,
        dialer: &Dialer,
        suite: &mut dyn Suite,
        handle: &Handle,
        token: &str,
    ) -> Result<()> {
        let Some(mut store) = Self::begin(profile.into(), handle)? else { return Ok(()) };
        let mut transport = dialer.dial().await?;
        // Keys from an unfinished `register` (list version 1) cannot replace an account: make new ones.
        let replaces = store.meta("first_list")?.map(DeviceList::read).transpose()?;
        if replaces.is_none_or(|list| list.version == 1) || store.meta("account_secret")?.is_none() {
            let lookup = Registration::Lookup { token: token.to_owned(), handle: handle.clone() };
            match request(transport.as_mut(), lookup).await? {
                (_, Some(before)) => Self::make_keys(&mut store, suite, handle, Some(&before))?,
                (_, None) => return Err(Error::new(ErrorKind::Invalid, "the server sent no device list")),
            }
        }
        Self::open_account(store, transport, handle, token, true).await
    }

    /// Opens the store of a profile that has no account, or an unfinished registration of this handle.
    /// Returns `None` if the account is already registered.
    fn begin(profile: StoreConfig, handle: &Handle) -> Result<Option<LocalStore>> {
        let store = LocalStore::open(&profile)?;
        let known = store.meta("handle")?;
        if known.is_some_and(|known| known != handle.as_str().as_bytes()) {
            return Err(Error::new(ErrorKind::Conflict, "the profile belongs to another account"));
        }
        Ok(if store.meta("registered")?.is_some() { None } else { Some(store) })
    }

    async fn open_account(
        mut store: LocalStore,
        mut transport: Box<dyn Transport>,
        handle: &Handle,
        token: &str,
        replace: bool,
    ) -> Result<()> {
        let missing = || Error::new(ErrorKind::Corrupt, "the profile has no account keys");
        let account = secret(&store, "account_secret")?.ok_or_else(missing)?;
        let encoded: Bytes = store.meta("first_list")?.ok_or_else(missing)?.into();
        let list = sign_list_bytes(&account, encoded)?;
        let (token_text, handle) = (token.to_owned(), handle.clone());
        let user = list.list().user;
        let registration = Registration::Account { token: token_text, handle, list, replace };
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
        store.set_meta("token", token.as_bytes())?;
        store.commit_open()?;
        transport.close(1000).await;
        Ok(())
    }

    /// Makes the keys and the first device list of the account key, durably, before anything is sent.
    fn make_keys(
        store: &mut LocalStore,
        suite: &mut dyn Suite,
        handle: &Handle,
        before: Option<&SignedDeviceList>,
    ) -> Result<()> {
        let account = SigningKey::from_bytes(&Zeroizing::new(random()?));
        let device = SigningKey::from_bytes(&Zeroizing::new(random()?));
        let suite_key = suite.identity(store)?;
        let entry = DeviceEntry::new(DeviceId::PRIMARY, device.verifying_key().to_bytes(), suite_key);
        let list = match before {
            Some(before) => DeviceList::next(before, store.now_ms(), vec![entry]),
            None => DeviceList::first(UserId::from_bytes(random()?), store.now_ms(), vec![entry]),
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

    /// Sends the offer of this device to the server. Returns the link that waits for approval.
    ///
    /// # Errors
    /// `Conflict` if the profile already has an account, and the errors of dialling.
    pub async fn link(
        profile: impl Into<StoreConfig>,
        dialer: &Dialer,
        suite: &mut dyn Suite,
        token: &str,
    ) -> Result<PendingLink> {
        let mut store = LocalStore::open(&profile.into())?;
        if store.meta("registered")?.is_some() || store.meta("account_secret")?.is_some() {
            return Err(Error::new(ErrorKind::Conflict, "the profile already has an account"));
        }
        let device = SigningKey::from_bytes(&Zeroizing::new(random()?));
        store.set_meta("device_key", &device.to_bytes())?;
        store.set_meta("token", token.as_bytes())?;
        let suite_key = suite.identity(&mut store)?;
        store.commit_open()?;
        let secret = Zeroizing::new(random::<32>()?);
        let ephemeral = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret));
        let offer = Offer {
            device_key: device.verifying_key().to_bytes().to_vec(),
            suite_key: suite_key.to_vec(),
            ephemeral: ephemeral.as_bytes().to_vec(),
        };
        let code = LinkCode { rendezvous: random()?, hash: offer.hash() };
        let mut transport = dialer.dial().await?;
        let registration = Registration::Link {
            rendezvous: Bytes::copy_from_slice(&code.rendezvous),
            offer: offer.to_bytes(),
        };
        transport.send(vec![ClientFrame::Register(Box::new(registration)).encode()]).await?;
        Ok(PendingLink { store, transport, offer, secret, code })
    }
}

impl PendingLink {
    /// Returns the code to type on the first device.
    pub const fn code(&self) -> &LinkCode {
        &self.code
    }

    /// Waits until the first device approves this one.
    ///
    /// # Errors
    /// `Denied` if the answer is not for this device, `Closed` if the server closes the connection first, for
    /// example because no device approved this one.
    pub async fn wait(mut self) -> Result<()> {
        let answer = loop {
            match next_frame(self.transport.as_mut()).await? {
                ServerFrame::LinkAnswer(answer) => break answer,
                ServerFrame::Refused(Subject::Opening, refusal) => return Err(refused(&refusal)),
                ServerFrame::Close { .. } => {
                    return Err(Error::new(ErrorKind::Closed, "no device approved this one"));
                }
                _ => {}
            }
        };
        let joined = self.offer.open(&answer, &self.secret)?;
        self.store.set_meta("account_key", &joined.account_key)?;
        self.store.set_meta("user", joined.user.as_bytes())?;
        self.store.set_meta("device", &[joined.device.get()])?;
        self.store.set_meta("handle", joined.handle.as_str().as_bytes())?;
        self.store.set_meta("registered", &[1])?;
        self.store.commit_open()?;
        self.transport.close(1000).await;
        Ok(())
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

fn sign_list(key: &SigningKey, list: &DeviceList) -> Result<SignedDeviceList> {
    sign_list_bytes(key, list.encode())
}

fn sign_list_bytes(key: &SigningKey, encoded: Bytes) -> Result<SignedDeviceList> {
    let signature = Bytes::copy_from_slice(&key.sign(&DeviceList::transcript(&encoded)).to_bytes());
    let signed = SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature)?;
    debug_assert!(encode_list(&signed).len() < 4096, "a device list has 4096 bytes or more");
    Ok(signed)
}
