//! A profile: the keys of an account and a device in a local store, and how they come to be.

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
    /// Who this is.
    pub device: DeviceAddress,
    /// What people type to reach this user.
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

/// A device that waits to be linked.
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
    /// `NotFound` if none was registered or linked.
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

    /// Whether this device holds the account key, and so can approve others.
    pub const fn is_primary(&self) -> bool {
        self.account_secret.is_some()
    }

    /// The public account key.
    pub const fn account_key(&self) -> &[u8; 32] {
        &self.account_key
    }

    /// A signature of the device key.
    pub fn sign(&self, message: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&self.device_key.sign(message).to_bytes())
    }

    /// The list that follows `before`, with these devices, signed by the account key.
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

    /// Opens an account. Repeating it after a lost answer is the same registration.
    ///
    /// # Errors
    /// `Conflict` if the handle is taken or the profile has another account, `Denied` if the token is not
    /// accepted, and those of dialling.
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

    /// Opens the account of this handle anew, because every device of it is lost. It keeps its user; its
    /// account key is another one, of which everybody who knew the old one is told. Takes a token that
    /// names the handle.
    ///
    /// # Errors
    /// `NotFound` if there is no such account, `Denied` without a token for it, `Conflict` if the profile has
    /// an account or the account changed meanwhile (try again), and those of dialling.
    pub async fn replace(
        profile: impl Into<StoreConfig>,
        dialer: &Dialer,
        suite: &mut dyn Suite,
        handle: &Handle,
        token: &str,
    ) -> Result<()> {
        let Some(mut store) = Self::begin(profile.into(), handle)? else { return Ok(()) };
        let mut transport = dialer.dial().await?;
        // Keys of an account that was never opened, if somebody tried to register first, replace nothing.
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

    /// The store of a profile that has no account yet, or that of this handle half opened; `None` if it is
    /// open.
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
        let missing = || Error::new(ErrorKind::Corrupt, "the profile lost its keys");
        let account = secret(&store, "account_secret")?.ok_or_else(missing)?;
        let encoded: Bytes = store.meta("first_list")?.ok_or_else(missing)?.into();
        let list = sign_list_bytes(&account, encoded)?;
        let (token_text, handle) = (token.to_owned(), handle.clone());
        let user = list.list().user;
        let registration = Registration::Account { token: token_text, handle, list, replace };
        match request(transport.as_mut(), registration).await {
            Ok((opened, _)) if opened == user => {}
            Ok(_) => return Err(Error::new(ErrorKind::Invalid, "the server opened another account")),
            Err(error) => {
                if replace && error.kind() != ErrorKind::Throttled {
                    // The list that ours follows may be no longer the last: the next try asks again.
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

    /// Keys and the first list of this account key, durable before anything is sent.
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

    /// Shows this device to the server and waits to be linked.
    ///
    /// # Errors
    /// `Conflict` if the profile has an account already, and those of dialling.
    pub async fn link(
        profile: impl Into<StoreConfig>,
        dialer: &Dialer,
        suite: &mut dyn Suite,
        token: &str,
    ) -> Result<PendingLink> {
        let mut store = LocalStore::open(&profile.into())?;
        if store.meta("registered")?.is_some() || store.meta("account_secret")?.is_some() {
            return Err(Error::new(ErrorKind::Conflict, "the profile has an account already"));
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
    /// The code to type on the first device.
    pub const fn code(&self) -> &LinkCode {
        &self.code
    }

    /// Waits until the first device approved.
    ///
    /// # Errors
    /// `Denied` if the answer is not for this device, `Closed` if the server closed or nobody approved.
    pub async fn wait(mut self) -> Result<()> {
        let answer = loop {
            match next_frame(self.transport.as_mut()).await? {
                ServerFrame::LinkAnswer(answer) => break answer,
                ServerFrame::Refused(Subject::Opening, refusal) => return Err(refused(&refusal)),
                ServerFrame::Close { .. } => {
                    return Err(Error::new(ErrorKind::Closed, "nobody approved this device"));
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

/// Sends a registration and waits for what it opened.
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
        _ => Error::new(ErrorKind::Invalid, "the server refused"),
    }
}

fn sign_list(key: &SigningKey, list: &DeviceList) -> Result<SignedDeviceList> {
    sign_list_bytes(key, list.encode())
}

fn sign_list_bytes(key: &SigningKey, encoded: Bytes) -> Result<SignedDeviceList> {
    let signature = Bytes::copy_from_slice(&key.sign(&DeviceList::transcript(&encoded)).to_bytes());
    let signed = SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature)?;
    debug_assert!(encode_list(&signed).len() < 4096, "a list fits its frame");
    Ok(signed)
}
