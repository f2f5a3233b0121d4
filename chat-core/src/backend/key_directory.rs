//! Accounts, signed device lists and prekeys.

use std::fmt;

use async_trait::async_trait;

use crate::model::device_list::SignedDeviceList;
use crate::model::error::Result;
use crate::model::id::{Handle, Incarnation, InstallationId, UserId};
use crate::model::prekeys::{Bundle, PrekeyUpload};

/// Stores accounts, signed device lists and prekeys; hands out each one-time prekey to exactly one caller.
///
/// # Contract
/// Each sentence names its case of the conformance suite. Calls run at the same time, from every gateway.
/// - A handle is mapped to a user once (`a_handle_is_taken_once`), also by concurrent callers
///   (`concurrent_registrations_have_one_winner`). Repeating the same registration succeeds
///   (`registering_again_is_the_same`).
/// - A list is written only if it follows the stored one. Writing the stored list again succeeds
///   (`lists_follow_each_other`). Of concurrent lists with the same version, one is written
///   (`concurrent_lists_have_one_winner`).
/// - Earlier versions of a list stay readable (`earlier_lists_stay_readable`).
/// - A list signed by another account key is written only when the caller replaces the account with
///   [`AccountKey::New`] (`an_account_is_replaced_by_name_only`).
/// - An installation belongs to one user for ever (`an_installation_has_one_user`).
/// - A repeated upload changes nothing (`an_upload_repeated_changes_nothing`). An upload may replace all prekeys
///   (`an_upload_can_replace`). One above the limit is refused (`too_many_prekeys_are_refused`).
/// - [`claim`](Self::claim) returns each one-time prekey to exactly one caller (`a_prekey_is_claimed_once`), also
///   to concurrent ones (`concurrent_claims_get_distinct_prekeys`), the lowest id first. It returns a bundle without
///   one when none is left (`a_bundle_without_one_time_prekey`), and when the caller wants none: then it takes none
///   (`a_claim_of_the_signed_part_takes_no_prekey`).
/// - Incarnations only rise, above that which the device replaces. A repeated nonce returns the same incarnation
///   (`incarnations_rise`).
/// - The first prekeys of a device, an upload through id 0, are stored if it has none, and change nothing otherwise
///   (`first_prekeys_are_stored_once`).
/// - A device that a list no longer names loses its prekeys and keeps its incarnation (`a_removed_device_has_no_prekeys`).
/// - A new incarnation has no prekeys until the device uploads some (`a_new_incarnation_has_no_prekeys`).
/// - Ids of prekeys, versions and times are 0 to 2^53 - 1 (`prekey_ids_have_53_bits`).
/// - [`revocations`](Self::revocations) has every revocation since a time (`revocations_are_listed_by_time`); each stays
///   (`a_later_revocation_keeps_the_earlier`).
/// - A deleted account has no list, no handle and no keys, and its list versions stay (`a_deleted_account_is_gone`). Its
///   handle is free, its user and installations are not (`a_deleted_user_is_never_used_again`). Deleting it again returns
///   the same installations (`deleting_again_is_the_same`).
/// - An unknown user or handle reads as empty (`an_unknown_user_is_empty`).
///
/// # Calls
/// Orders of magnitude, with the engine's caches:
///
/// | method | called |
/// |---|---|
/// | `list` | once per session, and per user that a gateway has no fresh list of: not per message |
/// | `list_version` | per message of a device that was unlinked before it was read |
/// | `device` | once per session, and after a claim from a connected device |
/// | `resolve` | per session whose token names a handle, and per search |
/// | `handle_of` | per user of a request for device lists |
/// | `claim` | per new session between two devices |
/// | `upload` | per refill of up to 100 prekeys |
/// | `register`, `put_list` | per account, per change of its devices |
/// | `delete` | once per account |
/// | `revocations` | every 30 s by each node |
/// | `reincarnate` | per recovery: at most once a day, unless the user requests it |
#[async_trait]
pub trait KeyDirectory: fmt::Debug + Send + Sync + 'static {
    /// Registers an account: maps the handle to the list's user and stores version 1 of the list.
    ///
    /// # Errors
    /// `Conflict` if the handle, the user or an installation is taken; `Invalid` if the list is not version
    /// 1.
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()>;

    /// Returns the user of a handle.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>>;

    /// Returns the handle of a user.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>>;

    /// Returns the newest device list of a user.
    ///
    /// # Errors
    /// `Unavailable` if the read fails, `Corrupt` if the stored list cannot be decoded.
    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>>;

    /// Returns a version of the device list of a user; `None` if there is no such version.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>>;

    /// Stores the next version of a list, and erases the prekeys of devices that it no longer names. `key` says whether it
    /// must carry the same account key or a new one.
    ///
    /// # Errors
    /// `Conflict` if the list does not follow the stored one, or if an installation belongs to another user;
    /// `NotFound` if the account does not exist. `Unavailable`: the list may be stored. An answer means that the
    /// list is stored; prekeys that could not be erased are erased with the next list of the user.
    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()>;

    /// Stores prekeys of a device; gives how many one-time prekeys it has now.
    ///
    /// # Errors
    /// `Throttled` if the device would have more than [`STORED_PREKEYS`](crate::model::limits::STORED_PREKEYS).
    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64>;

    /// Returns a bundle, with a one-time prekey if one is wanted and left; `None` if the device never uploaded.
    ///
    /// # Errors
    /// `Unavailable`: the one-time prekey may be used up. It is never handed out again.
    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>>;

    /// Returns the stored key state of a device.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn device(&self, device: InstallationId) -> Result<DeviceKeys>;

    /// Assigns a device its next incarnation and returns it.
    ///
    /// # Errors
    /// `Throttled` if less than a day has passed since the device's last incarnation and the user did not
    /// request this one.
    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation>;

    /// Deletes an account: its handle is free, its prekeys and incarnations are erased, and its user and installations are
    /// never used again. Its list versions stay readable, so that other users can verify messages that wait for them.
    /// Returns the installations of all its list versions, also when the account was deleted before.
    ///
    /// # Errors
    /// `NotFound` if the account never existed. `Unavailable`: a part may be deleted. A repeat is safe.
    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>>;

    /// Records that tokens of a user which were issued before a time, in milliseconds since 1970, are no longer valid.
    ///
    /// # Errors
    /// `Unavailable`: the revocation may be stored or not; a repeat is safe.
    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()>;

    /// Returns the revocations with a time of at least `since_ms`, in no order.
    ///
    /// # Errors
    /// `Unavailable` if the read fails, `Corrupt` if one cannot be decoded.
    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>>;
}

