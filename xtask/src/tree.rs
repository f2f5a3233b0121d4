//! The files of the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates whose sources are checked, by directory.
pub(crate) const CRATES: [&str; 10] = [
    "chat-core",
    "chat-store",
    "chat-transport",
    "chat-server",
    "chat-testing",
    "chat-client",
    "chat-client/signal",
    "chat-client/cli",
    "chat-server-ref",
    "xtask",
];

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Returns the tracked and new files below a directory whose names end with one of `endings`, relative to the
/// root.
pub(crate) fn files(root: &Path, below: &str, endings: &[&str]) -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--", below])
        .current_dir(root)
        .output();
    let Ok(listed) = listed else { return Vec::new() };
    let mut files: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|file| endings.iter().any(|ending| file.ends_with(ending)))
        .filter(|file| !file.contains("/generated/") && root.join(file).exists())
        .map(str::to_owned)
        .collect();
    files.sort();
    files
}

/// Returns the Rust sources of a crate, relative to its `src` directory.
pub(crate) fn sources(root: &Path, name: &str) -> Vec<String> {
    let below = format!("{name}/src");
    let files = files(root, &below, &[".rs"]);
    files.into_iter().filter_map(|file| Some(file.strip_prefix(&format!("{below}/"))?.to_owned())).collect()
}
