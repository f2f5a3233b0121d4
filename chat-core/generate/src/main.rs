//! Generates the wire types from `chat-core/proto` (`make generate`). With `--check` it only verifies that
//! the checked-in code is up to date.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;

const FILES: [&str; 3] = ["chat/v1/chat.proto", "chat/v1/store.proto", "chat/v1/node.proto"];

fn main() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let generated = core.join("src/proto/generated");
    let check = std::env::args().any(|argument| argument == "--check");
    let dir = tempfile::tempdir().unwrap();
    let out = if check { dir.path() } else { &generated };
    let files = protox::compile(FILES, [core.join("proto")]).unwrap();
    prost_build::Config::new().bytes(["."]).out_dir(out).compile_fds(files).unwrap();
    for name in ["chat.v1.rs", "chat.store.v1.rs", "chat.node.v1.rs"] {
        let same = std::fs::read(out.join(name)).unwrap() == std::fs::read(generated.join(name)).unwrap();
        assert!(same, "{name} does not match the protocol files: run `make generate`");
    }
    println!("the wire types are up to date");
}
