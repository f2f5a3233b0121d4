//! Encryption suites: their numbers, and the mark that names the suite of prekeys and boxes.

use bytes::Bytes;

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::limits::MAX_SUITE_KEY;

/// Number of an encryption suite. `docs/wire.md` lists them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SuiteId(u32);

impl SuiteId {
    /// The Signal Protocol: PQXDH, Double Ratchet and the post-quantum ratchet.
    pub const SIGNAL: Self = Self(1);
    /// The first number for suites of an application, and of tests.
    pub const PRIVATE: Self = Self(1 << 31);

    /// Returns the suite with this number.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for 0.
    pub const fn new(number: u32) -> Result<Self> {
        if number == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a suite has a number from 1"));
        }
        Ok(Self(number))
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Marks the signed part of prekeys, or a box, with the suite that made it: a zero byte, the number
    /// (4 bytes, big endian), the data. Data of [`SIGNAL`](Self::SIGNAL) has no mark, because it never begins with a zero
    /// byte: so every release reads it.
    ///
    /// ```
    /// use chat_core::suite::SuiteId;
    /// let later = SuiteId::new(2)?;
    /// assert_eq!(SuiteId::of(&later.mark("data".into()))?, (later, "data".into()));
    /// assert_eq!(SuiteId::SIGNAL.mark("data".into()), "data");
    /// # Ok::<(), chat_core::Error>(())
    /// ```
    pub fn mark(self, data: Bytes) -> Bytes {
        if self == Self::SIGNAL {
            return data;
        }
        [&[0], &self.0.to_be_bytes()[..], &data].concat().into()
    }

    /// Returns the suite that made marked data, and the data without the mark.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the mark is incomplete, or names no suite or the one that has no mark.
    pub fn of(marked: &Bytes) -> Result<(Self, Bytes)> {
        if marked.first() != Some(&0) {
            return Ok((Self::SIGNAL, marked.clone()));
        }
        let number = marked.get(1..5).and_then(|number| number.try_into().ok()).map_or(0, u32::from_be_bytes);
        match Self::new(number)? {
            Self::SIGNAL => Err(Error::new(ErrorKind::Invalid, "data of suite 1 has no mark")),
            suite => Ok((suite, marked.slice(5..))),
        }
    }
}

/// The public identity key of a device in a suite.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct SuiteKey {
    pub suite: SuiteId,
    /// 1 to 64 bytes. A suite with a longer key lists the hash of the key.
    pub key: Bytes,
}

impl SuiteKey {
    /// Returns a key of the Signal suite.
    pub fn signal(key: impl Into<Bytes>) -> Self {
        Self { suite: SuiteId::SIGNAL, key: key.into() }
    }

    /// Checks the length of the key.
    pub(super) fn check(&self) -> Result<()> {
        match self.key.len() {
            1..=MAX_SUITE_KEY => Ok(()),
            _ => Err(Error::new(ErrorKind::Invalid, "a suite key has 1 to 64 bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_that_names_no_suite_is_refused() {
        for bad in [&[0][..], &[0, 0, 0, 2], &[0, 0, 0, 0, 0, 7], &[0, 0, 0, 0, 1, 7]] {
            assert!(SuiteId::of(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(SuiteId::of(&Bytes::new()), Ok((SuiteId::SIGNAL, Bytes::new())));
    }
}
