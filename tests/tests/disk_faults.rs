//! A full disk and a failing disk: no acknowledged message is lost, and the server acknowledges no message
//! that is not on disk.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::server::{Server, free_port};
use serde_json::json;

/// A small temporary file system that is unmounted on drop.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let out = Command::new("mount").args(["-t", "tmpfs", "-o", "size=320m", "tmpfs"]).arg(at).output();
        out.is_ok_and(|out| out.status.success()).then_some(Self(at))
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

#[test]
fn messages_wait_while_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path()) else {
        skip("mounting a file system requires root");
        return;
    };
    let mut server = Server::start(dir.path());
    let url = server.url();
    let (alice, bob) = (register(home.path(), &url, "alice"), register(home.path(), &url, "bob"));
    let mut a = CliProcess::start(&alice, &url, None);
    assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": "before"})));
    a.wait("stored");

    // Leave less free space than the server's reserve.
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![1; usize::try_from(disk.free() - (40 << 20)).unwrap()]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": "meanwhile"})));
    a.wait("queued");
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        if let Some(event) = a.next(Duration::from_millis(100)) {
            assert!(event["event"] != "stored" && event["event"] != "refused", "{event}");
        }
    }
    // Accounts and keys take room, too.
    let refused = command(&home.path().join("carol"), &url, &["register", "carol"]);
    assert!(!refused.status.success(), "an account is registered on a full disk");
    // Stored messages can still be read and acknowledged.
    let mut b = CliProcess::start(&bob, &url, None);
    assert_eq!(b.wait("message")["text"], "before");

    std::fs::remove_file(&filler).unwrap();
    a.wait("stored");
    assert_eq!(b.wait("message")["text"], "meanwhile");
    a.finish();
    b.finish();
    server.kill();
    assert!(server.verify().starts_with("verified"));
}

/// A process that is killed on drop.
struct Failing(std::process::Child);

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reports that a test cannot run here. Panics if `CHAT_MUST_RUN_ALL` is set, for a CI that can run every
/// test.
fn skip(why: &str) {
    assert!(std::env::var_os("CHAT_MUST_RUN_ALL").is_none(), "{why}");
    println!("not run: {why}");
}

#[test]
fn server_exits_on_failed_sync_and_restart_keeps_stored_messages() {
    let dir = tempfile::tempdir().unwrap();
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skip("strace is missing");
        return;
    }
    let mut server = Server::start(dir.path());
    let (alice, bob) =
        (register(dir.path(), &server.url(), "alice"), register(dir.path(), &server.url(), "bob"));
    server.kill();

    // The same server, but its thirtieth sync and all later ones fail.
    let (port, admin) = (free_port(), free_port());
    let mut failing = Failing(
        Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"])
            .args(["-e", "inject=fdatasync:error=EIO:when=30+"])
            .arg(chat_tests::binary("chat-server-ref"))
            .arg("--data")
            .arg(&server.data)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--admin-listen", &format!("127.0.0.1:{admin}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let end = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut a = CliProcess::start(&alice, &format!("ws://127.0.0.1:{port}"), None);
    let mut stored = Vec::new();
    let end = Instant::now() + Duration::from_secs(60);
    let mut status = None;
    // Send one message at a time, so that each needs its own sync, until the server has exited.
    'messages: for n in 0..200 {
        let name = format!("{n}");
        if !a.send(&json!({"cmd": "send", "to": "bob", "text": name, "ref": name})) {
            break;
        }
        loop {
            assert!(Instant::now() < end, "no sync failed within 60 s");
            if let Some(event) = a.next(Duration::from_millis(20))
                && event["event"] == "stored"
            {
                stored.push(event["ref"].as_str().unwrap().to_owned());
                break;
            }
            status = failing.0.try_wait().unwrap();
            if status.is_some() {
                break 'messages;
            }
        }
    }
    assert!(
        status.is_some_and(|status| !status.success()),
        "the server must exit by itself, with a failure status"
    );
    while let Some(event) = a.next(Duration::from_millis(300)) {
        if event["event"] == "stored" {
            stored.push(event["ref"].as_str().unwrap().to_owned());
        }
    }
    let sent = stored.len() + 1;
    a.kill();
    println!("{} messages were stored before the disk failed", stored.len());
    assert!(!stored.is_empty() && sent < 200);

    server.restart();
    let mut b = CliProcess::start(&bob, &server.url(), Some(0));
    let mut seen = Vec::new();
    while seen.len() < stored.len() {
        seen.push(b.wait("message")["text"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, stored, "all stored messages are there, in order");
    // The other messages wait in the outbox and arrive now.
    let a = CliProcess::start(&alice, &server.url(), None);
    a.finish();
    while seen.len() < sent {
        seen.push(b.wait("message")["text"].as_str().unwrap().to_owned());
    }
    assert!(seen.iter().map(|text| text.parse::<u32>().unwrap()).eq(0..u32::try_from(sent).unwrap()));
    b.finish();
    server.kill();
    assert!(server.verify().starts_with("verified"));
}
