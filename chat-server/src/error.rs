use std::fmt;

/// Reason why a server does not start or has to end, in a sentence for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerError {
    what: String,
}

impl ServerError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ServerError {}

impl From<ServerError> for String {
    fn from(error: ServerError) -> Self {
        error.what
    }
}

impl From<chat_core::Error> for ServerError {
    fn from(error: chat_core::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::new(format!("{error}{cause}"))
    }
}
