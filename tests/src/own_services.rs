//! Services that a test starts for itself.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Redis, Kafka and Cassandra, one node each, with their own addresses and data. They stop when this is dropped.
#[derive(Debug)]
pub struct OwnServices {
    dir: tempfile::TempDir,
    dist: String,
    net: String,
    is_secured: bool,
}

impl OwnServices {
    /// Starts the services at `net`.1. `is_secured`: they require TLS and a login. Prints a note and returns `None` without
    /// `CHAT_TEST_SERVICES_DIST`.
    pub fn start(net: &str, is_secured: bool) -> Option<Self> {
        let Ok(dist) = std::env::var("CHAT_TEST_SERVICES_DIST") else {
            println!(
                "ignored: CHAT_TEST_SERVICES_DIST is not set; the services step of scripts/test.sh sets it"
            );
            return None;
        };
        let services = Self { dir: tempfile::tempdir().unwrap(), dist, net: net.to_owned(), is_secured };
        for service in ["redis", "kafka", "cassandra"] {
            services.script(&["start", service, "1"]);
        }
        Some(services)
    }

    /// Runs a command of `services.sh` on these services.
    pub fn script(&self, arguments: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("services/services.sh");
        let out = Command::new(script)
            .args(arguments)
            .env("CHAT_SERVICES_SECURE", if self.is_secured { "1" } else { "0" })
            .env("CHAT_SERVICES_DIR", self.dir.path())
            .env("CHAT_SERVICES_DIST", &self.dist)
            .env("CHAT_SERVICES_NET", &self.net)
            .env_remove("CHAT_SERVICES_NETNS")
            .output()
            .unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Returns the directory with the data of all services.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a file with a certificate or a password.
    pub fn tls_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("tls").join(name)
    }
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        self.script(&["stop"]);
    }
}
