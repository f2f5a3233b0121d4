use serde::{Deserialize, Serialize};

use crate::message::User;

/// The relation of this user to another one. The other user never learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Relation {
    /// The user is neither accepted nor blocked, and this user has not written to it. Its messages are message requests. It
    /// does not learn whether they were delivered or read, nor whether this user is online or typing.
    Stranger,
    /// The user is [accepted](crate::Client::accept), or this user wrote to it.
    Contact,
    /// The user is [blocked](crate::Client::block).
    Blocked,
}

impl Relation {
    /// Returns the name of the relation in `chat --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Contact => "contact",
            Self::Blocked => "blocked",
        }
    }
}

/// A user that this user accepted or blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Contact {
    pub user: User,
    pub relation: Relation,
}
