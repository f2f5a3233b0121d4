//! The content of a message: a versioned protobuf, padded so that its length reveals little.

use chat_core::padding::{pad, unpad};
use chat_core::{Error, ErrorKind, Result};
use prost::Message as _;

/// The content of a message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[allow(clippy::exhaustive_structs)]
pub struct Content {
    /// Version of this encoding: 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, optional, tag = "2")]
    pub text: Option<String>,
}

impl Content {
    /// Returns the content of a text message.
    pub fn of_text(text: &str) -> Self {
        Self { version: 1, text: Some(text.to_owned()) }
    }

    /// Returns the encoded content with padding.
    ///
    /// ```
    /// use chat_client::content::Content;
    /// assert_eq!(Content::of_text("hi").pad().len(), Content::of_text("hello").pad().len());
    /// ```
    pub fn pad(&self) -> Vec<u8> {
        pad(self.encode_to_vec())
    }

    /// Decodes padded content.
    ///
    /// # Errors
    /// `Invalid` if the bytes are not padded content.
    pub fn unpad(bytes: &[u8]) -> Result<Self> {
        let content = Self::decode(unpad(bytes)?);
        content.map_err(|_| Error::new(ErrorKind::Invalid, "failed to decode the content of a message"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpad_restores_any_padded_text() {
        for text in ["", "\0\0", "x", &"é".repeat(1000), "\u{80}"] {
            assert_eq!(Content::unpad(&Content::of_text(text).pad()), Ok(Content::of_text(text)));
        }
        assert!(Content::unpad(&[]).is_err() && Content::unpad(&[0; 160]).is_err());
    }
}
