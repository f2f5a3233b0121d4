//! What a message says: a versioned protobuf, padded so that its length tells little.

use chat_core::padding::{pad, unpad};
use chat_core::{Error, ErrorKind, Result};
use prost::Message as _;

/// The content of a message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[allow(clippy::exhaustive_structs)]
pub struct Content {
    /// The version of this form: 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// A text.
    #[prost(string, optional, tag = "2")]
    pub text: Option<String>,
}

impl Content {
    /// A text.
    pub fn of_text(text: &str) -> Self {
        Self { version: 1, text: Some(text.to_owned()) }
    }

    /// The content, padded.
    ///
    /// ```
    /// use chat_client::content::Content;
    /// assert_eq!(Content::of_text("hi").pad().len(), Content::of_text("hello").pad().len());
    /// ```
    pub fn pad(&self) -> Vec<u8> {
        pad(self.encode_to_vec())
    }

    /// Reads padded content.
    ///
    /// # Errors
    /// `Invalid` if it is anything else.
    pub fn unpad(bytes: &[u8]) -> Result<Self> {
        let content = Self::decode(unpad(bytes)?);
        content.map_err(|_| Error::new(ErrorKind::Invalid, "not a message's content"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_off_whatever_the_text() {
        for text in ["", "\0\0", "x", &"é".repeat(1000), "\u{80}"] {
            assert_eq!(Content::unpad(&Content::of_text(text).pad()), Ok(Content::of_text(text)));
        }
        assert!(Content::unpad(&[]).is_err() && Content::unpad(&[0; 160]).is_err());
    }
}
