//! Presence of users: online, last seen, and the users that learn it.

use serde::{Deserialize, Serialize};

/// Whether a user is connected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum UserPresence {
    /// Connected by at least one device.
    Online,
    /// Not connected, or hidden.
    Offline {
        /// When a device of the user was connected last, in milliseconds since 1970. `None` if it is hidden or unknown.
        last_seen_ms: Option<u64>,
    },
}

impl UserPresence {
    /// The presence of a user that does not exist, was never connected, or hides it.
    pub const HIDDEN: Self = Self::Offline { last_seen_ms: None };
}

/// The users that learn whether a user is online, and when it was last seen. A blocked user never does, and the own devices
/// always do.
///
/// ```
/// use chat_core::presence::PresenceAudience;
/// assert_eq!(PresenceAudience::default(), PresenceAudience::Contacts);
/// assert_eq!(PresenceAudience::from_number(2), Some(PresenceAudience::All));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PresenceAudience {
    /// The users that this user accepted or wrote to.
    #[default]
    Contacts,
    /// Only the own devices.
    Nobody,
    /// Every user.
    All,
}

impl PresenceAudience {
    /// All audiences.
    pub const ALL: [Self; 3] = [Self::Contacts, Self::Nobody, Self::All];

    /// Returns whether every user of this audience belongs to another one, which has others too.
    pub const fn is_narrower_than(self, other: Self) -> bool {
        matches!((self, other), (Self::Nobody, Self::Contacts | Self::All) | (Self::Contacts, Self::All))
    }

    /// Returns the number of the audience in frames and stores.
    pub const fn number(self) -> u8 {
        match self {
            Self::Contacts => 0,
            Self::Nobody => 1,
            Self::All => 2,
        }
    }

    /// Returns the audience with a number; `None` if there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|audience| audience.number() == number)
    }
}
