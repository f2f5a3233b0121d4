//! The gateway's side of one device connection, as a pure state machine: no clock, no randomness, no `async`,
//! no errors. Invalid input produces [`Output::Close`].
//!
//! ```text
//! Greeting → Live ⇄ Behind → Draining → Closed
//! ```
//!
//! *Behind* is the policy for slow consumers. A session whose device cannot take an event stops delivering
//! events and reads the inbox from the oldest row, as fast as the device acknowledges. It becomes *Live*
//! again only after a page contained all remaining rows and no event was dropped since the session requested
//! that page. A live event may arrive before its row is readable, so after a drop the session reads the inbox
//! twice more. Memory is bounded.

mod ack_coalescer;
mod event;
mod flights;
mod hint_pacer;
mod window;

pub use event::{Input, Output};

use std::collections::BTreeMap;

use ack_coalescer::AckCoalescer;
use flights::Flights;
use hint_pacer::HintPacer;
use window::Window;

use crate::backend::{InboxPage, PageLimit};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow, Refusal, RowContent, Subject};
use crate::model::id::{DeviceAddress, UserId};
use crate::model::limits::{GREETING_MS, HEARTBEAT_MS, IDLE_MS, MIN_BYTES_PER_SECOND, WINDOW_ROWS};
use crate::model::presence::UserPresence;
use crate::model::server_frame::{ServerFrame, Welcome};
use crate::model::session_event::{Hint, SessionEvent};
use crate::model::shared_rows::SharedRows;
use crate::model::time::Instant;
use crate::mutant::Mutant;

#[derive(Debug)]
enum Phase {
    Greeting,
    Authenticating,
    Linking,
    Live,
    /// `after`: position of the last row read. `reading`: a page was requested. `dropped`: a live event was
    /// dropped since that request.
    Behind {
        after: InboxPosition,
        reading: bool,
        dropped: bool,
    },
    Closed,
}

/// A live event that was dropped.
#[derive(Clone, Copy, Debug)]
struct Missed {
    at: Instant,
    /// Number of times the inbox was read again for it.
    looks: usize,
    /// Another live event was dropped since the last re-read.
    again: bool,
}

/// Gateway side of one device connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    opened: Instant,
    /// Registrations that the device sent.
    registrations: u32,
    heard: Instant,
    /// When the token of the device expires. `None`: never.
    expires_at: Option<Instant>,
    device: Option<DeviceAddress>,
    epoch: Option<crate::model::id::StoreEpoch>,
    flights: Flights,
    window: Window,
    /// When the device last acknowledged a row.
    landed: Instant,
    announced: bool,
    /// Consecutive redeliveries without any acknowledged row.
    loops: u32,
    catch_ups: u32,
    /// Live events that were dropped and whose rows may not have been in the inbox yet when it was read.
    missed: Option<Missed>,
    /// Publishes and skips that are passed on and not answered.
    pending: usize,
    drain: Option<(u32, Instant)>,
    acks: AckCoalescer,
    hints: HintPacer,
    watched: BTreeMap<UserId, Option<UserPresence>>,
    watch_at: Option<Instant>,
}

/// Maximum number of registrations on a connection: the list in force of an account, and the list that replaces it.
const MAX_REGISTRATIONS: u32 = 2;
/// Maximum number of consecutive redeliveries without any acknowledged row, before the connection is closed.
const MAX_LOOPS: u32 = 5;
/// Maximum number of `CatchUp` frames between two heartbeats.
const MAX_CATCH_UPS: u32 = 64;
/// Milliseconds after a dropped live event at which the inbox is read again. The first re-read finds the row,
/// unless the store is slow. If the row is readable only after the second one, its record is replayed, and
/// the replay delivers `Lagged` to its devices.
const REREAD_DELAYS_MS: [u64; 2] = [1000, 5000];
/// Milliseconds between two presence queries.
const PRESENCE_POLL_MS: u64 = 1000;
/// Maximum number of conversations whose ephemeral frames are limited at once. Frames of further
/// conversations are dropped.
const MAX_PACED: usize = 256;
/// Milliseconds for which a draining session waits for answers.
const DRAIN_MS: u64 = 5000;

