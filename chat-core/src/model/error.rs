//! The error type of the backends and state machines.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The kind of an [`Error`], which says how a caller can react.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input breaks a rule: correct it and do not repeat it.
    Invalid,
    /// The operation is not allowed: use other credentials.
    Denied,
    /// There is no such thing.
    NotFound,
    /// Another writer was first: read again and decide again.
    Conflict,
    /// Rate limit or queue limit exceeded: wait, then retry.
    Throttled,
    /// The operation may or may not have taken effect: repeat it with the same ids.
    Unavailable,
    /// Stored data cannot be decoded: stop and investigate.
    Corrupt,
    /// A later release wrote it: run that release.
    Unsupported,
    /// The client, connection or router is closed: open it again.
    Closed,
}

/// The reason why an operation failed.
///
/// The text holds no user data: ids are shortened, and bodies are shown as sizes.
///
/// ```
/// use chat_core::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Invalid, "a device id is 1 to 127");
/// assert_eq!(error.to_string(), "invalid: a device id is 1 to 127");
/// ```
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    what: &'static str,
    retry_after_ms: u32,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The result type of backends and state machines.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns an error of this kind. `what` is a fixed text, so that no user data leaks into it.
    pub const fn new(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what, retry_after_ms: 0, source: None }
    }

    /// Returns the error with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Returns the error with the time to wait before a retry, in milliseconds.
    #[must_use]
    pub const fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Returns the time to wait before a retry, in milliseconds; 0 if it is not known.
    pub const fn retry_after_ms(&self) -> u32 {
        self.retry_after_ms
    }

    /// Returns the kind of the error.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the fixed text.
    pub const fn what(&self) -> &'static str {
        self.what
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.what) == (other.kind, other.what)
    }
}

impl Eq for Error {}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Closed => "closed",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
