//! The post-quantum ratchet part (SPQR) of a Signal message, checked before libsignal reads it.
//!
//! libsignal reads this part before it verifies the message, so a server can put any bytes there. This release of SPQR
//! panics on some of them: on a varint that does not fit 64 bits, on epoch 0, and on a part that ends before its type.
//! The check follows the format that SPQR version 1 writes:
//!
//! | field | size |
//! |---|---|
//! | version, 1 | 1 byte |
//! | epoch, at least 1 | varint of 1 to 10 bytes |
//! | index of the key | varint of 1 to 5 bytes |
//! | type, 0 to 6 | 1 byte |
//! | index of the chunk, below 65,536 (only types 1, 2, 3, 5 and 6) | varint of 1 to 3 bytes |
//! | chunk (only these types) | 32 bytes |
//!
//! An empty part belongs to a session without a post-quantum ratchet; libsignal refuses it where one is required. SPQR
//! does not read a part of a later version, so that two releases can agree on the older version.

use chat_core::{Error, ErrorKind, Result};

/// Maximum length in bytes. Version 1 has at most 52; the rest is for later versions, and for the bytes after the chunk
/// that SPQR permits.
const MAX: usize = 2048;
const VERSION: u8 = 1;
const CHUNK: usize = 32;
/// The types without a chunk: no content, and the acknowledgement of a first ciphertext.
const WITHOUT_CHUNK: [u8; 2] = [0, 4];
const TYPES: u8 = 7;

/// Checks the post-quantum part of a message.
///
/// # Errors
/// `Invalid` if SPQR could not have written it.
pub(crate) fn check(part: &[u8]) -> Result<()> {
    if part.is_empty() { Ok(()) } else { parse(part).ok_or_else(malformed) }
}

const fn malformed() -> Error {
    Error::new(ErrorKind::Invalid, "the post-quantum part is malformed")
}

fn parse(part: &[u8]) -> Option<()> {
    if part.len() > MAX {
        return None;
    }
    let (version, rest) = part.split_first()?;
    match *version {
        0 => return None,
        VERSION => {}
        _ => return Some(()),
    }
    let (epoch, rest) = varint(rest)?;
    let (index, rest) = varint(rest)?;
    let (&kind, rest) = rest.split_first()?;
    // The ratchet computes with the epochs before and after, and with larger indices.
    if epoch == 0 || epoch >= u64::MAX / 2 || index >= u64::from(u32::MAX / 2) || kind >= TYPES {
        return None;
    }
    if WITHOUT_CHUNK.contains(&kind) {
        return Some(());
    }
    let (chunk, rest) = varint(rest)?;
    (chunk <= u64::from(u16::MAX) && rest.len() >= CHUNK).then_some(())
}

/// Reads a number, 7 bits in a byte, lowest bits first. Returns `None` if it does not fit 64 bits.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_chunk(head: &[u8]) -> Vec<u8> {
        [head, &[7; CHUNK]].concat()
    }

    #[test]
    fn parts_that_spqr_writes_are_accepted() {
        for part in [
            Vec::new(),
            vec![1, 1, 0, 0],
            vec![1, 1, 5, 4],
            with_chunk(&[1, 0xac, 2, 0xff, 1, 1, 0]),
            with_chunk(&[1, 1, 0, 6, 0xff, 0xff, 3]),
            [with_chunk(&[1, 1, 0, 5, 9]), vec![1, 2, 3]].concat(),
            vec![2, 9],
        ] {
            assert!(check(&part).is_ok(), "{part:02x?}");
        }
    }

    #[test]
    fn malformed_parts_are_refused() {
        let long = |n| [&[1_u8][..], &vec![0xff; n], &[1, 0, 0]].concat();
        for part in [
            vec![1, 1, 0],                                   // no type
            [&[1_u8][..], &[0x80; 11], &[1, 0, 0]].concat(), // a varint of 12 bytes
            long(9),                                         // an epoch of 2^64 - 1
            long(10),
            vec![1, 0, 0, 0],       // epoch 0
            vec![1, 0x80, 0, 0, 0], // epoch 0 in two bytes
            vec![1],
            vec![1, 0x80],
            vec![0, 1, 0, 0],                            // version 0
            vec![1, 1, 0, 7],                            // an unknown type
            vec![1, 1, 0, 1],                            // no chunk
            vec![1, 1, 0xff, 0xff, 0xff, 0xff, 0x7f, 0], // an index of more than 32 bits
            with_chunk(&[1, 1, 0, 1, 0xff, 0xff, 4]),    // chunk 65,536 and more
            with_chunk(&[1, 1, 0, 1, 0])[..35].to_vec(),
            [with_chunk(&[1, 1, 0, 1, 0]), vec![0; MAX]].concat(),
        ] {
            assert!(check(&part).is_err(), "{part:02x?}");
        }
    }
}
