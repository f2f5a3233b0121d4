//! A disk that is full, and one that fails: nothing acknowledged is lost, and nothing is acknowledged that
//! is not there.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, register};
use chat_tests::server::{Server, free_port};
use serde_json::json;

/// A small file system of its own, taken down at the end.
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
fn while_the_disk_is_full_messages_wait() {
    let dir = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path()) else {
        skip("mounting a small file system takes root");
        return;
    };
    let mut server = Server::start(dir.path());
    let url = server.url();
    let (alice, bob) = (register(home.path(), &url, "alice"), register(home.path(), &url, "bob"));
    let mut a = CliProcess::start(&alice, &url, None);
    assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": "before"})));
    a.wait("stored");

    // Less than the reserve is left.
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
    // What is there can be read and acknowledged.
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

/// A process that is not left behind.
struct Failing(std::process::Child);

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A test that cannot run here: CI has all it needs, and says so.
fn skip(why: &str) {
    assert!(std::env::var_os("CHAT_MUST_RUN_ALL").is_none(), "{why}");
    println!("not run: {why}");
}

#[test]
fn when_a_sync_fails_the_server_ends_and_a_restart_has_all_that_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skip("there is no strace");
        return;
    }
    let mut server = Server::start(dir.path());
    let (alice, bob) =
        (register(dir.path(), &server.url(), "alice"), register(dir.path(), &server.url(), "bob"));
    server.kill();

    // The same server, whose thirtieth sync and all after it fail.
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
        assert!(Instant::now() < end, "it does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut a = CliProcess::start(&alice, &format!("ws://127.0.0.1:{port}"), None);
    let mut stored = Vec::new();
    let end = Instant::now() + Duration::from_secs(60);
    let mut status = None;
    // One at a time, so that each takes a sync of its own, until the server is gone.
    'messages: for n in 0..200 {
        let name = format!("{n}");
        if !a.send(&json!({"cmd": "send", "to": "bob", "text": name, "ref": name})) {
            break;
        }
        loop {
            assert!(Instant::now() < end, "the syncs do not fail");
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
        "it ended by itself, and not as if all were well"
    );
    while let Some(event) = a.next(Duration::from_millis(300)) {
        if event["event"] == "stored" {
            stored.push(event["ref"].as_str().unwrap().to_owned());
        }
    }
    let sent = stored.len() + 1;
    a.kill();
    println!("{} were stored when the disk failed", stored.len());
    assert!(!stored.is_empty() && sent < 200);

    server.restart();
    let mut b = CliProcess::start(&bob, &server.url(), Some(0));
    let mut seen = Vec::new();
    while seen.len() < stored.len() {
        seen.push(b.wait("message")["text"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, stored, "what was stored is there, in order");
    // The rest waits in the outbox, and arrives now.
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
