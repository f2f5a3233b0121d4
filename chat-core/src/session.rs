//! The gateway's side of one device, as a pure state machine: no clock, no randomness, no `async`, no
//! errors. Bad input becomes [`Output::Close`].
//!
//! ```text
//! Greeting → Live ⇄ Behind → Draining → Closed
//! ```
//!
//! *Behind* is the whole slow-consumer policy. A session that cannot take a push stops taking pushes and
//! reads its inbox, from the oldest row, as fast as the device acknowledges. It becomes *Live* again only
//! when a page had all that was left and no push was dropped since that page was asked for. What is told may be a
//! moment ahead of the inbox, so after a push was dropped the inbox is read twice more. Nothing grows.

mod ack_coalescer;
mod event;

pub use event::{Input, Output};

use std::collections::{BTreeMap, HashMap};

use ack_coalescer::AckCoalescer;

use crate::backend::PageLimit;
use crate::model::client_frame::ClientFrame;
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow, Refusal, RowContent, Subject};
use crate::model::id::{ConversationId, DeviceAddress, Seq, UserId};
use crate::model::limits::{GREETING_MS, HEARTBEAT_MS, IDLE_MS, PAGE_BYTES, WINDOW_BYTES, WINDOW_ROWS};
use crate::model::server_frame::{ServerFrame, Welcome};
use crate::model::session_event::{Hint, SessionEvent};
use crate::model::time::Instant;
use crate::mutant::Mutant;

#[derive(Debug)]
enum Phase {
    Greeting,
    Authenticating,
    Linking,
    Live,
    /// `after`: the last row read. `reading`: a page was asked for. `dropped`: a push was dropped since.
    Behind {
        after: InboxPosition,
        reading: bool,
        dropped: bool,
    },
    Closed,
}

/// A row on its way to the device.
#[derive(Debug)]
struct Flight {
    bytes: usize,
    /// No message of somebody else: having it is nobody's receipt.
    silent: bool,
    sent: Instant,
}

/// A push that was dropped.
#[derive(Clone, Copy, Debug)]
struct Missed {
    at: Instant,
    /// How often the inbox was read again for it.
    looks: usize,
    /// Another one was dropped since the last look.
    again: bool,
}

/// The gateway's side of one device.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    opened: Instant,
    heard: Instant,
    device: Option<DeviceAddress>,
    epoch: Option<crate::model::id::StoreEpoch>,
    flights: BTreeMap<(ConversationId, Seq), Flight>,
    flying_bytes: usize,
    announced: bool,
    /// Times in a row that rows were sent again without any being acknowledged.
    loops: u32,
    catch_ups: u32,
    /// Pushes that were dropped and may not have been in the inbox yet when it was read.
    missed: Option<Missed>,
    /// Publishes passed on and not answered.
    pending: usize,
    drain: Option<(u32, Instant)>,
    acks: AckCoalescer,
    /// When the last word that the user writes was told, by conversation.
    typed_at: HashMap<ConversationId, Instant>,
    watched: BTreeMap<UserId, Option<bool>>,
    watch_at: Option<Instant>,
}

/// Deliveries of the same head, unacknowledged, after which a connection is closed.
const MAX_LOOPS: u32 = 5;
/// `CatchUp` frames between two heartbeats.
const MAX_CATCH_UPS: u32 = 64;
/// Milliseconds after a push was dropped at which the inbox is read again. Its row is there by the first time,
/// unless the store is slow; after the second one its commit comes again, and whoever it concerns is told to look.
const REREAD_DELAYS_MS: [u64; 2] = [1000, 5000];
/// Milliseconds between two looks at who is present.
const PRESENCE_POLL_MS: u64 = 1000;
/// Milliseconds between two words that a user is writing in a conversation.
const TYPING_MS: u64 = 3000;
/// Conversations whose ephemeral frames are paced at once; those of more are dropped.
const MAX_PACED: usize = 256;
/// Milliseconds a draining session waits for answers.
const DRAIN_MS: u64 = 5000;

