//! Accounts, signed device lists and prekeys.

use std::fmt;

use async_trait::async_trait;

use crate::model::device_list::SignedDeviceList;
use crate::model::error::Result;
use crate::model::id::{Handle, Incarnation, InstallationId, UserId};
use crate::model::prekeys::{Bundle, PrekeyUpload};

/// Signed device lists and prekeys; a one-time prekey goes to exactly one caller.
///
/// # Contract
/// - A handle is mapped to a user once (`a_handle_is_taken_once`); the same registration again succeeds
///   (`registering_again_is_the_same`).
/// - A list is written only if it follows the stored one (`lists_follow_each_other`); the stored one again
///   succeeds.
/// - A list by another account key is written only where the account is being replaced by name
///   (`an_account_is_replaced_by_name_only`).
/// - An installation belongs to one user for ever (`an_installation_has_one_user`).
/// - An upload repeated changes nothing (`an_upload_repeated_changes_nothing`).
/// - [`claim`](Self::claim) gives each one-time prekey to exactly one caller (`a_prekey_is_claimed_once`),
///   and a bundle without one when none is left (`a_bundle_without_one_time_prekey`).
/// - Incarnations only rise; the same nonce gets the same answer (`incarnations_rise`).
/// - A new incarnation has no prekeys until it uploads some (`a_new_incarnation_has_no_prekeys`).
#[async_trait]
pub trait KeyDirectory: fmt::Debug + Send + Sync + 'static {
    /// Opens an account: maps the handle to the list's user and stores version 1 of the list.
    ///
    /// # Errors
    /// `Conflict` if handle, user or an installation is taken; `Invalid` if the list is not version 1.
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()>;

    /// The user a handle means.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>>;

    /// The handle of a user.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>>;

    /// The newest list of a user.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now, `Corrupt` if it does not read back.
    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>>;

    /// Stores the next version of a list, by the same account key or, where whoever may said so, by a new
    /// one.
    ///
    /// # Errors
    /// `Conflict` if it does not follow the stored one or an installation is another user's; `NotFound`
    /// without an account.
    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()>;

    /// Stores prekeys of a device; gives how many one-time prekeys it has now.
    ///
    /// # Errors
    /// `Throttled` if the device would have more than [`STORED_PREKEYS`](crate::model::limits::STORED_PREKEYS).
    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64>;

    /// A bundle, with a one-time prekey if there is one left; `None` if the device never uploaded.
    ///
    /// # Errors
    /// `Unavailable`: the key may be gone; it is never given again.
    async fn claim(&self, device: InstallationId) -> Result<Option<Bundle>>;

    /// What is kept of a device.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn device(&self, device: InstallationId) -> Result<DeviceKeys>;

    /// Gives a device its next incarnation.
    ///
    /// # Errors
    /// `Throttled` if the device had one by itself less than a day ago.
    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation>;
}

/// Which account key a list may be signed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum AccountKey {
    /// The one that signed the list before.
    Same,
    /// A new one: the old one is lost.
    New,
}

impl AccountKey {
    /// Checks that a list may follow the stored one.
    ///
    /// # Errors
    /// `Conflict` if not.
    pub fn check(self, list: &SignedDeviceList, stored: &SignedDeviceList) -> Result<()> {
        match self {
            Self::Same => list.check_follows(stored),
            Self::New => list.check_replaces(stored),
        }
    }
}

/// What is kept of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct DeviceKeys {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// One-time prekeys held.
    pub prekeys: u64,
}

/// A wish for a new incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Reincarnation {
    /// The same nonce gets the same answer.
    pub nonce: [u8; 16],
    /// The user asked for it: the limit of one a day does not count.
    pub asked: bool,
    /// The server's clock in milliseconds.
    pub now_ms: u64,
}

/// Milliseconds between two incarnations that a device takes by itself.
pub(crate) const REINCARNATION_EVERY_MS: u64 = 24 * 3600 * 1000;

impl Reincarnation {
    /// Decides what a device whose last one was `(incarnation, nonce, at_ms)` gets; `None` is *throttled*.
    pub fn decide(&self, last: Option<(Incarnation, [u8; 16], u64)>) -> Option<Incarnation> {
        match last {
            Some((incarnation, nonce, _)) if nonce == self.nonce => Some(incarnation),
            Some((_, _, at_ms))
                if !self.asked && self.now_ms < at_ms.saturating_add(REINCARNATION_EVERY_MS) =>
            {
                None
            }
            Some((incarnation, ..)) => Some(incarnation + 1),
            None => Some(1),
        }
    }
}
