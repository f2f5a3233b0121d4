//! Safety numbers over account keys: 5,200 rounds of SHA-512, as in Signal, so that it is expensive to make a
//! key with a chosen number; 30 digits per side, the lower side first.

use chat_core::UserId;
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

/// Returns the safety number of two accounts: 60 digits in 12 groups of five, the same from both sides.
///
/// ```
/// use chat_client::safety::safety_number;
/// use chat_core::UserId;
/// let (a, b) = ((UserId::from_bytes([1; 16]), [1; 32]), (UserId::from_bytes([2; 16]), [2; 32]));
/// assert_eq!(safety_number(a, b), safety_number(b, a));
/// ```
pub fn safety_number(one: (UserId, [u8; 32]), other: (UserId, [u8; 32])) -> String {
    let mut halves = [half(one.0, &one.1), half(other.0, &other.1)];
    halves.sort();
    let digits = halves.concat();
    let groups: Vec<&str> = (0..digits.len()).step_by(5).map(|at| &digits[at..at + 5]).collect();
    groups.join(" ")
}
