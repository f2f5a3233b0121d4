//! Real text for tests: the Markdown files of the crates that this build downloaded. The text is not shipped.

use std::path::{Path, PathBuf};

fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, files);
        } else if path.extension().is_some_and(|e| e == "md") {
            files.push(path);
        }
    }
}

/// Returns `count` lines after the first `skip`, split at newlines only. Some lines are replaced: by text in
/// many scripts, an empty line, a line of the maximum length, and a line that is too long to send.
pub fn real_lines(count: usize, skip: usize) -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"), PathBuf::from);
    let mut files = Vec::new();
    collect(&home.join("registry/src"), 3, &mut files);
    files.sort();
    let mut lines: Vec<String> = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        lines.extend(text.split('\n').map(str::to_owned));
        if lines.len() >= count + skip {
            break;
        }
    }
    let mut lines: Vec<String> = lines.into_iter().skip(skip).take(count).collect();
    assert!(lines.len() >= count, "found only {} lines of real text", lines.len());
    let scripts = [
        "",
        " ",
        "日本語のテキスト",
        "עברית ועוד",
        "العربية",
        "हिन्दी",
        "👩‍👩‍👧‍👦 🏳️‍🌈 é é",
        "\u{202e}backwards",
        "\0\u{1}\u{7f}\r",
        "{\"cmd\":\"quit\"}",
        "'; DROP TABLE messages; --",
        "{\"$ne\":null}",
    ];
    for (n, text) in scripts.iter().enumerate() {
        lines[n * 7 + 3] = (*text).to_owned();
    }
    lines[100] = "x".repeat(64 * 1024);
    lines[101] = "é".repeat(32 * 1024 + 1);
    lines
}
