//! A TCP proxy that records the bytes that it forwards, or forwards them slowly.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A running proxy on its own port.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let keep = seen.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else {
                    continue;
                };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let keep = keep.clone();
                    std::thread::spawn(move || pass(from, into, &keep));
                }
            }
        });
        Self { port, seen }
    }

    /// Returns the bytes that finished connections sent, in both directions.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap().clone()
    }
}

/// Starts a proxy that forwards at most `down` bytes per second to clients and `up` to the server. Returns its port.
pub fn start_slow(to: u16, down: usize, up: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else {
                continue;
            };
            for (from, into, rate) in [(&client, &server, up), (&server, &client, down)] {
                // Without small buffers the kernel takes seconds of traffic at once.
                let _ = rustix::net::sockopt::set_socket_recv_buffer_size(from, 4096);
                let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                std::thread::spawn(move || pass_slowly(from, into, rate));
            }
        }
    });
    port
}

fn pass_slowly(mut from: TcpStream, mut into: TcpStream, rate: usize) {
    const PIECES: usize = 20;
    let mut buffer = vec![0; (rate / PIECES).max(1)];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || into.write_all(&buffer[..n]).is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_secs_f64(n as f64 / rate as f64));
    }
    let _ = into.shutdown(std::net::Shutdown::Write);
    let _ = from.shutdown(std::net::Shutdown::Read);
}

/// Forwards bytes of one direction. Client frames are masked, so they are recorded both masked and unmasked.
fn pass(mut from: TcpStream, mut into: TcpStream, keep: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut stream = Vec::new();
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || into.write_all(&buffer[..n]).is_err() {
            break;
        }
        stream.extend_from_slice(&buffer[..n]);
    }
    let _ = into.shutdown(std::net::Shutdown::Write);
    let mut keep = keep.lock().unwrap();
    keep.extend(unmasked(&stream));
    keep.extend(stream);
}

fn unmasked(stream: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(start) = stream.windows(4).position(|four| four == b"\r\n\r\n") else {
        return out;
    };
    let mut rest = &stream[start + 4..];
    while rest.len() > 2 {
        let (short, masked) = (usize::from(rest[1] & 0x7f), rest[1] & 0x80 != 0);
        let (length, head) = match short {
            126 if rest.len() >= 4 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
            127 if rest.len() >= 10 => (u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize, 10),
            n => (n, 2),
        };
        let head = head + if masked { 4 } else { 0 };
        if !masked || rest.len() < head + length {
            return out;
        }
        let mask = &rest[head - 4..head];
        out.extend(rest[head..head + length].iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
        rest = &rest[head + length..];
    }
    out
}
