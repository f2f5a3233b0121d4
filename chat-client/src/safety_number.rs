//! Safety numbers over account keys: 5,200 rounds of SHA-512, as in Signal, so that it is expensive to make a
//! key with a chosen number; 30 digits per side, the lower side first.

use std::fmt;

use chat_core::{Error, ErrorKind, Result, UserId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

const ROUNDS: usize = 5200;

fn half(user: UserId, account_key: &[u8; 32]) -> String {
    let mut hash = Sha512::new()
        .chain_update(b"chat/v1/safety-number")
        .chain_update(account_key)
        .chain_update(user.as_bytes())
        .finalize();
    for _ in 1..ROUNDS {
        hash = Sha512::new().chain_update(hash).chain_update(account_key).finalize();
    }
    hash[..30]
        .chunks(5)
        .map(|five| {
            let number = five.iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
            format!("{:05}", number % 100_000)
        })
        .collect()
}

/// The safety number of two accounts. It is the same from both sides, unless there is a man in the middle. `Display`
/// writes 60 digits in 12 groups of five.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SafetyNumber(String);

impl SafetyNumber {
    pub(crate) fn new(one: (UserId, [u8; 32]), other: (UserId, [u8; 32])) -> Self {
        let mut halves = [half(one.0, &one.1), half(other.0, &other.1)];
        halves.sort();
        Self(halves.concat())
    }

    /// Parses a safety number that a user typed; ignores everything but digits.
    ///
    /// # Errors
    /// `Invalid` if it does not have 60 digits.
    pub fn parse(text: &str) -> Result<Self> {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        if digits.len() != 60 {
            return Err(Error::new(ErrorKind::Invalid, "a safety number has 60 digits"));
        }
        Ok(Self(digits))
    }
}

impl fmt::Display for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<&str> = (0..self.0.len()).step_by(5).map(|at| &self.0[at..at + 5]).collect();
        f.write_str(&groups.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safety_number_is_the_same_from_both_sides() {
        let (a, b) = ((UserId::from_bytes([1; 16]), [1; 32]), (UserId::from_bytes([2; 16]), [2; 32]));
        let number = SafetyNumber::new(a, b);
        assert_eq!(number, SafetyNumber::new(b, a));
        assert_eq!(SafetyNumber::parse(&number.to_string()), Ok(number.clone()));
        assert_eq!(number.to_string().split(' ').count(), 12);
        assert_ne!(number, SafetyNumber::new((a.0, [3; 32]), b), "another key has the same number");
        assert!(SafetyNumber::parse("12345").is_err());
    }
}
