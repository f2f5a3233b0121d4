//! The decisions of a user about other users: accepted, blocked, and the audience of its presence.

use super::id::UserId;
use super::presence::PresenceAudience;

/// The decision of one user about another. The other user never learns it.
///
/// A user that is neither accepted nor blocked is a stranger, and its messages are message requests, until the user
/// writes to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Contact {
    /// The other user learns whether its messages were delivered and read, and whether this user is online or typing.
    pub accepted: bool,
    /// No message of the other user is delivered, and each learns nothing of the other. It does not change `accepted`, so
    /// that the other user has the same rate limits as before.
    pub blocked: bool,
}

/// A change of a [`Contact`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ContactChange {
    /// Accept the user. A blocked one stays blocked.
    Accept,
    Block,
    Unblock,
}

impl ContactChange {
    /// All changes.
    pub const ALL: [Self; 3] = [Self::Accept, Self::Block, Self::Unblock];

    /// Returns the contact after the change.
    ///
    /// ```
    /// use chat_core::contact::{Contact, ContactChange};
    /// let contact = ContactChange::Block.apply(ContactChange::Accept.apply(Contact::default()));
    /// assert_eq!(contact, Contact { accepted: true, blocked: true });
    /// ```
    #[must_use]
    pub const fn apply(self, contact: Contact) -> Contact {
        match self {
            Self::Accept => Contact { accepted: true, ..contact },
            Self::Block => Contact { blocked: true, ..contact },
            Self::Unblock => Contact { blocked: false, ..contact },
        }
    }
}

/// All contacts of a user.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Contacts {
    /// The number of changes. A device that knows a lower version must read the contacts again.
    pub version: u64,
    /// The users that are or were accepted or blocked, in no order.
    pub entries: Vec<(UserId, Contact)>,
    /// The users that learn whether this user is online, and when it was last seen.
    pub audience: PresenceAudience,
}
