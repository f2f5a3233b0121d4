//! Runs the server under load as a separate process, so that its CPU time and memory can be measured without
//! those of the load generator.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chat_transport::dial::WebSocketDialer;

use crate::load::Kind;

pub(crate) struct Process {
    pub(crate) kind: Kind,
    pub(crate) dialer: WebSocketDialer,
    child: Child,
    admin: u16,
    _dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns the CPU time that a process has used so far.
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Returns the pid of a process whose command line contains `part`.
pub(crate) fn pid_of_command(part: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(part))
    })
}

impl Process {
    pub(crate) fn start(kind: Kind) -> Self {
        // Use the disk of the build: in a RAM-backed directory every sync would be free.
        let mut base = std::env::current_exe().unwrap();
        base.pop();
        let dir = tempfile::tempdir_in(&base).unwrap();
        let (port, admin) = (free_port(), free_port());
        let mut command = match kind {
            Kind::Baseline => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["baseline", &port.to_string()]).arg(dir.path().join("log"));
                command
            }
            Kind::Broadcaster => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["broadcast", &port.to_string()]);
                command
            }
            Kind::Ours | Kind::Tls => {
                let mut command = Command::new(PathBuf::from(&base).join("chat-server-ref"));
                command.arg("--data").arg(dir.path().join("data"));
                command.args(["--listen", &format!("127.0.0.1:{port}")]);
                command.args(["--admin-listen", &format!("127.0.0.1:{admin}"), "--log", "warn"]);
                command
            }
        };
        let mut dialer = WebSocketDialer::new(&format!("ws://127.0.0.1:{port}")).unwrap();
        if kind == Kind::Tls {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let files = ["cert", "key", "settings"].map(|name| dir.path().join(name));
            std::fs::write(&files[0], made.cert.pem()).unwrap();
            std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
            let settings = format!("tls_cert = {:?}\ntls_key = {:?}\n", files[0], files[1]);
            std::fs::write(&files[2], settings).unwrap();
            command.arg("--config").arg(&files[2]);
            dialer = WebSocketDialer::new(&format!("wss://localhost:{port}")).unwrap();
            dialer = dialer.trust_pem(made.cert.pem().as_bytes()).unwrap();
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "{kind:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { kind, dialer, child, admin, _dir: dir }
    }

    /// Returns the CPU time that the process has used so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// Returns how often the server called a method of its store.
    pub(crate) fn store_calls(&self, method: &str) -> u64 {
        self.metric(|line| line.contains("_count{") && line.contains(&format!("\"{method}\"")))
    }

    /// Returns the value of a counter of the server, 0 if it has not counted yet.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.metric(|line| line.split([' ', '{']).next() == Some(name))
    }

    fn metric(&self, is_wanted: impl Fn(&str) -> bool) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let line = page.lines().find(|line| is_wanted(line));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
