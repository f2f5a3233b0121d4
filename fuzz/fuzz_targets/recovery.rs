//! Fuzzes a store with a truncated or changed file. The store opens with everything it ever acknowledged, or
//! it does not open. It never panics and never returns other data.
#![no_main]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chat_core::backend::{Commit, MessageStore, PageLimit, StateChange};
use chat_core::envelope::{EmptyReason, InboxRow, RowContent};
use chat_core::{ConversationId, InstallationId, MessageId};
use chat_store::EmbeddedStore;
use libfuzzer_sys::fuzz_target;

const COMMITS: u64 = 20;

fn id() -> ConversationId {
    ConversationId::from_bytes([0x11; 17])
}

fn commit(seq: u64) -> Commit {
    let content = RowContent::Empty { reason: EmptyReason::Skip, from: seq };
    let row = InboxRow { conversation: id(), seq, time_us: seq, joined: seq == 1, content };
    let mut state = StateChange::default();
    state.head.seq = seq;
    state.head.time_us = seq;
    let device = InstallationId::from_bytes([1; 16]);
    Commit {
        history: vec![row.clone()],
        ids: vec![(device, MessageId::from_bytes([seq as u8; 16]), seq)],
        inbox: vec![(device, row)],
        generations: vec![(device, seq)],
        ..Commit::of(id(), state)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Returns the directory of a store that acknowledged twenty commits. It is created once.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let store = EmbeddedStore::open(dir.path()).unwrap();
            runtime().block_on(async {
                for seq in 1..=COMMITS {
                    assert!(store.commit(vec![commit(seq)]).await.iter().all(Result::is_ok));
                }
            });
            drop(store);
            dir
        })
        .path()
}

fn copy(from: &Path, to: &Path, files: &mut Vec<PathBuf>) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target, files);
        } else {
            // Journals are preallocated sparse files: copy their data and keep their holes.
            std::process::Command::new("cp").arg("--sparse=always").arg(entry.path()).arg(&target).status().unwrap();
            files.push(target);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if data.len() < 6 {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    copy(template(), dir.path(), &mut files);
    // Damage only journals, which a power cut can tear, and our own two files. The engine writes its level
    // manifests whole and renames them. If one is damaged, the engine allocates the size that it claims
    // (lsm-tree 3.1.10), which aborts the process.
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default();
        file.extension().is_some_and(|e| e == "jnl") || name == "watermark" || name == "FORMAT"
    });
    files.sort();
    let file = &files[usize::from(data[0]) % files.len()];
    let length = std::fs::metadata(file).unwrap().len().min(64 * 1024);
    let at = u64::from(u32::from_le_bytes([data[1], data[2], data[3], 0])) % length.max(1);
    let handle = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    if data[4] % 2 == 0 {
        handle.set_len(at).unwrap();
    } else {
        handle.write_all_at(&data[5..], at).unwrap();
    }
    drop(handle);
    let Ok(store) = EmbeddedStore::open(dir.path()) else { return };
    runtime().block_on(async {
        let Ok(rows) = store.history(id(), 0, PageLimit::MAX).await else { return };
        let seqs: Vec<u64> = rows.iter().map(|row| row.seq).collect();
        let watermark_spoiled = file.ends_with("watermark");
        if !watermark_spoiled {
            assert_eq!(seqs, (1..=COMMITS).rev().collect::<Vec<_>>(), "{} was damaged at {at}", file.display());
        }
    });
});
