//! The count of synced commits, in a file beside the database.
//!
//! The database truncates its journal at the first damaged record and opens without an error, so it does not
//! detect the loss of acknowledged commits. This file reveals it: it is written after each sync. It is not
//! synced itself, so after a power cut its count may be too low, never too high.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use chat_core::{Error, ErrorKind, Result};

use super::io;

#[derive(Debug)]
pub(super) struct Watermark(File);

/// Distance of the two slots in bytes. Writes alternate between them: a power cut that tears one leaves the
/// other.
const SLOT: u64 = 32;

impl Watermark {
    /// Opens the file and checks that the database holds at least as many commits.
    pub(super) fn open(path: &Path, commits: u64) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let known = [0, SLOT].iter().filter_map(|at| read(&file, *at)).max();
        if known.is_some_and(|known| known > commits) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the database holds fewer commits than were acknowledged: restore it from a backup",
            ));
        }
        Ok(Self(file))
    }

    pub(super) fn set(&self, commits: u64) -> Result<()> {
        let mut slot = [0; 16];
        slot[..8].copy_from_slice(&commits.to_be_bytes());
        slot[8..].copy_from_slice(&check(commits).to_be_bytes());
        self.0.write_all_at(&slot, commits % 2 * SLOT).map_err(io)
    }
}

const fn check(commits: u64) -> u64 {
    commits.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6368_6174_2077_6d31
}

fn read(file: &File, at: u64) -> Option<u64> {
    let mut slot = [0; 16];
    file.read_exact_at(&mut slot, at).ok()?;
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
    let commits = number(&slot[..8])?;
    (number(&slot[8..])? == check(commits)).then_some(commits)
}
