//! Settings: defaults, then a TOML file, then the environment, then flags.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "chat-server-ref", version, about = "The reference chat server")]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Print the settings that result, as TOML, and exit.
    #[arg(long, global = true)]
    print_config: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve (the default).
    Serve,
    /// Print a token for a user.
    Token {
        /// The user's handle.
        user: String,
        /// Seconds it is valid.
        #[arg(long, default_value_t = 30 * 24 * 3600)]
        ttl: u64,
    },
    /// Prove what the data directory promises and print the counts.
    Audit,
}

#[derive(clap::Args, Debug, Default)]
struct Flags {
    /// A TOML file with settings.
    #[arg(long, global = true, env = "CHAT_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect (WebSocket at /v1).
    #[arg(long, global = true, env = "CHAT_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, global = true, env = "CHAT_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long, global = true, env = "CHAT_DATA")]
    data: Option<PathBuf>,
    /// Let anybody register any free name without a token; only on loopback.
    #[arg(long, global = true, env = "CHAT_OPEN_REGISTRATION")]
    open_registration: Option<bool>,
    /// Which log lines are written, as in `info` or `chat_core=debug`.
    #[arg(long, global = true, env = "CHAT_LOG")]
    log: Option<String>,
}

/// What is to be done.
#[derive(Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum Action {
    /// Print the settings.
    PrintConfig,
    /// Serve.
    Serve,
    /// Print a token.
    Token {
        /// For this handle.
        user: String,
        /// Valid for this many seconds.
        ttl: u64,
    },
    /// Audit the data directory.
    Audit,
}

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::exhaustive_structs)]
pub struct Settings {
    /// Where clients connect (WebSocket at /v1).
    pub listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are. Keep it on loopback: it asks for no password.
    pub admin_listen: SocketAddr,
    /// The data directory.
    pub data: PathBuf,
    /// Let anybody register any free name without a token. On by default on loopback only, and refused
    /// elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_registration: Option<bool>,
    /// The `host:port` names under which clients reach this server; what they sign names one of them.
    /// Required outside of loopback.
    pub authorities: Vec<String>,
    /// Addresses of proxies in front of this server: connections of theirs are not limited by address.
    pub proxies: Vec<IpAddr>,
    /// Origins of web pages that may connect.
    pub origins: Vec<String>,
    /// The file with the secret of HS256 tokens; made in the data directory if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// A JWKS file with public keys of EdDSA tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// PEM file with the certificate chain; with `tls_key`, clients connect by `wss://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Shards that conversations are spread over.
    pub shards: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// New connections in a second; more are answered 503.
    pub accept_rate: u32,
    /// Seconds over which a drain spreads reconnects.
    pub drain_seconds: u32,
    /// Days a message waits for a device before it is shown a gap instead.
    pub retention_days: u32,
    /// Which log lines are written.
    pub log: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7777)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 7778)),
            data: PathBuf::from("./chat-data"),
            open_registration: None,
            authorities: Vec::new(),
            proxies: Vec::new(),
            origins: Vec::new(),
            secret_file: None,
            jwks_file: None,
            tls_cert: None,
            tls_key: None,
            shards: 8,
            max_connections: 20_000,
            accept_rate: 2000,
            drain_seconds: 60,
            retention_days: 30,
            log: "info".into(),
        }
    }
}

impl Settings {
    /// Whether tokens are not needed.
    pub fn is_open(&self) -> bool {
        self.open_registration.unwrap_or_else(|| self.listen.ip().is_loopback())
    }

    /// The settings as a TOML file.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, String> {
        let shown = Self { open_registration: Some(self.is_open()), ..self.clone() };
        toml::to_string_pretty(&shown).map_err(|e| e.to_string())
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Refuses what is unsafe.
    ///
    /// # Errors
    /// What is wrong and what to do about it.
    pub fn check(&self) -> Result<(), String> {
        let public = !self.listen.ip().is_loopback();
        if public && self.is_open() {
            return Err("open_registration is on, and the server listens to more than this machine: \
                        turn it off, or listen on 127.0.0.1"
                .into());
        }
        if public && self.authorities.is_empty() {
            return Err("authorities is empty: name the host:port under which clients reach this server, \
                        so that no other server can pass their signatures on"
                .into());
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("tls_cert and tls_key belong together".into());
        }
        if self.retention_days == 0 {
            return Err("retention_days is at least 1".into());
        }
        if self.shards == 0 || self.max_connections == 0 || self.accept_rate == 0 {
            return Err("shards, max_connections and accept_rate are at least 1".into());
        }
        Ok(())
    }
}

impl Arguments {
    /// What to do, with which settings.
    ///
    /// # Errors
    /// An unreadable file, or an unknown or malformed key in it, by name.
    pub fn resolve(self) -> Result<(Action, Settings), String> {
        let mut settings = match &self.flags.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        let flags = self.flags;
        settings.listen = flags.listen.unwrap_or(settings.listen);
        settings.admin_listen = flags.admin_listen.unwrap_or(settings.admin_listen);
        settings.data = flags.data.unwrap_or(settings.data);
        settings.open_registration = flags.open_registration.or(settings.open_registration);
        settings.log = flags.log.unwrap_or(settings.log);
        let action = match (self.print_config, self.command) {
            (true, _) => Action::PrintConfig,
            (_, None | Some(Command::Serve)) => Action::Serve,
            (_, Some(Command::Token { user, ttl })) => Action::Token { user, ttl },
            (_, Some(Command::Audit)) => Action::Audit,
        };
        Ok((action, settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = toml::from_str::<Settings>("lisen = \"127.0.0.1:1\"").unwrap_err().to_string();
        assert!(error.contains("lisen"), "{error}");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let text = Settings::default().to_toml().unwrap();
        assert_eq!(toml::from_str::<Settings>(&text).unwrap().listen, Settings::default().listen);
    }

    #[test]
    fn open_registration_stays_on_this_machine() {
        let mut settings = Settings { listen: "0.0.0.0:7777".parse().unwrap(), ..Settings::default() };
        assert!(!settings.is_open(), "off by default elsewhere");
        settings.authorities = vec!["chat.example:443".into()];
        assert!(settings.check().is_ok());
        settings.open_registration = Some(true);
        assert!(settings.check().is_err());
    }
}