impl Session {
    /// Creates a session for a connection that just opened.
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Greeting,
            opened: now,
            registrations: 0,
            heard: now,
            expires_at: None,
            device: None,
            epoch: None,
            flights: Flights::default(),
            window: Window::new(),
            landed: now,
            announced: false,
            loops: 0,
            catch_ups: 0,
            missed: None,
            pending: 0,
            drain: None,
            acks: AckCoalescer::default(),
            hints: HintPacer::default(),
            watched: BTreeMap::new(),
            watch_at: None,
        }
    }

    /// Returns the device, once it is authenticated.
    pub const fn device(&self) -> Option<DeviceAddress> {
        self.device
    }

    /// Returns whether every row of the inbox was sent to the device.
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Returns when [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let silent = match self.phase {
            Phase::Greeting | Phase::Authenticating => self.opened.after(GREETING_MS),
            Phase::Linking => self.opened.after(600_000),
            Phase::Closed => return None,
            Phase::Live | Phase::Behind { .. } => self.heard.after(IDLE_MS),
        };
        let drain = self.drain.map(|(_, until)| until);
        [Some(silent), self.expires_at, self.acks.due(), self.watch_at, self.look_at(), drain]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns when to read the inbox again for dropped live events.
    fn look_at(&self) -> Option<Instant> {
        self.missed.and_then(|missed| Some(missed.at.after(*REREAD_DELAYS_MS.get(missed.looks)?)))
    }

    fn note_missed(&mut self, now: Instant) {
        match &mut self.missed {
            Some(missed) => missed.again = true,
            None => self.missed = Some(Missed { at: now, looks: 0, again: false }),
        }
    }

    /// Processes one input and appends the resulting outputs.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        match input {
            // No frame of the device counts after its token expired.
            Input::Frame(_) if self.is_expired(now) => {}
            Input::Frame(frame) => self.frame(now, frame, out),
            Input::Admitted { device, welcome, expires_at } => {
                self.expires_at = expires_at;
                self.admitted(device, welcome, out);
            }
            Input::Renewed { expires_at } => self.renewed(now, expires_at, out),
            Input::Rejected { reason, retry_after } => self.close(reason, retry_after, out),
            Input::Linking => self.phase = Phase::Linking,
            Input::Events(events) => self.events(now, events, out),
            Input::Shared(rows) => self.shared(now, rows, out),
            Input::Lagged => self.lagged(now, out),
            Input::Page(asked, page) => self.page(now, asked, page, out),
            Input::PageFailed => {
                self.acks.acked(out);
                // The rows stay in the inbox; the next heartbeat reads it again.
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
        // With any input, because a device that always has a frame ready delays the tick.
        if self.is_expired(now) {
            self.close(CloseReason::Unauthorized, 0, out);
        }
    }

    /// Returns whether the token of the device expired.
    fn is_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
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
            (Phase::Greeting, ClientFrame::Register(registration))
                if self.registrations < MAX_REGISTRATIONS =>
            {
                self.registrations += 1;
                out.push(Output::Register(registration));
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
            (_, ClientFrame::Request(id, request)) => {
                if matches!(request, Request::Cursors) {
                    // The answer includes the acks before the request.
                    self.acks.flush_acks(out);
                }
                out.push(Output::Request(id, request));
            }
            (_, ClientFrame::Read(read)) => out.extend(self.acks.read(now, read)),
            (_, ClientFrame::GroupReceipt(receipt)) => {
                if self.hints.may_send_receipt(now) {
                    out.push(Output::GroupReceipt(receipt));
                }
            }
            (_, ClientFrame::OpenConversation(conversation)) => self.hints.open(conversation),
            (_, ClientFrame::Typing(conversation)) => {
                if self.hints.may_type(now, conversation) {
                    out.push(Output::Typing(conversation));
                }
            }
            (_, ClientFrame::Watch(users)) => {
                self.watched = users.into_iter().map(|user| (user, None)).collect();
                self.watch_at = (!self.watched.is_empty()).then_some(now);
            }
            (_, ClientFrame::Renew(renewal)) => out.push(Output::Renew(renewal)),
            (_, ClientFrame::Unknown(Some(id))) => {
                let subject = Subject::Request(id);
                out.push(Output::Send(ServerFrame::Refused(subject, Refusal::Unsupported)));
            }
            (_, ClientFrame::Unknown(None)) => {}
        }
    }

    fn renewed(&mut self, now: Instant, expires_at: Option<Instant>, out: &mut Vec<Output>) {
        self.expires_at = expires_at;
        let left = expires_at.map_or(0, |at| at.since(now).as_millis() as u64);
        out.push(Output::Send(ServerFrame::Renewed(left)));
    }

    fn admitted(&mut self, device: DeviceAddress, welcome: Welcome, out: &mut Vec<Output>) {
        self.device = Some(device);
        self.epoch = Some(welcome.store_epoch);
        out.push(Output::Send(ServerFrame::Welcome(welcome)));
        self.read_from(InboxPosition::START, out);
    }

    // ---- the inbox -----------------------------------------------------------------------------------

    fn has_room(&self) -> bool {
        self.flights.rows() < WINDOW_ROWS && self.flights.bytes() < self.window.bytes()
    }

    fn half_empty(&self) -> bool {
        self.flights.rows() <= WINDOW_ROWS / 2 && self.flights.bytes() <= self.window.bytes() / 2
    }

    fn read_from(&mut self, after: InboxPosition, out: &mut Vec<Output>) {
        self.phase = Phase::Behind { after, reading: true, dropped: false };
        self.read_page(after, out);
    }

    /// Requests a page. Flushes the acks first, so that acknowledged rows are not read again.
    fn read_page(&mut self, after: InboxPosition, out: &mut Vec<Output>) {
        self.acks.flush_acks(out);
        out.push(Output::Read(after, self.window.page_limit()));
    }

    /// Sends rows, in frames of limited size.
    fn deliver(&self, rows: Vec<InboxRow>, out: &mut Vec<Output>) {
        let (mut frame, mut bytes) = (Vec::new(), 0);
        for row in rows {
            bytes += row.size();
            frame.push(row);
            if bytes >= self.window.frame_bytes() {
                bytes = 0;
                out.push(Output::Send(ServerFrame::Deliver(std::mem::take(&mut frame), false)));
            }
        }
        if !frame.is_empty() {
            out.push(Output::Send(ServerFrame::Deliver(frame, false)));
        }
    }

    /// Forgets the rows in flight and sends everything unacknowledged again.
    fn start_over(&mut self, out: &mut Vec<Output>) {
        self.flights.clear();
        self.announced = false;
        self.read_from(InboxPosition::START, out);
    }

    fn page(&mut self, now: Instant, asked: InboxPosition, page: InboxPage, out: &mut Vec<Output>) {
        // The driver applied all acks before it read the page.
        self.acks.acked(out);
        let Phase::Behind { mut after, dropped, reading: true } = self.phase else {
            return;
        };
        if after != asked {
            return;
        }
        let InboxPage { rows, has_more } = page;
        let oldest_flies = |row: &InboxRow| self.flights.contains(row.conversation, row.seq);
        if asked == InboxPosition::START && !self.has_room() && !rows.first().is_some_and(oldest_flies) {
            // The rows that fill the window are later than a row that was missed, and the device does not
            // acknowledge them before it.
            self.flights.clear();
        }
        let mut fresh = Vec::new();
        let mut full = false;
        for row in rows {
            if !self.flights.contains(row.conversation, row.seq) {
                if !self.has_room() {
                    full = true;
                    break;
                }
                self.flights.add(now, &row);
                after = row.position();
                fresh.push(row);
            } else {
                after = row.position();
            }
        }
        self.deliver(fresh, out);
        if full {
            self.phase = Phase::Behind { after, reading: false, dropped };
        } else if has_more {
            self.phase = Phase::Behind { after, reading: true, dropped };
            self.read_page(after, out);
        } else if dropped && !Mutant::LiveThoughDropped.is_active() {
            // Rows arrived while the page was read, and their positions may be before it: read again.
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

    /// Reads the inbox from its oldest row, now or after the current page.
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
        for event in events {
            match event {
                SessionEvent::Row(row) => {
                    if self.take_push(now, out) {
                        self.flights.add(now, &row);
                        rows.push(row);
                    }
                }
                SessionEvent::Own(stored, time_us) => {
                    // `Stored` is the fast path of the device's own row. Earlier rows go out first.
                    self.deliver(std::mem::take(&mut rows), out);
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
                        self.flights
                            .add(now, &InboxRow { conversation, seq, time_us, joined: false, content });
                    }
                }
                SessionEvent::Repeated(stored) => {
                    self.pending = self.pending.saturating_sub(1);
                    out.push(Output::Send(ServerFrame::Stored(stored)));
                }
                SessionEvent::Refused(subject, refusal) => self.refused(subject, refusal, out),
                SessionEvent::Hint(hint) => {
                    if self.hints.wants(&hint) {
                        out.push(Output::Send(hint_frame(hint)));
                    }
                }
                SessionEvent::Closed(reason) => {
                    if reason == CloseReason::Replaced {
                        // The new session acknowledges for itself. It may run on an older copy of the
                        // device's store and has been greeted already, so acks of this session must not apply
                        // to it.
                        self.acks.forget_acks();
                    }
                    return self.close(reason, 0, out);
                }
                // The driver reports it as `Input::Lagged`.
                SessionEvent::Lagged => {}
            }
        }
        self.deliver(rows, out);
    }

    /// Sends rows of a feed, all or none.
    fn shared(&mut self, now: Instant, rows: SharedRows, out: &mut Vec<Output>) {
        let fits = self.flights.rows() + rows.rows().len() <= WINDOW_ROWS;
        if fits && self.take_push(now, out) {
            self.flights.add_shared(now, &rows);
            out.push(Output::SendShared(rows));
        } else if !fits {
            self.miss(now, out);
        }
    }

    /// Returns whether a live event may go out now. If not, the session falls behind and reads the row later.
    fn take_push(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        if matches!(self.phase, Phase::Live) && self.has_room() {
            return true;
        }
        self.miss(now, out);
        false
    }

    /// Falls behind because a live event does not go out.
    fn miss(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.note_missed(now);
        match &mut self.phase {
            Phase::Live => {
                self.phase = Phase::Behind { after: InboxPosition::START, reading: false, dropped: true };
                self.resume(out);
            }
            Phase::Behind { dropped, .. } => *dropped = true,
            _ => {}
        }
    }

    /// Continues to read once half of the window is free.
    fn resume(&mut self, out: &mut Vec<Output>) {
        if let Phase::Behind { after, reading: false, dropped } = self.phase
            && self.half_empty()
        {
            self.phase = Phase::Behind { after, reading: true, dropped };
            self.read_page(after, out);
        }
    }

    fn acks(&mut self, acks: &[AckUpTo], generation: u64, now: Instant, out: &mut Vec<Output>) {
        let (mut bytes, mut took_ms) = (0, 0);
        for ack in acks {
            let landed = self.flights.land(*ack);
            bytes += landed.bytes;
            took_ms = took_ms.max(landed.sent.map_or(0, |sent| now.since(sent).as_millis() as u64));
            let of_others = landed.of_others;
            if landed.rows > 0 {
                (self.loops, self.landed) = (0, now);
            }
            self.acks.ack(*ack, of_others && !Mutant::TrimOnPush.is_active());
        }
        self.window.adapt(bytes, took_ms);
        self.acks.acks_came(now, generation, out);
        self.resume(out);
    }

    fn heartbeat(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.catch_ups = 0;
        out.push(Output::Beat);
        // The rows are lost if the device acknowledges none for longer than the slowest link takes.
        let patience_ms = HEARTBEAT_MS + self.flights.bytes() as u64 * 1000 / MIN_BYTES_PER_SECOND;
        let oldest = self.flights.oldest().map(|sent| sent.max(self.landed));
        if oldest.is_some_and(|since| now.since(since).as_millis() as u64 >= patience_ms) {
            self.loops += 1;
            if self.loops > MAX_LOOPS {
                return self.close(CloseReason::Loop, 0, out);
            }
            self.start_over(out);
        } else if matches!(self.phase, Phase::Live | Phase::Behind { reading: false, .. })
            && !Mutant::HeartbeatIsBlind.is_active()
        {
            // Finds rows whose live event was lost.
            self.read_from(InboxPosition::START, out);
        }
    }

    // ---- the rest ------------------------------------------------------------------------------------

    /// A publish or skip was refused.
    fn refused(&mut self, subject: Subject, refusal: Refusal, out: &mut Vec<Output>) {
        self.pending = self.pending.saturating_sub(1);
        out.push(Output::Send(ServerFrame::Refused(subject, refusal)));
    }

    fn presence(&mut self, present: &[(UserId, UserPresence)], out: &mut Vec<Output>) {
        for (user, present) in present {
            if let Some(known) = self.watched.get_mut(user)
                && *known != Some(*present)
            {
                *known = Some(*present);
                out.push(Output::Send(ServerFrame::Presence(*user, *present)));
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
        Hint::ContactsChanged(version) => ServerFrame::ContactsChanged(version),
        Hint::ReadRequested(conversation, asker) => ServerFrame::ReadRequested(conversation, asker),
    }
}

const _: () = assert!(PageLimit::MAX.rows <= WINDOW_ROWS, "a page must fit the window");

#[cfg(test)]
mod tests;
