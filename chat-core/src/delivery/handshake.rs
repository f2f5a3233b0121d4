//! How a session begins: accounts, `Hello` and routes.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join3;

use super::Engine;
use super::admission::refusal_of;
use super::hub::SessionHandle;
use crate::backend::{AccountKey, Authenticated, Route};
use crate::model::client_frame::{Hello, Registration};
use crate::model::close_reason::CloseReason;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::Refusal;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceAddress, Handle, InstallationId, UserId};
use crate::model::limits::WIRE_VERSION;
use crate::model::prekeys::FirstPrekeys;
use crate::model::server_frame::Welcome;
use crate::model::signing::verify;
use crate::mutant::Mutant;

/// Outcome of a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Registered {
    /// The user of the account.
    pub user: UserId,
    /// The device list in force, where the registration asked for it.
    pub in_force: Option<Box<SignedDeviceList>>,
}

/// Outcome of a successful `Hello`.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Greeting {
    pub device: DeviceAddress,
    pub welcome: Welcome,
    /// Time until the token expires. `None`: never.
    pub expires_in: Option<Duration>,
}

impl Engine {
    /// Registers an account, or replaces one whose keys are lost.
    ///
    /// Replacing an account requires a token that names it; open registration cannot replace one. The client
    /// looks up the list in force first, since the new list must follow it.
    ///
    /// # Errors
    /// The refusal to send.
    pub async fn register(&self, registration: &Registration) -> Result<Registered, Refusal> {
        let (token, handle, list, replace) = match registration {
            Registration::Account { token, handle, list, replace, prekeys } => {
                (token, handle, Some((list, prekeys.clone())), *replace)
            }
            Registration::Lookup { token, handle } => (token, handle, None, true),
            Registration::Link { .. } => return Err(Refusal::Unsupported),
        };
        let verified = self.verify_token(token).await.map_err(|_| Refusal::Denied)?;
        if verified.handle.as_ref().map_or(replace, |named| named != handle) {
            return Err(Refusal::Denied);
        }
        let known = self.backends.keys.resolve(handle).await.map_err(|error| refusal_of(&error))?;
        if known.is_some_and(|user| self.is_revoked(user, &verified)) {
            return Err(Refusal::Denied);
        }
        let opened = match (list, replace) {
            (Some((list, prekeys)), false) => {
                self.create(handle, list, prekeys).await.map(|()| (list.list().user, None))
            }
            (list, _) => self.replace(handle, list).await,
        };
        let (user, in_force) = opened.map_err(|error| refusal_of(&error))?;
        Ok(Registered { user, in_force })
    }

    async fn create(
        &self,
        handle: &Handle,
        list: &SignedDeviceList,
        prekeys: Vec<FirstPrekeys>,
    ) -> Result<()> {
        // The directory decides. This read keeps the prekeys of refused registrations out of it.
        if self.backends.keys.resolve(handle).await?.is_none_or(|user| user == list.list().user) {
            self.store_first_prekeys(list, prekeys).await?;
        }
        self.backends.keys.register(handle, list).await
    }

    async fn replace(
        &self,
        handle: &Handle,
        list: Option<(&SignedDeviceList, Vec<FirstPrekeys>)>,
    ) -> Result<(UserId, Option<Box<SignedDeviceList>>)> {
        let missing = || Error::new(ErrorKind::NotFound, "there is no such account");
        let user = self.backends.keys.resolve(handle).await?.ok_or_else(missing)?;
        match list {
            None => {
                let list = self.backends.keys.list(user).await?.ok_or_else(missing)?;
                Ok((user, Some(Box::new(list))))
            }
            Some((list, prekeys)) => {
                self.put_list(user, list, AccountKey::New, prekeys).await?;
                Ok((user, None))
            }
        }
    }

