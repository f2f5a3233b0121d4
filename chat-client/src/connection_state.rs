//! The state of a client's connection. It is a state, not a series of events, so that a late subscriber also
//! receives it.

use std::time::Duration;

use chat_core::{Error, ErrorKind, Result};

use crate::event::Event;

/// The state of a client's connection. The driver holds the current one; each event stream holds the one that
/// it has reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionState {
    /// Number of sessions opened so far. It reveals a reconnect between two reads.
    sessions: u64,
    online: bool,
    caught_up: bool,
    /// The event that reports why the client stopped, if it did.
    stopped: Option<Event>,
    /// The server has prekeys of this device: other users can send to it.
    has_prekeys: bool,
    /// The device's clock minus the server's in milliseconds, if that is too much.
    clock_ahead_ms: Option<i64>,
    /// Number of times that the token was about to expire.
    expiring: u64,
    /// The time until the token expires, when that was last reported.
    expires_in: Duration,
    /// The error of the last attempt to connect, if retrying alone will not help.
    failure: Option<Error>,
}

impl ConnectionState {
    pub(crate) fn connected(&mut self) {
        (self.sessions, self.online, self.caught_up) = (self.sessions + 1, true, false);
        (self.stopped, self.failure) = (None, None);
    }

    pub(crate) const fn caught_up(&mut self) {
        self.caught_up = true;
    }

    pub(crate) const fn disconnected(&mut self) {
        (self.online, self.caught_up) = (false, false);
    }

    pub(crate) fn stopped(&mut self, why: Event) {
        self.disconnected();
        self.stopped = Some(why);
    }

    /// Clears the problems of earlier attempts: the client continues at the request of the application.
    pub(crate) fn restarted(&mut self) {
        (self.stopped, self.failure) = (None, None);
    }

    pub(crate) const fn prekeys_stored(&mut self) {
        self.has_prekeys = true;
    }

    pub(crate) const fn clock_compared(&mut self, wrong_ms: Option<i64>) {
        self.clock_ahead_ms = wrong_ms;
    }

    pub(crate) const fn token_expires(&mut self, within: Duration) {
        (self.expiring, self.expires_in) = (self.expiring + 1, within);
    }

    pub(crate) fn connection_failed(&mut self, error: Error) {
        self.failure = Some(error);
    }

    /// Returns whether the device has received all waiting messages and others can send to it, or the error that
    /// prevents this until the application acts.
    pub(crate) fn ready(&self) -> Result<bool> {
        match (&self.stopped, &self.failure) {
            (Some(Event::TokenRequired), _) => Err(Error::new(
                ErrorKind::Denied,
                "the token expired or this device was unlinked: log in again with a new token, or link it again",
            )),
            (Some(Event::UpdateRequired), _) => Err(Error::new(
                ErrorKind::Invalid,
                "the server does not support this protocol version: update the program",
            )),
            (Some(_), _) => Err(Error::new(
                ErrorKind::Conflict,
                "another copy of this profile is in use: close the copy, or continue here with reincarnate",
            )),
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) => Ok(self.online && self.caught_up && self.has_prekeys),
        }
    }

    /// Advances `self`, the reported state, one step towards `now`. Returns the event of that step, or `None`
    /// if there is nothing left to report.
    pub(crate) fn follow(&mut self, now: &Self) -> Option<Event> {
        if self.online && (!now.online || now.sessions != self.sessions) {
            self.disconnected();
            return Some(Event::Disconnected);
        }
        if now.online && !self.online {
            let (clock_ahead_ms, expiring) = (self.clock_ahead_ms, self.expiring);
            *self = Self { caught_up: false, clock_ahead_ms, expiring, ..now.clone() };
            return Some(Event::Connected);
        }
        if now.clock_ahead_ms != self.clock_ahead_ms {
            self.clock_ahead_ms = now.clock_ahead_ms;
            if let Some(ahead_ms) = now.clock_ahead_ms {
                return Some(Event::ClockWrong { ahead_ms });
            }
        }
        if now.expiring != self.expiring {
            self.expiring = now.expiring;
            return Some(Event::TokenExpiring { expires_in: now.expires_in });
        }
        if now.caught_up && !self.caught_up {
            self.caught_up = true;
            return Some(Event::CaughtUp);
        }
        if now.stopped != self.stopped {
            self.stopped.clone_from(&now.stopped);
            return now.stopped.clone();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow_all(listener: &mut ConnectionState, now: &ConnectionState) -> Vec<Event> {
        std::iter::from_fn(|| listener.follow(now)).collect()
    }

    #[test]
    fn late_subscriber_receives_the_current_state_once() {
        let (mut now, mut early) = (ConnectionState::default(), ConnectionState::default());
        assert_eq!(follow_all(&mut early, &now), []);
        now.connected();
        assert_eq!(follow_all(&mut early, &now), [Event::Connected]);
        now.caught_up();
        let mut late = ConnectionState::default();
        assert_eq!(follow_all(&mut late, &now), [Event::Connected, Event::CaughtUp]);
        assert_eq!(follow_all(&mut early, &now), [Event::CaughtUp]);
        now.disconnected();
        now.connected();
        now.caught_up();
        for listener in [&mut early, &mut late] {
            let expected = [Event::Disconnected, Event::Connected, Event::CaughtUp];
            assert_eq!(follow_all(listener, &now), expected, "a reconnect between two reads was hidden");
            assert_eq!(follow_all(listener, &now), []);
        }
        let why = Event::TokenRequired;
        now.stopped(why.clone());
        assert_eq!(follow_all(&mut early, &now), [Event::Disconnected, why.clone()]);
        assert_eq!(follow_all(&mut ConnectionState::default(), &now), [why]);
    }

    #[test]
    fn ready_needs_a_session_all_messages_and_prekeys() {
        let mut state = ConnectionState::default();
        state.prekeys_stored();
        state.connected();
        assert_eq!(state.ready(), Ok(false), "before the waiting messages");
        state.caught_up();
        assert_eq!(state.ready(), Ok(true));
        state.disconnected();
        assert_eq!(state.ready(), Ok(false), "without a session");
        state.connection_failed(Error::new(ErrorKind::Denied, "the certificate is not trusted"));
        assert_eq!(state.ready().unwrap_err().kind(), ErrorKind::Denied);
        let mut fresh = ConnectionState::default();
        fresh.connected();
        fresh.caught_up();
        assert_eq!(fresh.ready(), Ok(false), "without prekeys");
        fresh.stopped(Event::Superseded);
        assert_eq!(fresh.ready().unwrap_err().kind(), ErrorKind::Conflict);
    }
}
