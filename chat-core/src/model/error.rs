//! The one error of the backends and machines.

use std::fmt;
use std::sync::Arc;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input breaks a rule: fix it, do not repeat it.
    Invalid,
    /// Not allowed: get other credentials.
    Denied,
    /// There is no such thing.
    NotFound,
    /// Somebody else was first: read again and decide anew.
    Conflict,
    /// Too much for now: wait, then repeat.
    Throttled,
    /// It may or may not have happened: repeat the same ids.
    Unavailable,
    /// What was stored does not read back: stop and look.
    Corrupt,
    /// This end is shut: open it again.
    Closed,
}

/// Why an operation did not succeed.
///
/// Its text holds no user data: ids are shortened, bodies are shown as sizes.
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

/// The result of a backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind; `what` is a fixed text, so that no user data slips in.
    pub const fn new(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what, retry_after_ms: 0, source: None }
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The same with the time to wait before it is repeated, in milliseconds.
    #[must_use]
    pub const fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Milliseconds to wait before it is repeated; 0 if nobody said.
    pub const fn retry_after_ms(&self) -> u32 {
        self.retry_after_ms
    }

    /// What a caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The fixed text.
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