/// The parts of a bundle that a claim takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum BundleParts {
    /// The signed part, and a one-time prekey.
    WithOneTimePrekey,
    /// The signed part, which any number of devices may use.
    SignedOnly,
}

/// The account key that the next list must be signed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum AccountKey {
    /// The key that signed the stored list.
    Same,
    /// A new key: the old one is lost.
    New,
}

impl AccountKey {
    /// Checks that a list may follow the stored one.
    ///
    /// # Errors
    /// `Conflict` if it may not.
    pub fn check(self, list: &SignedDeviceList, stored: &SignedDeviceList) -> Result<()> {
        match self {
            Self::Same => list.check_follows(stored),
            Self::New => list.check_replaces(stored),
        }
    }
}

/// The stored key state of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct DeviceKeys {
    pub incarnation: Incarnation,
    /// Number of stored one-time prekeys.
    pub prekeys: u64,
    /// The highest prekey id that the device uploaded in this incarnation; 0 if it only has its first prekeys, or none.
    pub uploaded_through: u64,
}

impl DeviceKeys {
    /// Returns whether the device has opened a session: it uploaded prekeys, or took an incarnation, itself.
    pub const fn is_active(&self) -> bool {
        self.uploaded_through > 0 || self.incarnation > 0
    }
}

/// A request for a new incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Reincarnation {
    /// Idempotency key: a repeated nonce returns the same incarnation.
    pub nonce: [u8; 16],
    /// The user requested it, so the limit of one a day does not apply.
    pub asked: bool,
    /// The incarnation that it replaces. A directory that was restored from an older copy may have a lower one.
    pub from: Incarnation,
    /// The server's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Minimum time in milliseconds between two incarnations that a device requests without its user.
pub(crate) const REINCARNATION_EVERY_MS: u64 = 24 * 3600 * 1000;

impl Reincarnation {
    /// Returns the incarnation for a device whose last request was `(incarnation, nonce, at_ms)`; `None` if
    /// the request is throttled.
    pub fn decide(&self, last: Option<(Incarnation, [u8; 16], u64)>) -> Option<Incarnation> {
        match last {
            Some((incarnation, nonce, _)) if nonce == self.nonce => Some(incarnation),
            Some((_, _, at_ms))
                if !self.asked && self.now_ms < at_ms.saturating_add(REINCARNATION_EVERY_MS) =>
            {
                None
            }
            Some((incarnation, ..)) => Some(incarnation.max(self.from).saturating_add(1)),
            None => Some(self.from.saturating_add(1)),
        }
    }
}