    /// Checks who a device is: its token says which user, its signature which device.
    ///
    /// # Errors
    /// The reason to close the connection with.
    pub async fn authenticate(&self, hello: &Hello) -> Result<Greeting, CloseReason> {
        let claims = &hello.claims;
        if claims.version != WIRE_VERSION {
            return Err(CloseReason::Version);
        }
        let known = &self.settings.authorities;
        if !known.is_empty() && !known.contains(&claims.authority) {
            return Err(CloseReason::Unauthorized);
        }
        let later = |_: Error| CloseReason::Draining;
        let verified = self.accept_token(claims.user, &claims.token).await?;
        let now = self.now_ms();
        self.limits.may_try(claims.user, now).map_err(|_| CloseReason::Throttled)?;
        let list = self.device_list(claims.user).await.map_err(later)?.ok_or(CloseReason::Unauthorized)?;
        let entry = list.list().device(claims.device).ok_or(CloseReason::Unauthorized)?;
        self.counters.signatures.fetch_add(1, Ordering::Relaxed);
        if verify(&entry.device_key, &claims.transcript(), &hello.signature).is_err() {
            let _ = self.limits.failed(claims.user, now);
            return Err(CloseReason::Unauthorized);
        }
        if self.is_half_linked(&Some(list.clone()), entry.installation()).await.map_err(later)? {
            return Err(CloseReason::Unauthorized);
        }
        let (device, mut welcome) = self.greet(hello, &list, entry.installation()).await.map_err(later)?;
        // Computed last, because the steps before take time.
        let expires_in = verified.expires_at.map(|at| self.time_until(at));
        welcome.token_expires_in_ms = expires_in.map_or(0, |time| (time.as_millis() as u64).max(1));
        Ok(Greeting { device, welcome, expires_in })
    }

    /// Checks that a token is valid, names a user, and is not revoked.
    pub(super) async fn accept_token(&self, user: UserId, token: &str) -> Result<Authenticated, CloseReason> {
        let verified = match self.verify_token(token).await {
            Ok(verified) => verified,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(CloseReason::Draining),
            Err(_) => return Err(CloseReason::Unauthorized),
        };
        if let Some(handle) = &verified.handle {
            let named = self.backends.keys.resolve(handle).await.map_err(|_| CloseReason::Draining)?;
            if named != Some(user) || self.is_revoked(user, &verified) {
                return Err(CloseReason::Unauthorized);
            }
        }
        Ok(verified)
    }

    /// Checks a token. One that has expired by the engine's clock is denied, even if the authenticator accepts
    /// it.
    async fn verify_token(&self, token: &str) -> Result<Authenticated> {
        let verified = self.backends.authenticator.authenticate(token).await?;
        if verified.expires_at.is_some_and(|at| self.time_until(at).is_zero()) {
            return Err(Error::new(ErrorKind::Denied, "the token has expired"));
        }
        Ok(verified)
    }

    /// Returns the time until `at` by the engine's clock; zero if it passed.
    pub(super) fn time_until(&self, at: SystemTime) -> Duration {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        at.saturating_sub(Duration::from_micros(self.now_us()))
    }

    /// Compares the claims of an authenticated device with the stored values, to detect a rollback.
    pub(crate) async fn greet(
        &self,
        hello: &Hello,
        list: &SignedDeviceList,
        installation: InstallationId,
    ) -> Result<(DeviceAddress, Welcome)> {
        let claims = &hello.claims;
        let device = DeviceAddress { user: claims.user, device: claims.device, installation };
        let (keys, generation, contacts_version) = try_join3(
            self.backends.keys.device(device.installation),
            self.backends.store.generation(device.installation),
            self.backends.contacts.version(device.user),
        )
        .await?;
        let identity = self.identity();
        let rollback = (claims.generation < generation || claims.incarnation < keys.incarnation)
            && hello.store_epoch.is_none_or(|epoch| epoch == identity.epoch)
            && !Mutant::NoRollbackDetection.is_active();
        let welcome = Welcome {
            store_epoch: identity.epoch,
            server_time: self.now_ms(),
            rollback,
            incarnation: keys.incarnation,
            prekeys: u32::try_from(keys.prekeys).unwrap_or(u32::MAX),
            list_version: list.list().version,
            retention_ms: self.settings.retention_ms,
            instance: self.instance,
            contacts_version,
            token_expires_in_ms: 0,
            rules: self.settings.rules.0,
        };
        Ok((device, welcome))
    }

