//! Runs the command-line client `chat` as a child process.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Builds a `chat` command for a profile and a server. If `ca.pem` exists beside the profile, the client
/// trusts it.
fn chat(profile: &Path, url: &str) -> Command {
    let mut command = Command::new(crate::binary("chat"));
    command.arg("--profile").arg(profile).args(["--server", url]);
    let ca = profile.with_file_name("ca.pem");
    if ca.exists() {
        command.arg("--ca").arg(ca);
    }
    command
}

/// Runs a `chat` subcommand and waits for it to exit.
pub fn command(profile: &Path, url: &str, arguments: &[&str]) -> Output {
    chat(profile, url).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Registers a user in a new profile.
pub fn register(dir: &Path, url: &str, name: &str) -> PathBuf {
    register_with(dir, url, name, &[])
}

/// Registers a user in a new profile, with additional flags.
pub fn register_with(dir: &Path, url: &str, name: &str, flags: &[&str]) -> PathBuf {
    let profile = dir.join(name);
    let out = command(&profile, url, &[&["register", name], flags].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    profile
}

/// A running `chat --json` process.
#[derive(Debug)]
pub struct CliProcess {
    child: Child,
    input: Option<ChildStdin>,
    events: Receiver<String>,
}

impl CliProcess {
    pub fn start(profile: &Path, url: &str, after: Option<u64>) -> Self {
        let mut command = chat(profile, url);
        command.arg("--json");
        if let Some(after) = after {
            command.args(["--after", &after.to_string()]);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (lines, events) = sync_channel(100_000);
        let out = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let Ok(line) = line else { return };
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, events }
    }

    /// Writes a command to stdin. Returns `false` if the write fails because the process has ended.
    pub fn send(&mut self, command: &Value) -> bool {
        self.send_line(&command.to_string())
    }

    pub fn send_line(&mut self, line: &str) -> bool {
        let Some(input) = &mut self.input else {
            return false;
        };
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).is_ok()
    }

    /// Returns the next event, or `None` on a timeout or after the process has ended.
    pub fn next(&mut self, within: Duration) -> Option<Value> {
        match self.events.recv_timeout(within) {
            Ok(line) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Waits up to 30 s for the next event of a kind. Discards all other events.
    pub fn wait(&mut self, kind: &str) -> Value {
        let end = Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        while Instant::now() < end {
            if let Some(event) = self.next(Duration::from_millis(200)) {
                if event["event"] == kind {
                    return event;
                }
                seen.push(event);
            }
        }
        panic!("no {kind} event within 30 s; other events: {seen:?}");
    }

    /// Kills the process with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Closes stdin. Returns the events that the process still prints before it exits.
    pub fn finish(mut self) -> Vec<Value> {
        drop(self.input.take());
        let mut rest = Vec::new();
        while let Ok(line) = self.events.recv_timeout(Duration::from_secs(60)) {
            rest.push(serde_json::from_str(&line).unwrap());
        }
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

impl Drop for CliProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
