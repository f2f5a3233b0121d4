//! `chat`: a terminal client. `chat --json` is for programs: see `docs/cli.md`.

mod channels;
mod commands;
mod contacts;
mod conversations;
mod event_json;
mod group_change;
mod groups;
mod json;
mod output;
mod presence;
mod screen;
mod timer;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chat_client::{Client, ClientConfig, Error, ErrorKind, PresenceAudience, Profile};
use chat_transport::dial::WebSocketDialer;
use clap::{Parser, Subcommand};
use etcetera::BaseStrategy;

use crate::output::{Failure, printable};

/// End-to-end encrypted chat in a terminal.
#[derive(Parser, Debug)]
#[command(name = "chat", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The profile with this device's keys and messages: a name, kept in the data directory of the user, or the path
    /// of a directory.
    #[arg(long, global = true, env = "CHAT_PROFILE", default_value = "default")]
    profile: PathBuf,
    /// Path of a file. Its first line is the passphrase of the encrypted profile. Pass it to the command that
    /// creates the profile and to every later one.
    #[arg(long, global = true, env = "CHAT_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// The URL of the server: `wss://host:port`, or `ws://host:port` on this machine.
    #[arg(long, global = true, env = "CHAT_SERVER", default_value = "ws://127.0.0.1:7777")]
    server: String,
    /// A PEM file with certificates to trust in addition to the system's.
    #[arg(long, global = true, env = "CHAT_CA")]
    ca: Option<PathBuf>,
    /// The token, if the server requires one.
    #[arg(long, global = true, env = "CHAT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Read commands and write events as JSON, one per line.
    #[arg(long, global = true)]
    json: bool,
    /// With --json: first write all durable events after this number again.
    #[arg(long, global = true)]
    after: Option<u64>,
    /// Refuse messages to a user after a change of the keys, until `accept`.
    #[arg(long, global = true)]
    strict: bool,
    /// With `send` and --json: maximum number of seconds to wait for a queued message at the end of the input.
    #[arg(long, global = true, default_value_t = 30)]
    quit_after: u64,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Register an account under a handle.
    Register {
        /// The handle: 1 to 64 characters of a-z 0-9 . _ -
        handle: String,
        /// Set new keys for an account after the loss of all its devices. Requires a token; other users are
        /// notified.
        #[arg(long)]
        replace: bool,
    },
    /// Use a new token (passed with --token) for the account of this profile.
    Login,
    /// Send a text to a user; `-` sends each line of the input as a message.
    Send {
        /// The user's handle.
        user: String,
        /// The text, or `-`.
        text: String,
    },
    /// Print incoming messages.
    Listen,
    /// Print the newest messages with a user.
    History {
        /// The user's handle.
        user: String,
        /// Maximum number of messages to print.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// List the conversations of this device, with unread counts and settings.
    Conversations,
    /// Mute, archive or pin a conversation, or keep a draft: it holds on all your devices. Or let its messages disappear.
    Configure {
        /// The handle of the user, or the name or id of the group.
        conversation: String,
        #[command(flatten)]
        edit: conversations::SettingsEdit,
    },
    /// Print the messages on this device that contain all these words, or words that begin with them.
    Search {
        /// The words.
        #[arg(required = true)]
        words: Vec<String>,
        /// Only in the conversation with this user, or in this group.
        #[arg(long, value_name = "CONVERSATION")]
        within: Option<String>,
        /// Maximum number of messages to print.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Without a code: show one and wait for approval. With a code: approve the device that shows it.
    Link {
        /// The code that the new device shows.
        code: Option<String>,
    },
    /// List this account's devices; `--remove N` unlinks one.
    Devices {
        /// The number of the device to unlink.
        #[arg(long)]
        remove: Option<u8>,
    },
    /// Print the safety number with a user.
    SafetyNumber {
        /// The user's handle.
        user: String,
    },
    /// Accept the changed keys of a user, after comparing the safety number.
    Accept {
        /// The user's handle.
        user: String,
        /// The safety number that was compared, with or without its spaces.
        #[arg(required = true, num_args = 1..)]
        number: Vec<String>,
    },
    /// Accept, block and list users.
    Contact {
        #[command(subcommand)]
        command: ContactCommand,
    },
    /// Print whether users are online, or when they were last seen.
    Presence {
        /// Handles of the users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Print or set the users that learn whether you are online, and when you were last seen.
    PresenceAudience {
        /// The new audience.
        #[arg(value_parser = presence::parse_audience, value_name = "nobody|contacts|all")]
        audience: Option<PresenceAudience>,
    },
    /// Found, change and list groups.
    Group {
        #[command(subcommand)]
        command: groups::GroupCommand,
    },
    /// Found channels, read and write them. `group` also changes channels: their writers, roles, profile and link.
    Channel {
        #[command(subcommand)]
        command: channels::ChannelCommand,
    },
    /// Delete the messages of the conversation with a user: from this device, and from the history of this account on the
    /// server. The other user keeps them.
    ClearHistory {
        /// The user's handle.
        user: String,
    },
    /// Report the newest messages of a user to the operator of the server, who can then read them.
    Report {
        /// The user's handle.
        user: String,
        /// Number of messages to report, at most 20.
        #[arg(long, default_value_t = 5)]
        messages: usize,
        /// A note for the operator.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// For operators: print the texts of the reports on the standard input (`reports.jsonl` of the server).
    OpenReports,
    /// Delete the account for good, and this profile. Only the first device can.
    DeleteAccount {
        /// The handle of the account, again, so that no other account is deleted.
        handle: String,
    },
    /// Continue with this profile although a copy of it was in use. The copy stops.
    Reincarnate,
}

#[derive(Subcommand, Debug)]
enum ContactCommand {
    /// List the users that are accepted or blocked.
    List,
    /// Accept a user: it learns whether its messages were delivered and read, and whether you are online.
    Accept {
        /// The user's handle.
        user: String,
    },
    /// Block a user: none of its messages arrives any more. The user is not notified.
    Block {
        /// The user's handle.
        user: String,
    },
    /// End a block.
    Unblock {
        /// The user's handle.
        user: String,
    },
}

impl Arguments {
    fn dialer(&self) -> Result<WebSocketDialer, String> {
        let dialer = WebSocketDialer::new(&self.server).map_err(text)?;
        match &self.ca {
            Some(path) => {
                dialer.trust_pem(&read(path)?).map_err(|e| format!("{}: {}", path.display(), text(e)))
            }
            None => Ok(dialer),
        }
    }

    /// Returns the directory of the profile: of a name, in the data directory of the user.
    pub(crate) fn profile_directory(&self) -> Result<PathBuf, String> {
        let mut parts = self.profile.components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
            || self.profile.as_os_str().as_encoded_bytes().ends_with(b"/")
        {
            return Ok(self.profile.clone());
        }
        let directories = etcetera::base_strategy::choose_native_strategy()
            .map_err(|_| "this user has no data directory: pass the path of a profile".to_owned())?;
        Ok(directories.data_dir().join("chat").join(&self.profile))
    }

    /// Returns the parent directory of the profile, and the profile with the passphrase if a file is given.
    fn profile(&self) -> Result<(PathBuf, Profile), String> {
        let dir = self.profile_directory()?;
        // An existing directory may be given as `.`, which has no name.
        let dir = std::fs::canonicalize(&dir).unwrap_or(dir);
        let name = dir.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| format!("{}: not a name of a directory", self.profile.display()))?;
        let base = dir.parent().unwrap_or(Path::new("")).to_owned();
        let profile = Profile::from(name);
        let Some(file) = &self.passphrase_file else { return Ok((base, profile)) };
        let text = String::from_utf8(read(file)?).map_err(|_| format!("{}: not UTF-8", file.display()))?;
        match text.lines().next() {
            Some(passphrase) if !passphrase.is_empty() => Ok((base, profile.passphrase(passphrase))),
            _ => Err(format!("{}: the first line has no passphrase", file.display())),
        }
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let (base, profile) = self.profile()?;
        let dialer = Arc::new(self.dialer()?);
        let mut config = ClientConfig::with_dialer(dialer, profile, chat_signal::suite()).directory(base);
        if let Some(token) = &self.token {
            config = config.token(token.clone());
        }
        Ok(if self.strict { config.strict() } else { config })
    }

    /// Opens an existing profile.
    async fn open(&self) -> Result<Client, String> {
        let dir = self.profile_directory()?;
        if !dir.is_dir() {
            return Err(format!("there is no profile {}: use `register` or `link` first", dir.display()));
        }
        Client::open(self.config()?).await.map_err(text)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))
}

/// Returns the text of an error, for users.
fn text(error: Error) -> String {
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Denied => {
            error.what().to_owned()
        }
        _ => format!("{error:?}"),
    }
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let code = match run(arguments).await {
        Ok(()) => 0,
        Err(Failure { code, text }) => {
            if !text.is_empty() {
                if json {
                    let line = serde_json::json!({"event": "error", "reason": "fatal", "message": text});
                    let _ = output::line(output::escaped(&line.to_string()));
                }
                eprintln!("chat: {}", printable(&text));
            }
            code as i32
        }
    };
    chat_client::platform::native::wait_for_threads(Duration::from_secs(1));
    // A return would wait for the thread that reads the standard input, until the next line.
    std::process::exit(code);
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Some(Command::Register { handle, replace }) => commands::register(&arguments, handle, *replace).await,
        Some(Command::Login) => commands::login(&arguments).await,
        Some(Command::Link { code: None }) => commands::link(&arguments).await,
        Some(Command::Link { code: Some(code) }) => commands::approve(&arguments, code).await,
        Some(Command::Send { user, text }) => commands::send(&arguments, user, text).await,
        Some(Command::Listen) if !arguments.json => commands::listen(&arguments).await,
        Some(Command::History { user, limit }) => commands::history(&arguments, user, *limit).await,
        Some(Command::Conversations) => conversations::list(&arguments).await,
        Some(Command::Configure { conversation, edit }) => {
            conversations::configure(&arguments, conversation, edit.clone()).await
        }
        Some(Command::Search { words, within, limit }) => {
            conversations::search(&arguments, &words.join(" "), within.as_deref(), *limit).await
        }
        Some(Command::Devices { remove }) => commands::devices(&arguments, *remove).await,
        Some(Command::SafetyNumber { user }) => commands::safety_number(&arguments, user).await,
        Some(Command::Accept { user, number }) => commands::accept(&arguments, user, &number.concat()).await,
        Some(Command::Contact { command }) => contacts::run(&arguments, command).await,
        Some(Command::Presence { users }) => presence::show(&arguments, users).await,
        Some(Command::PresenceAudience { audience }) => presence::audience(&arguments, *audience).await,
        Some(Command::Group { command }) => groups::run(&arguments, command).await,
        Some(Command::Channel { command }) => channels::run(&arguments, command).await,
        Some(Command::Report { user, messages, note }) => {
            contacts::report(&arguments, user, *messages, note).await
        }
        Some(Command::OpenReports) => contacts::open_reports(),
        Some(Command::ClearHistory { user }) => commands::clear_history(&arguments, user).await,
        Some(Command::DeleteAccount { handle }) => commands::delete_account(&arguments, handle).await,
        Some(Command::Reincarnate) => commands::reincarnate(&arguments).await,
        Some(Command::Listen) | None if arguments.json => json::run(&arguments).await,
        Some(Command::Listen) | None => screen::run(&arguments).await,
    }
}