    /// Binds a session: from now on the engine delivers events to it. Call this before the first read of the
    /// inbox, so that the session misses no row in between.
    ///
    /// The registry is a hint: if it fails, the session is found from this process only, until a
    /// [beat](Self::beat) restores its route.
    ///
    /// # Errors
    /// `Denied` if the device is not listed, `Unavailable` if the list cannot be read.
    pub async fn bind(&self, device: DeviceAddress) -> Result<SessionHandle> {
        // The epoch must be above that of every earlier session here, independent of the registry's clock.
        let above = self.hub.route(device.installation).map_or(0, |route| route.epoch + 1);
        let without = self.now_us().max(above);
        let registered = self.backends.registry.bind(device, self.settings.gateway).await;
        let epoch = registered.map_or(without, |epoch| epoch.max(above));
        let session = self.hub.bind(Route { device, gateway: self.settings.gateway, epoch });
        // The device may have been unlinked since its `Hello`: read the directory, not the cache. A later
        // change reaches the bound session as an event.
        let list = self.backends.keys.list(device.user).await;
        let listed = |list: &SignedDeviceList| list.list().addresses().any(|known| known == device);
        if !matches!(&list, Ok(Some(list)) if listed(list)) {
            self.unbind(&session).await;
            return Err(list.err().unwrap_or(Error::new(ErrorKind::Denied, "the device is not listed")));
        }
        let _ = self.backends.presence.beat(device.user, device.installation, true, self.now_ms()).await;
        Ok(session)
    }

    /// Returns whether this is still the current session of its device in this process.
    pub fn is_current(&self, session: &SessionHandle) -> bool {
        self.hub.route(session.route.device.installation) == Some(session.route)
    }

    /// Unbinds a session and removes its route from the registry.
    pub async fn unbind(&self, session: &SessionHandle) {
        let device = session.route.device;
        if self.hub.unbind(&session.route) {
            let _ = self.backends.presence.beat(device.user, device.installation, false, self.now_ms()).await;
        }
        let _ = self.backends.registry.unbind(session.route).await;
    }

    /// Records that a session is alive. Closes it if its device has a later session on another gateway, or is
    /// no longer listed.
    pub async fn beat(&self, session: &SessionHandle) {
        let device = session.route.device;
        let renewed = self.backends.registry.renew(session.route).await;
        if renewed.is_err_and(|error| error.kind() == ErrorKind::Conflict) && self.is_elsewhere(session).await
        {
            return self.hub.close_session(&session.route, CloseReason::Replaced);
        }
        // The event that closes the session of an unlinked device may have been lost between gateways.
        if let Ok(Some(list)) = self.device_list(device.user).await
            && !list.list().addresses().any(|listed| listed == device)
        {
            self.hub.close(device.installation, CloseReason::Unauthorized);
        }
        let _ = self.backends.presence.beat(device.user, device.installation, true, self.now_ms()).await;
    }

    /// Returns whether a device has a later session on another gateway. A later route to this gateway does
    /// not count: it comes from a registry call that failed here and took effect afterwards.
    async fn is_elsewhere(&self, session: &SessionHandle) -> bool {
        let Route { device, gateway, epoch } = session.route;
        let routes = self.backends.registry.lookup(&[device.user]).await.unwrap_or_default();
        let later = |route: &Route| route.device == device && route.epoch > epoch && route.gateway != gateway;
        routes.iter().any(later)
    }

    /// Clears the cached device lists and decisions about contacts, because another process may have changed some.
    pub fn invalidate_caches(&self) {
        self.lists_changed.fetch_add(1, Ordering::AcqRel);
        self.lists.clear();
        self.decisions_changed.fetch_add(1, Ordering::AcqRel);
        self.decided.clear();
        self.audiences.clear();
    }
}
