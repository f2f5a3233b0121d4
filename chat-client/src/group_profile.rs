//! The profile of a group: the part that its members see and the server does not.

use chat_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Maximum bytes of the name of a group.
const MAX_NAME: usize = 256;
/// Maximum bytes of a description.
const MAX_DESCRIPTION: usize = 4_096;
/// Maximum bytes of the reference to a picture.
const MAX_PICTURE: usize = 1_024;

/// Checks the name of a group. Users choose it, so it is checked on receipt too.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if (1..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "the name of a group has 1 to 256 bytes"))
}

/// How a group presents itself. It is encrypted: only members see it, and users with an invitation see the name.
///
/// ```
/// use chat_client::GroupProfile;
/// let profile = GroupProfile::new("Hiking").description("Every second Sunday, at eight.");
/// assert_eq!(profile.name, "Hiking");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupProfile {
    /// 1 to 256 bytes.
    pub name: String,
    /// At most 4,096 bytes; empty without one.
    pub description: String,
    /// A reference that the application resolves, such as a media id, of at most 1,024 bytes. The client does not fetch it.
    pub picture: Option<String>,
}

impl GroupProfile {
    /// Returns a profile with a name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the description.
    #[must_use]
    pub fn description(self, description: impl Into<String>) -> Self {
        Self { description: description.into(), ..self }
    }

    /// Sets the reference to the picture.
    #[must_use]
    pub fn picture(self, reference: impl Into<String>) -> Self {
        Self { picture: Some(reference.into()), ..self }
    }

    /// Checks the sizes of the parts. A member chooses them, so they are checked on receipt too.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what| Err(Error::new(ErrorKind::Invalid, what));
        check_name(&self.name)?;
        if self.description.len() > MAX_DESCRIPTION {
            return invalid("the description of a group has at most 4,096 bytes");
        }
        match &self.picture {
            Some(picture) if !(1..=MAX_PICTURE).contains(&picture.len()) => {
                invalid("the reference to a picture has 1 to 1,024 bytes")
            }
            _ => Ok(()),
        }
    }
}
