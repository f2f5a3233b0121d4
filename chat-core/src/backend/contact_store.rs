//! Contacts: the users that a user accepted or blocked, and the audience of its presence.

use std::fmt;

use async_trait::async_trait;

use crate::model::contact::{Contact, ContactChange, Contacts};
use crate::model::error::Result;
use crate::model::id::UserId;
use crate::model::presence::PresenceAudience;

/// Stores which users a user accepted or blocked, and which users learn its presence.
///
/// # Contract
/// Each sentence names its case of the conformance suite. Calls run at the same time, from every gateway.
/// - A pair without a change is neither accepted nor blocked; the contacts of an unknown user are empty and have version 0
///   (`an_unknown_pair_is_a_stranger`).
/// - A change holds for its owner only, not in the other direction (`a_change_holds_for_its_owner`).
/// - A block changes nothing about the acceptance, and an acceptance nothing about the block
///   (`accepted_and_blocked_are_independent`).
/// - The version rises by one with each change (`versions_are_dense`). A change without effect changes nothing
///   (`a_repeated_change_changes_nothing`).
/// - [`contacts`](Self::contacts) has every entry of its owner, as of its version or later (`contacts_has_every_entry`).
/// - Concurrent changes are all stored (`concurrent_changes_are_all_stored`).
/// - A change of a new pair above the limit is refused; changes of other pairs are not (`the_limit_is_for_new_pairs`).
/// - The audience is [`Contacts`](PresenceAudience::Contacts) until its owner sets another one (`each_owner_has_an_audience`). That
///   raises the version like any change, is no pair, and changes none (`an_audience_is_a_change_and_no_pair`).
/// - An owner that was erased has no contacts, and other owners keep theirs (`an_erased_owner_has_no_contacts`).
///
/// # Calls
/// A gateway calls `contact` for a pair, and `audience` for a watched user, if its cached value is old: not per message. It calls
/// `version` once per session, and `contacts` after a change by another device.
#[async_trait]
pub trait ContactStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the decision of `owner` about `other`.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact>;

    /// Changes the decision of `owner` about `other`. `limit` is the maximum number of pairs of the owner. Returns the
    /// version after the change.
    ///
    /// # Errors
    /// `Throttled` if the owner has too many pairs. `Unavailable`: the change may be stored or not; a repeat is safe.
    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64>;

    /// Returns the users that learn the presence of `owner`.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn audience(&self, owner: UserId) -> Result<PresenceAudience>;

    /// Changes the users that learn the presence of `owner`. Returns the version after the change.
    ///
    /// # Errors
    /// `Unavailable`: the change may be stored or not; a repeat is safe.
    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64>;

    /// Returns the version of the owner's contacts.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn version(&self, owner: UserId) -> Result<u64>;

    /// Returns all contacts of the owner, and its audience.
    ///
    /// # Errors
    /// `Unavailable` if the read fails, `Corrupt` if an entry cannot be decoded.
    async fn contacts(&self, owner: UserId) -> Result<Contacts>;

    /// Erases all contacts of an owner, and its audience. The engine calls it when it deletes the account.
    ///
    /// # Errors
    /// `Unavailable`: they may be erased or not. A repeat is safe.
    async fn erase(&self, owner: UserId) -> Result<()>;
}
