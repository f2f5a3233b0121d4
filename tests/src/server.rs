//! The server as a process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a server runs.
#[derive(Clone, Debug)]
pub struct Machine {
    pub address: String,
    /// The network namespace, if it is not this process's own.
    pub namespace: Option<String>,
    /// The port that clients connect to, if it is not to be a free one; the next is the admin's.
    pub port: Option<u16>,
}

impl Machine {
    /// This one, on loopback.
    pub fn this() -> Self {
        Self { address: "127.0.0.1".into(), namespace: None, port: None }
    }

    /// A command that runs a program there.
    fn command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        // It becomes the program: the process's id is the program's.
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }
}

/// A server process over a data directory that outlives it.
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

/// A port nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
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

    /// Where clients connect: outside of this machine by TLS.
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

    /// Starts the process again on the same data and port, and waits until it answers.
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
        // It listens there last, and a node without the gateway's role there alone.
        while TcpStream::connect((self.machine.address.as_str(), self.admin)).is_err() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "the server ended: {}", self.log());
            assert!(Instant::now() < end, "the server does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGSTOP: alive, and silent.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; waits for the end and gives how long that took.
    pub fn terminate(&mut self) -> Duration {
        let start = Instant::now();
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
        start.elapsed()
    }

    /// What `chat-server-ref verify` says of the data; the server must not run.
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

    /// Resident memory of the process, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// A page of the admin listener.
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
