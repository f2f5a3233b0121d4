/// Reason for which the server ends a session. `docs/wire.md` says what a client does about each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The server restarts or drains.
    Draining,
    /// A frame does not parse, or is not allowed in this state.
    Protocol,
    /// The token or the signature is not accepted, the token expired, or the device is not on its user's list.
    Unauthorized,
    /// The origin of a web page is not allowed. Only browsers get it: they cannot read the status of a failed upgrade.
    Origin,
    /// The server has no chat at this path. Only browsers get it.
    Path,
    /// A later connection of the same device replaced this one.
    Replaced,
    /// The device does not read the frames sent to it.
    Slow,
    /// The device acknowledged a row that it was never sent.
    AckTooHigh,
    /// The cursors belong to another data set.
    Epoch,
    /// Client and server have no protocol version in common.
    Version,
    /// The device exceeded a rate limit.
    Throttled,
    /// The same rows were delivered several times and never acknowledged.
    Loop,
    /// The device sent nothing for too long.
    Idle,
    /// A frame exceeds the size limit.
    TooBig,
    /// A code of a later version.
    Other(u16),
}

impl CloseReason {
    /// Returns the WebSocket close code.
    pub const fn code(self) -> u16 {
        match self {
            Self::Draining => 4503,
            Self::Protocol => 4400,
            Self::Unauthorized => 4401,
            Self::Origin => 4403,
            Self::Path => 4404,
            Self::Replaced => 4409,
            Self::Slow => 4408,
            Self::AckTooHigh => 4410,
            Self::Epoch => 4411,
            Self::Version => 4426,
            Self::Throttled => 4429,
            Self::Loop => 4508,
            Self::Idle => 4504,
            Self::TooBig => 1009,
            Self::Other(code) => code,
        }
    }

    /// Returns the reason of a close code.
    ///
    /// ```
    /// use chat_core::wire::CloseReason;
    /// assert_eq!(CloseReason::from_code(4409), CloseReason::Replaced);
    /// assert_eq!(CloseReason::from_code(4999).code(), 4999);
    /// ```
    pub const fn from_code(code: u16) -> Self {
        match code {
            4503 => Self::Draining,
            4400 => Self::Protocol,
            4401 => Self::Unauthorized,
            4403 => Self::Origin,
            4404 => Self::Path,
            4409 => Self::Replaced,
            4408 => Self::Slow,
            4410 => Self::AckTooHigh,
            4411 => Self::Epoch,
            4426 => Self::Version,
            4429 => Self::Throttled,
            4508 => Self::Loop,
            4504 => Self::Idle,
            1009 => Self::TooBig,
            code => Self::Other(code),
        }
    }
}
