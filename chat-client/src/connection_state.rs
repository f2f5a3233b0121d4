//! How a client stands with the server: a state, so that whoever begins to listen late learns it too.

use crate::event::Event;

/// How a client stands with the server. The driver's is current; each stream of events has one of what it
/// told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionState {
    /// Sessions opened so far: one that ended between two looks shows.
    sessions: u64,
    online: bool,
    caught_up: bool,
    /// Why the client gave up, if it did.
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

    /// It was told to go on after all.
    pub(crate) fn resumed(&mut self) {
        self.stopped = None;
    }

    /// The next event that takes somebody who was told `self` to `now`; `None` if they know.
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
    fn a_late_listener_is_told_how_it_stands_and_nothing_twice() {
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
            assert_eq!(follow_all(listener, &now), expected, "a session in between is not hidden");
            assert_eq!(follow_all(listener, &now), []);
        }
        let why = Event::Error { reason: "unauthorized".into(), message: String::new() };
        now.stopped(why.clone());
        assert_eq!(follow_all(&mut early, &now), [Event::Disconnected, why.clone()]);
        assert_eq!(follow_all(&mut ConnectionState::default(), &now), [why]);
    }
}
