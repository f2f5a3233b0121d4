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

/// Returns the root of the repository that the current directory is in. A build directory can serve several clones, so that the
/// directory where this program was compiled can be another one.
pub(crate) fn root() -> PathBuf {
    let found = Command::new("git").args(["rev-parse", "--show-toplevel"]).output();
    let found = found.ok().filter(|found| found.status.success());
    found.map_or_else(|| ".".into(), |found| String::from_utf8_lossy(&found.stdout).trim().into())
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
