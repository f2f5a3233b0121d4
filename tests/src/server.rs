//! Runs the server as a process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::TestRng;

/// The machine that a server runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    pub address: String,
    /// Network namespace; `None` is this process's own.
    pub namespace: Option<String>,
    /// Port for clients; the next one is the admin port. `None` picks free ports.
    pub port: Option<u16>,
}

impl Machine {
    /// Returns this machine, on loopback.
    pub fn this() -> Self {
        Self { address: "127.0.0.1".into(), namespace: None, port: None }
    }

    /// Builds a command that runs a program on this machine.
    fn command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        // `ip netns exec` replaces itself with the program, so the pid is the program's.
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }
}

/// A server process. Its data directory outlives the process.
#[derive(Debug)]
pub struct Server {
    pub data: PathBuf,
    machine: Machine,
    pub port: u16,
    pub admin: u16,
    flags: Vec<String>,
    child: Option<Child>,
    log: PathBuf,
}

/// Returns a port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Kills and restarts a server whenever `progress` has risen by `step`, after a random pause, until `over`. Returns the
    /// number of kills.
    pub fn kill_again_and_again(
        server: &Mutex<Self>,
        progress: &AtomicU64,
        step: u64,
        over: &AtomicBool,
    ) -> u64 {
        let (mut kills, mut rng) = (0, TestRng::new(42));
        let mut seen = progress.load(Ordering::Relaxed);
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(rng.below(60)));
            let now = progress.load(Ordering::Relaxed);
            if now >= seen + step {
                seen = now;
                let mut server = server.lock().unwrap();
                server.kill();
                server.restart();
                kills += 1;
            }
        }
        kills
    }

    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    pub fn start_with(dir: &Path, flags: &[&str]) -> Self {
        Self::start_on(Machine::this(), dir, flags)
    }

    pub fn start_on(machine: Machine, dir: &Path, flags: &[&str]) -> Self {
        let mut server = Self {
            data: dir.join("data"),
            port: machine.port.unwrap_or_else(free_port),
            admin: machine.port.map_or_else(free_port, |port| port + 1),
            machine,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            child: None,
            log: dir.join("server.log"),
        };
        server.restart();
        server
    }

    /// Returns the URL for clients: `wss` to a server in a network namespace, else `ws`.
    pub fn url(&self) -> String {
        let scheme = if self.machine.namespace.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}:{}", self.machine.address, self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Starts the process on the same data and ports. Waits until the admin port accepts connections.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = self
            .machine
            .command(&crate::binary("chat-server-ref"))
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", &format!("{}:{}", self.machine.address, self.port)])
            .args(["--admin-listen", &format!("{}:{}", self.machine.address, self.admin)])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let end = Instant::now() + Duration::from_secs(90);
        // The server opens the admin port last, and a node without the gateway role opens no client port.
        while TcpStream::connect((self.machine.address.as_str(), self.admin)).is_err() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "the server exited: {}", self.log());
            assert!(Instant::now() < end, "the server does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGSTOP: the process stays alive and stops answering.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Sends SIGHUP: the server reads its certificate again.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// Sends SIGCONT.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends SIGTERM and waits for the exit. Returns how long it took.
    pub fn terminate(&mut self) -> Duration {
        let start = Instant::now();
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
        start.elapsed()
    }

    /// Returns the output of `chat-server-ref verify` for the data. The server must not be running.
    pub fn verify(&self) -> String {
        assert!(self.child.is_none());
        let out = Command::new(crate::binary("chat-server-ref"))
            .args(["verify", "--data"])
            .arg(&self.data)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Returns the resident memory of the process, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Fetches a page of the admin listener. Returns it with the HTTP head.
    pub fn admin_page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect((self.machine.address.as_str(), self.admin)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
