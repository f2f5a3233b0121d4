//! Checks of the source tree that the compiler does not make.
//!
//! `cargo run -p xtask` runs all of them and exits with 1 if one finds something.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod docs;
mod layering;
mod prose;
mod tree;

use std::process::ExitCode;

/// A check of the repository: returns a line for each thing it found.
type Check = fn(&std::path::Path) -> Vec<String>;

fn main() -> ExitCode {
    let root = tree::root();
    let checks: [(&str, Check); 4] = [
        ("layering", layering::check),
        ("old names", prose::old_names),
        ("prose", prose::banned_words),
        ("docs", docs::check),
    ];
    let mut failed = false;
    for (name, check) in checks {
        let found = check(&root);
        for one in &found {
            println!("{one}");
        }
        println!("{name}: {} found", found.len());
        failed |= !found.is_empty();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
