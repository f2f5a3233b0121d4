//! The state of a client's connection. It is a state, not a series of events, so that a late subscriber also
//! receives it.

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
}

impl ConnectionState {
    pub(crate) fn connected(&mut self) {
        *self = Self { sessions: self.sessions + 1, online: true, caught_up: false, stopped: None };
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

    /// Clears the stop: the application resumed the client.
    pub(crate) fn resumed(&mut self) {
        self.stopped = None;
    }

    /// Advances `self`, the reported state, one step towards `now`. Returns the event of that step, or `None`
    /// if there is nothing left to report.
    pub(crate) fn follow(&mut self, now: &Self) -> Option<Event> {
        if self.online && (!now.online || now.sessions != self.sessions) {
            self.disconnected();
            return Some(Event::Disconnected);
        }
        if now.online && !self.online {
            *self = Self { caught_up: false, ..now.clone() };
            return Some(Event::Connected);
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
        let why = Event::Error { reason: "unauthorized".into(), message: String::new() };
        now.stopped(why.clone());
        assert_eq!(follow_all(&mut early, &now), [Event::Disconnected, why.clone()]);
        assert_eq!(follow_all(&mut ConnectionState::default(), &now), [why]);
    }
}
