//! The platform of native programs: a thread for each client, profiles in a directory.
// The only module that may use the system's clock and threads: see `clippy.toml`.
#![allow(clippy::disallowed_methods)]

use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use chat_core::backend::{Runtime, Sleep};
use chat_core::{Error, ErrorKind, Result};
use chat_transport::runtime::TokioRuntime;

use super::{MountedProfile, Platform, Storage, Task};

/// The threads of the clients of this process.
static THREADS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Waits until the threads of closed clients have ended, at most for this time, and returns whether all threads have.
///
/// A program that ends by [`std::process::exit`] calls this before. The exit cleans up OpenSSL, which encrypts profiles,
/// and a thread that still ends would use what is cleaned up.
pub fn wait_for_threads(limit: Duration) -> bool {
    let end = std::time::Instant::now() + limit;
    loop {
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        join_finished(&mut threads);
        if threads.is_empty() || std::time::Instant::now() >= end {
            return threads.is_empty();
        }
        drop(threads);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A finished thread may still run its destructors: joining it waits for them.
fn join_finished(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.extract_if(.., |thread| thread.is_finished()) {
        // A panic was reported when it happened.
        let _ = thread.join();
    }
}

/// A [`Platform`] that runs each client on a thread of its own, with a tokio runtime on that thread. The application
/// needs no tokio runtime.
#[derive(Debug, Default)]
pub struct Native {
    runtime: TokioRuntime,
}

impl Native {
    /// Creates the platform. Its clock starts at zero now.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Runtime for Native {
    fn elapsed(&self) -> Duration {
        self.runtime.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        self.runtime.sleep_until(at)
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        self.runtime.fill_random(bytes)
    }
}

impl Platform for Native {
    fn spawn(&self, start: Box<dyn FnOnce() -> Task + Send>) -> Result<()> {
        let failed =
            |e| Error::new(ErrorKind::Unavailable, "failed to start the client's thread").caused_by(e);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = std::thread::Builder::new().name("chat-client".into());
        let thread = thread.spawn(move || runtime.block_on(start())).map_err(failed)?;
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        join_finished(&mut threads);
        threads.push(thread);
        Ok(())
    }

    fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}

/// A [`Storage`] that keeps each profile in a directory of its own, readable by its owner only.
#[derive(Debug)]
pub struct Directory {
    base: PathBuf,
}

impl Directory {
    /// Returns a storage in a base directory. Neither it nor a profile needs to exist.
    pub fn new(base: impl AsRef<Path>) -> Self {
        Self { base: base.as_ref().to_owned() }
    }
}

/// A profile directory. The system releases the file lock however the process ends.
#[derive(Debug)]
struct MountedDirectory {
    dir: PathBuf,
    database: PathBuf,
    _lock: File,
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "failed to open the profile").caused_by(error)
}

/// Creates a directory that only its owner can read, or makes an existing one so.
fn create_private(dir: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir)?;
    restrict(dir, 0o700)
}

/// Opens a file that only its owner can read; creates it if it does not exist.
fn open_private(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.create(true).truncate(false).write(true).open(path)?;
    restrict(path, 0o600)?;
    Ok(file)
}

/// Removes all permissions but these.
#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = std::fs::metadata(path)?.permissions();
    if permissions.mode() & 0o777 & !mode == 0 {
        return Ok(());
    }
    permissions.set_mode(mode);
    std::fs::set_permissions(path, permissions)
}

#[cfg(not(unix))]
fn restrict(_: &Path, _: u32) -> std::io::Result<()> {
    Ok(())
}

#[async_trait(?Send)]
impl Storage for Directory {
    async fn mount(&self, name: &str) -> Result<Box<dyn MountedProfile>> {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the name of a profile must be the name of a directory, without separators",
            ));
        }
        let dir = self.base.join(name);
        create_private(&dir).map_err(failed)?;
        let lock = open_private(&dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Conflict, "the profile is in use by another process"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // SQLite gives its other files the permissions of this one.
        let database = dir.join("chat.sqlite");
        for file in [&database, &dir.join("chat.sqlite-wal"), &dir.join("chat.sqlite-shm")] {
            if file == &database || file.exists() {
                open_private(file).map_err(failed)?;
            }
        }
        Ok(Box::new(MountedDirectory { dir, database, _lock: lock }))
    }
}

impl MountedProfile for MountedDirectory {
    fn database(&self) -> &Path {
        &self.database
    }

    fn salt(&self, new: [u8; 16]) -> Result<[u8; 16]> {
        let file = self.dir.join("salt");
        match std::fs::read(&file) {
            Ok(salt) => salt
                .try_into()
                .map_err(|_| Error::new(ErrorKind::Corrupt, "the salt of the passphrase is malformed")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Atomic and durable: write a new file, sync it, rename it, then sync the directory.
                let unfinished = self.dir.join("salt.new");
                let written = open_private(&unfinished).and_then(|mut file| {
                    file.set_len(0)?;
                    file.write_all(&new)?;
                    file.sync_all()
                });
                written
                    .and_then(|()| std::fs::rename(&unfinished, &file))
                    .and_then(|()| File::open(&self.dir)?.sync_all())
                    .map_err(failed)?;
                Ok(new)
            }
            Err(error) => Err(failed(error)),
        }
    }
}