impl Session {
    /// A session whose connection just opened.
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Greeting,
            opened: now,
            heard: now,
            device: None,
            epoch: None,
            flights: BTreeMap::new(),
            flying_bytes: 0,
            announced: false,
            loops: 0,
            catch_ups: 0,
            missed: None,
            pending: 0,
            drain: None,
            acks: AckCoalescer::default(),
            typed_at: HashMap::new(),
            watched: BTreeMap::new(),
            watch_at: None,
        }
    }

    /// Who is connected.
    pub const fn device(&self) -> Option<DeviceAddress> {
        self.device
    }

    /// Whether nothing waits in the inbox that is not on its way.
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let silent = match self.phase {
            Phase::Greeting | Phase::Authenticating => self.opened.after(GREETING_MS),
            Phase::Linking => self.opened.after(600_000),
            Phase::Closed => return None,
            Phase::Live | Phase::Behind { .. } => self.heard.after(IDLE_MS),
        };
        let drain = self.drain.map(|(_, until)| until);
        [Some(silent), self.acks.due(), self.watch_at, self.look_at(), drain].into_iter().flatten().min()
    }

    /// When to look once more for what was dropped.
    fn look_at(&self) -> Option<Instant> {
        self.missed.and_then(|missed| Some(missed.at.after(*REREAD_DELAYS_MS.get(missed.looks)?)))
    }

    fn note_missed(&mut self, now: Instant) {
        match &mut self.missed {
            Some(missed) => missed.again = true,
            None => self.missed = Some(Missed { at: now, looks: 0, again: false }),
        }
    }

    /// Takes one input; appends what is to be done.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        match input {
            Input::Frame(frame) => self.frame(now, frame, out),
            Input::Admitted(device, welcome) => self.admitted(device, welcome, out),
            Input::Rejected { reason, retry_after } => self.close(reason, retry_after, out),
            Input::Linking => self.phase = Phase::Linking,
            Input::Events(events) => self.events(now, events, out),
            Input::Lagged => self.lagged(now, out),
            Input::Page(asked, rows) => self.page(now, asked, rows, out),
            Input::PageFailed => {
                self.acks.acked(out);
                // The rows wait; the next heartbeat tries again.
                if let Phase::Behind { reading, .. } = &mut self.phase {
                    *reading = false;
                }
            }
            Input::Refused(subject, refusal) => self.refused(subject, refusal, out),
            Input::Response(id, outcome) => out.push(Output::Send(match outcome {
                Ok(response) => ServerFrame::Response(id, response),
                Err(refusal) => ServerFrame::Refused(Subject::Request(id), refusal),
            })),
            Input::Acked { too_high: false } => self.acks.acked(out),
            Input::Acked { too_high: true } => self.close(CloseReason::AckTooHigh, 0, out),
            Input::Presence(present) => self.presence(&present, out),
            Input::Gone => {
                self.acks.flush_all(out);
                self.phase = Phase::Closed;
            }
            Input::Tick => self.tick(now, out),
            Input::Drain(retry_after) => self.drain = Some((retry_after, now.after(DRAIN_MS))),
        }
        if let Some((retry_after, until)) = self.drain
            && (self.pending == 0 || now >= until)
        {
            self.close(CloseReason::Draining, retry_after, out);
        }
    }

    fn close(&mut self, reason: CloseReason, retry_after: u32, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Closed) {
            self.acks.flush_all(out);
            self.phase = Phase::Closed;
            out.push(Output::Send(ServerFrame::Close { reason, retry_after }));
            out.push(Output::Close(reason));
        }
    }

    fn frame(&mut self, now: Instant, frame: ClientFrame, out: &mut Vec<Output>) {
        self.heard = now;
        match (&self.phase, frame) {
            (Phase::Greeting, ClientFrame::Hello(hello)) => {
                self.phase = Phase::Authenticating;
                out.push(Output::Authenticate(hello));
            }
            (Phase::Greeting, ClientFrame::Register(registration)) => {
                out.push(Output::Register(registration))
            }
            (Phase::Linking, ClientFrame::Heartbeat) => {}
            (Phase::Greeting | Phase::Authenticating | Phase::Linking, _)
            | (_, ClientFrame::Hello(_) | ClientFrame::Register(_)) => {
                self.close(CloseReason::Protocol, 0, out)
            }
            (_, ClientFrame::Publish(publish)) => {
                self.acks.sends(now, publish.number.generation);
                self.pending += 1;
                out.push(Output::Publish(publish));
            }
            (_, ClientFrame::Skip(number)) => {
                self.pending += 1;
                out.push(Output::Skip(number));
            }
            (_, ClientFrame::Ack { acks, store_epoch, generation }) => {
                if self.epoch == Some(store_epoch) {
                    self.acks(&acks, generation, now, out);
                } else {
                    self.close(CloseReason::Epoch, 0, out);
                }
            }
            (_, ClientFrame::Heartbeat) => self.heartbeat(now, out),
            (_, ClientFrame::CatchUp) => {
                self.catch_ups += 1;
                if self.catch_ups > MAX_CATCH_UPS {
                    self.close(CloseReason::Throttled, 1000, out);
                } else {
                    self.note_missed(now);
                    self.start_over(out);
                }
            }
            (_, ClientFrame::Request(id, request)) => out.push(Output::Request(id, request)),
            (_, ClientFrame::Read(read)) => out.extend(self.acks.read(now, read)),
            (_, ClientFrame::Typing(conversation)) => self.typing(now, conversation, out),
            (_, ClientFrame::Watch(users)) => {
                self.watched = users.into_iter().map(|user| (user, None)).collect();
                self.watch_at = (!self.watched.is_empty()).then_some(now);
            }
            (_, ClientFrame::Unknown(Some(id))) => {
                let subject = Subject::Request(id);
                out.push(Output::Send(ServerFrame::Refused(subject, Refusal::Unsupported)));
            }
            (_, ClientFrame::Unknown(None)) => {}
        }
    }

    /// More often than this it says nothing new; under pressure it is the first to go.
    fn typing(&mut self, now: Instant, conversation: ConversationId, out: &mut Vec<Output>) {
        if self.typed_at.len() >= MAX_PACED {
            self.typed_at.retain(|_, at| now < at.after(TYPING_MS));
        }
        let due = self.typed_at.get(&conversation).is_none_or(|at| now >= at.after(TYPING_MS));
        if due && self.typed_at.len() < MAX_PACED {
            self.typed_at.insert(conversation, now);
            out.push(Output::Typing(conversation));
        }
    }

    fn admitted(&mut self, device: DeviceAddress, welcome: Welcome, out: &mut Vec<Output>) {
        self.device = Some(device);
        self.epoch = Some(welcome.store_epoch);
        out.push(Output::Send(ServerFrame::Welcome(welcome)));
        self.read_from(InboxPosition::START, out);
    }

    // ---- the inbox -----------------------------------------------------------------------------------

    fn has_room(&self) -> bool {
        self.flights.len() < WINDOW_ROWS && self.flying_bytes < WINDOW_BYTES
    }

    fn half_empty(&self) -> bool {
        self.flights.len() <= WINDOW_ROWS / 2 && self.flying_bytes <= WINDOW_BYTES / 2
    }

    fn read_from(&mut self, after: InboxPosition, out: &mut Vec<Output>) {
        self.phase = Phase::Behind { after, reading: true, dropped: false };
        self.read_page(after, out);
    }

    /// Asks for a page. What is acknowledged is not to be read again.
    fn read_page(&mut self, after: InboxPosition, out: &mut Vec<Output>) {
        self.acks.flush_acks(out);
        out.push(Output::Read(after));
    }

    /// Forgets what is on its way and sends everything unacknowledged again.
    fn start_over(&mut self, out: &mut Vec<Output>) {
        self.flights.clear();
        self.flying_bytes = 0;
        self.announced = false;
        self.read_from(InboxPosition::START, out);
    }

    fn fly(&mut self, now: Instant, row: &InboxRow, silent: bool) {
        let flight = Flight { bytes: row.size(), silent, sent: now };
        self.flying_bytes += flight.bytes;
        if let Some(old) = self.flights.insert((row.conversation, row.seq), flight) {
            self.flying_bytes -= old.bytes;
        }
    }

    fn page(&mut self, now: Instant, asked: InboxPosition, rows: Vec<InboxRow>, out: &mut Vec<Output>) {
        // The store was given all acks before it was read.
        self.acks.acked(out);
        let Phase::Behind { mut after, dropped, reading: true } = self.phase else {
            return;
        };
        if after != asked {
            return;
        }
        let more = PageLimit::MAX.is_reached(&rows);
        let oldest_flies = |row: &InboxRow| self.flights.contains_key(&(row.conversation, row.seq));
        if asked == InboxPosition::START && !self.has_room() && !rows.first().is_some_and(oldest_flies) {
            // What fills the window came after a row that was missed, and is not acknowledged before it.
            self.flights.clear();
            self.flying_bytes = 0;
        }
        let mut fresh = Vec::new();
        let mut full = false;
        for row in rows {
            if !self.flights.contains_key(&(row.conversation, row.seq)) {
                if !self.has_room() {
                    full = true;
                    break;
                }
                self.fly(now, &row, !matches!(row.content, RowContent::Message { .. }));
                after = row.position();
                fresh.push(row);
            } else {
                after = row.position();
            }
        }
        if !fresh.is_empty() {
            out.push(Output::Send(ServerFrame::Deliver(fresh, false)));
        }
        if full {
            self.phase = Phase::Behind { after, reading: false, dropped };
        } else if more {
            self.phase = Phase::Behind { after, reading: true, dropped };
            self.read_page(after, out);
        } else if dropped && !Mutant::LiveThoughDropped.is_active() {
            // Rows came while the page was read, perhaps with places before it: look again.
            self.read_from(InboxPosition::START, out);
        } else {
            self.caught_up(out);
        }
    }

    fn caught_up(&mut self, out: &mut Vec<Output>) {
        self.phase = Phase::Live;
        if !self.announced {
            self.announced = true;
            out.push(Output::Send(ServerFrame::Deliver(Vec::new(), true)));
        }
    }

    fn lagged(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.note_missed(now);
        self.look_again(out);
    }

    /// Reads the inbox from its oldest row on, now or next.
    fn look_again(&mut self, out: &mut Vec<Output>) {
        match &mut self.phase {
            Phase::Live => self.read_from(InboxPosition::START, out),
            Phase::Behind { dropped, .. } => {
                *dropped = true;
                self.resume(out);
            }
            _ => {}
        }
    }

    fn events(&mut self, now: Instant, events: Vec<SessionEvent>, out: &mut Vec<Output>) {
        let mut rows = Vec::new();
        let mut bytes = 0;
        for event in events {
            match event {
                SessionEvent::Row(row) => {
                    if self.take_push(now, out) {
                        self.fly(now, &row, !matches!(row.content, RowContent::Message { .. }));
                        bytes += row.size();
                        rows.push(row);
                        if bytes >= PAGE_BYTES {
                            bytes = 0;
                            out.push(Output::Send(ServerFrame::Deliver(std::mem::take(&mut rows), false)));
                        }
                    }
                }
                SessionEvent::Own(stored, time_us) => {
                    // The stored ack is the fast path of the row; rows before it go out first.
                    if !rows.is_empty() {
                        out.push(Output::Send(ServerFrame::Deliver(std::mem::take(&mut rows), false)));
                    }
                    self.pending = self.pending.saturating_sub(1);
                    out.push(Output::Send(ServerFrame::Stored(stored)));
                    let mailbox =
                        stored.conversation.kind() == Ok(crate::model::id::ConversationKind::Mailbox);
                    if !mailbox && self.take_push(now, out) {
                        let content = RowContent::Own {
                            message_id: stored.message_id,
                            client_seq: stored.client_seq,
                            incarnation: stored.incarnation,
                        };
                        let (conversation, seq) = (stored.conversation, stored.seq);
                        self.fly(now, &InboxRow { conversation, seq, time_us, joined: false, content }, true);
                    }
                }
                SessionEvent::Repeated(stored) => {
                    self.pending = self.pending.saturating_sub(1);
                    out.push(Output::Send(ServerFrame::Stored(stored)));
                }
                SessionEvent::Refused(subject, refusal) => self.refused(subject, refusal, out),
                SessionEvent::Hint(hint) => out.push(Output::Send(hint_frame(hint))),
                SessionEvent::Closed(reason) => {
                    if reason == CloseReason::Replaced {
                        // Whoever replaced it acknowledges for itself. It may be a copy of the device's store
                        // that is behind: it has been greeted, and must not be taken to have more.
                        self.acks.forget_acks();
                    }
                    return self.close(reason, 0, out);
                }
                // The driver passes it on as `Input::Lagged`.
                SessionEvent::Lagged => {}
            }
        }
        if !rows.is_empty() {
            out.push(Output::Send(ServerFrame::Deliver(rows, false)));
        }
    }

    /// Whether a push may go out now. If not, the session falls behind and the row is read later.
    fn take_push(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        if matches!(self.phase, Phase::Live) && self.has_room() {
            return true;
        }
        self.note_missed(now);
        match &mut self.phase {
            Phase::Live => {
                self.phase = Phase::Behind { after: InboxPosition::START, reading: false, dropped: true };
                self.resume(out);
            }
            Phase::Behind { dropped, .. } => *dropped = true,
            _ => {}
        }
        false
    }

    /// Goes on reading once half of the window is free.
    fn resume(&mut self, out: &mut Vec<Output>) {
        if let Phase::Behind { after, reading: false, dropped } = self.phase
            && self.half_empty()
        {
            self.phase = Phase::Behind { after, reading: true, dropped };
            self.read_page(after, out);
        }
    }

    fn acks(&mut self, acks: &[AckUpTo], generation: u64, now: Instant, out: &mut Vec<Output>) {
        for ack in acks {
            let range = (ack.conversation, 0)..=(ack.conversation, ack.seq);
            let landed: Vec<_> = self.flights.range(range).map(|(key, _)| *key).collect();
            let mut of_others = false;
            for key in &landed {
                if let Some(flight) = self.flights.remove(key) {
                    self.flying_bytes -= flight.bytes;
                    of_others |= !flight.silent;
                }
            }
            if !landed.is_empty() {
                self.loops = 0;
            }
            self.acks.ack(*ack, of_others && !Mutant::TrimOnPush.is_active());
        }
        self.acks.acks_came(now, generation, out);
        self.resume(out);
    }

    fn heartbeat(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.catch_ups = 0;
        out.push(Output::Beat);
        let oldest = self.flights.values().map(|flight| flight.sent).min();
        if oldest.is_some_and(|sent| now.since(sent).as_millis() as u64 >= HEARTBEAT_MS) {
            self.loops += 1;
            if self.loops > MAX_LOOPS {
                return self.close(CloseReason::Loop, 0, out);
            }
            self.start_over(out);
        } else if matches!(self.phase, Phase::Live | Phase::Behind { reading: false, .. })
            && !Mutant::HeartbeatIsBlind.is_active()
        {
            // Rows that no push announced show up at the latest now.
            self.read_from(InboxPosition::START, out);
        }
    }

    // ---- the rest ------------------------------------------------------------------------------------

    /// A publish or skip was refused.
    fn refused(&mut self, subject: Subject, refusal: Refusal, out: &mut Vec<Output>) {
        self.pending = self.pending.saturating_sub(1);
        out.push(Output::Send(ServerFrame::Refused(subject, refusal)));
    }

    fn presence(&mut self, present: &[(UserId, bool)], out: &mut Vec<Output>) {
        for (user, online) in present {
            if let Some(known) = self.watched.get_mut(user)
                && *known != Some(*online)
            {
                *known = Some(*online);
                out.push(Output::Send(ServerFrame::Presence(*user, *online)));
            }
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        let late = match self.phase {
            Phase::Greeting | Phase::Authenticating => now >= self.opened.after(GREETING_MS),
            Phase::Linking => now >= self.opened.after(600_000),
            _ => now >= self.heard.after(IDLE_MS),
        };
        if late {
            return self.close(CloseReason::Idle, 0, out);
        }
        self.acks.tick(now, out);
        if self.look_at().is_some_and(|at| now >= at) {
            self.missed = match self.missed {
                Some(Missed { again: true, .. }) => Some(Missed { at: now, looks: 0, again: false }),
                Some(missed) if missed.looks + 1 < REREAD_DELAYS_MS.len() => {
                    Some(Missed { looks: missed.looks + 1, ..missed })
                }
                _ => None,
            };
            self.look_again(out);
        }
        if self.watch_at.is_some_and(|at| now >= at) {
            self.watch_at = Some(now.after(PRESENCE_POLL_MS));
            out.push(Output::Query(self.watched.keys().copied().collect()));
        }
    }
}

/// Returns the frame that carries a hint.
const fn hint_frame(hint: Hint) -> ServerFrame {
    match hint {
        Hint::Receipt { conversation, user, delivered, read } => {
            ServerFrame::Receipt { conversation, user, delivered, read }
        }
        Hint::Typing(conversation, user) => ServerFrame::Typing(conversation, user),
        Hint::ListChanged(user, version) => ServerFrame::ListChanged(user, version),
        Hint::PrekeysLow(left) => ServerFrame::PrekeysLow(left),
    }
}

const _: () = assert!(PageLimit::MAX.rows <= WINDOW_ROWS, "a page fits the window");

#[cfg(test)]
mod tests;
