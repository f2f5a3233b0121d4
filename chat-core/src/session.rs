//! The gateway's side of one device, as a pure state machine: no clock, no randomness, no `async`, no
//! errors. Bad input becomes [`Output::Close`].
//!
//! ```text
//! Greeting → Live ⇄ Behind → Draining → Closed
//! ```
//!
//! *Behind* is the whole slow-consumer policy. A session that cannot take a push stops taking pushes and
//! reads its inbox, from the oldest row, as fast as the device acknowledges. It becomes *Live* again only
//! when a page came back empty and no push was dropped since that page was asked for. Nothing grows.

mod io;

pub use io::{Input, Output};

use std::collections::{BTreeMap, HashMap};

use crate::backend::PageLimit;
use crate::delivery::Event;
use crate::envelope::{AckOf, InboxRow, Place, RowContent};
use crate::id::{ConversationId, DeviceAddress, Seq, UserId};
use crate::limits::{GREETING_MS, HEARTBEAT_MS, IDLE_MS, PAGE_BYTES, WINDOW_BYTES, WINDOW_ROWS};
use crate::mutant::{Mutant, Mutants};
use crate::time::Instant;
use crate::wire::{ClientFrame, ServerFrame, Welcome, close};

#[derive(Debug)]
enum Phase {
    Greeting,
    Authenticating,
    Linking,
    Live,
    /// `after`: the last row read. `reading`: a page was asked for. `dropped`: a push was dropped since.
    Behind {
        after: Place,
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

/// The gateway's side of one device.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    opened: Instant,
    heard: Instant,
    device: Option<DeviceAddress>,
    epoch: Option<crate::id::StoreEpoch>,
    flights: BTreeMap<(ConversationId, Seq), Flight>,
    flying_bytes: usize,
    announced: bool,
    /// Times in a row that rows were sent again without any being acknowledged.
    loops: u32,
    catch_ups: u32,
    /// Publishes passed on and not answered.
    pending: usize,
    drain: Option<(u32, Instant)>,
    /// What the device has and the store is not told yet, and the generation of its last word on it.
    acks: Option<(BTreeMap<ConversationId, Seq>, u64)>,
    receipts: HashMap<ConversationId, Seq>,
    /// Read up to here, to be told when its time has come.
    reads: HashMap<ConversationId, Seq>,
    /// When each conversation's last read watermark was told, and the last that its user writes.
    read_at: HashMap<ConversationId, Instant>,
    typed_at: HashMap<ConversationId, Instant>,
    /// When what was gathered is told: acks, receipts and reads.
    gather_at: Option<Instant>,
    watched: HashMap<UserId, Option<bool>>,
    watch_at: Option<Instant>,
    mutants: Mutants,
}

/// Deliveries of the same head, unacknowledged, after which a connection is closed.
const MAX_LOOPS: u32 = 5;
/// `CatchUp` frames between two heartbeats.
const MAX_CATCH_UPS: u32 = 64;
/// Milliseconds that acks and receipts are gathered, and between two looks at who is present. An ack that
/// is lost meanwhile costs its device a row that it has.
const GATHER_MS: u64 = 1000;
/// Milliseconds between two words that a user is writing in a conversation.
const TYPING_MS: u64 = 3000;
/// Conversations whose ephemeral frames are paced at once; those of more are dropped.
const MAX_PACED: usize = 256;
/// Milliseconds a draining session waits for answers.
const DRAIN_MS: u64 = 5000;

impl Session {
    /// A session whose connection just opened.
    pub fn new(now: Instant, mutants: Mutants) -> Self {
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
            pending: 0,
            drain: None,
            acks: None,
            receipts: HashMap::new(),
            reads: HashMap::new(),
            read_at: HashMap::new(),
            typed_at: HashMap::new(),
            gather_at: None,
            watched: HashMap::new(),
            watch_at: None,
            mutants,
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
        [Some(silent), self.gather_at, self.watch_at, drain].into_iter().flatten().min()
    }

    /// Takes one input; appends what is to be done.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        match input {
            Input::Frame(frame) => self.frame(now, frame, out),
            Input::Admitted(device, welcome) => self.admitted(device, welcome, out),
            Input::Rejected(code) => {
                let retry_after = if code == close::THROTTLED { 1000 } else { 0 };
                self.close(code, retry_after, out);
            }
            Input::Linking => self.phase = Phase::Linking,
            Input::Events(events) => self.events(now, events, out),
            Input::Lagged => self.lagged(out),
            Input::Page(asked, rows) => self.page(now, asked, rows, out),
            Input::PageFailed => {
                // The rows wait; the next heartbeat tries again.
                if let Phase::Behind { reading, .. } = &mut self.phase {
                    *reading = false;
                }
            }
            Input::Answer(frame) => {
                self.note_answer(&frame);
                out.push(Output::Send(frame));
            }
            Input::AckTooHigh => self.close(close::ACK_TOO_HIGH, 0, out),
            Input::Presence(present) => self.presence(&present, out),
            Input::Gone => {
                self.tell_gathered(out);
                self.phase = Phase::Closed;
            }
            Input::Tick => self.tick(now, out),
            Input::Drain(retry_after) => self.drain = Some((retry_after, now.after(DRAIN_MS))),
        }
        if let Some((retry_after, until)) = self.drain
            && (self.pending == 0 || now >= until)
        {
            self.close(close::DRAIN, retry_after, out);
        }
    }

    fn close(&mut self, code: u16, retry_after: u32, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Closed) {
            self.tell_gathered(out);
            self.phase = Phase::Closed;
            out.push(Output::Send(ServerFrame::Close { code, retry_after }));
            out.push(Output::Close(code));
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
            | (_, ClientFrame::Hello(_) | ClientFrame::Register(_)) => self.close(close::PROTOCOL, 0, out),
            (_, ClientFrame::Publish(publish)) => {
                self.pending += 1;
                out.push(Output::Publish(publish));
            }
            (_, ClientFrame::Void(number)) => {
                self.pending += 1;
                out.push(Output::Void(number));
            }
            (_, ClientFrame::Ack { acks, store_epoch, generation }) => {
                if self.epoch == Some(store_epoch) {
                    self.acks(&acks, generation, now, out);
                } else {
                    self.close(close::EPOCH, 0, out);
                }
            }
            (_, ClientFrame::Heartbeat) => self.heartbeat(now, out),
            (_, ClientFrame::CatchUp) => {
                self.catch_ups += 1;
                if self.catch_ups > MAX_CATCH_UPS {
                    self.close(close::THROTTLED, 1000, out);
                } else {
                    self.start_over(out);
                }
            }
            (_, ClientFrame::Request(id, ask)) => out.push(Output::Ask(id, ask)),
            (_, ClientFrame::Read(read)) => self.read(now, read, out),
            (_, ClientFrame::Typing(conversation)) => self.typing(now, conversation, out),
            (_, ClientFrame::Watch(users)) => {
                self.watched = users.into_iter().map(|user| (user, None)).collect();
                self.watch_at = (!self.watched.is_empty()).then_some(now);
            }
            (_, ClientFrame::Unknown(Some(id))) => {
                let subject = crate::envelope::Subject::Request(id);
                out.push(Output::Send(ServerFrame::Refused(subject, crate::envelope::Refusal::Unsupported)));
            }
            (_, ClientFrame::Unknown(None)) => {}
        }
    }

    /// A watermark goes out at once, the next of that conversation after a while.
    fn read(&mut self, now: Instant, read: AckOf, out: &mut Vec<Output>) {
        if self.read_at.get(&read.conversation).is_none_or(|at| now >= at.after(GATHER_MS))
            && self.read_at.len() < MAX_PACED
        {
            self.read_at.insert(read.conversation, now);
            out.push(Output::Receipt(read, true));
        } else if self.reads.len() < MAX_PACED {
            let known = self.reads.entry(read.conversation).or_default();
            *known = read.seq.max(*known);
            self.gather_at = self.gather_at.or(Some(now.after(GATHER_MS)));
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
        out.push(Output::Beat(false));
        self.read_from(Place::START, out);
    }

    // ---- the inbox -----------------------------------------------------------------------------------

    fn has_room(&self) -> bool {
        self.flights.len() < WINDOW_ROWS && self.flying_bytes < WINDOW_BYTES
    }

    fn half_empty(&self) -> bool {
        self.flights.len() <= WINDOW_ROWS / 2 && self.flying_bytes <= WINDOW_BYTES / 2
    }

    fn read_from(&mut self, after: Place, out: &mut Vec<Output>) {
        self.phase = Phase::Behind { after, reading: true, dropped: false };
        self.read_page(after, out);
    }

    /// Asks for a page. What is acknowledged is not to be read again.
    fn read_page(&mut self, after: Place, out: &mut Vec<Output>) {
        self.tell_acks(out);
        out.push(Output::Read(after));
    }

    /// Forgets what is on its way and sends everything unacknowledged again.
    fn start_over(&mut self, out: &mut Vec<Output>) {
        self.flights.clear();
        self.flying_bytes = 0;
        self.announced = false;
        self.read_from(Place::START, out);
    }

    fn fly(&mut self, now: Instant, row: &InboxRow, silent: bool) {
        let flight = Flight { bytes: row.size(), silent, sent: now };
        self.flying_bytes += flight.bytes;
        if let Some(old) = self.flights.insert((row.conversation, row.seq), flight) {
            self.flying_bytes -= old.bytes;
        }
    }

    fn page(&mut self, now: Instant, asked: Place, rows: Vec<InboxRow>, out: &mut Vec<Output>) {
        let Phase::Behind { mut after, dropped, reading: true } = self.phase else {
            return;
        };
        if after != asked {
            return;
        }
        if rows.is_empty() {
            if dropped {
                // Rows came while the page was read, perhaps with places before it: look again.
                self.read_from(Place::START, out);
            } else {
                self.phase = Phase::Live;
                if !self.announced {
                    self.announced = true;
                    out.push(Output::Send(ServerFrame::Deliver(Vec::new(), true)));
                }
            }
            return;
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
                after = row.place();
                fresh.push(row);
            } else {
                after = row.place();
            }
        }
        if !fresh.is_empty() {
            out.push(Output::Send(ServerFrame::Deliver(fresh, false)));
        }
        self.phase = Phase::Behind { after, reading: !full, dropped };
        if !full {
            self.read_page(after, out);
        }
    }

    fn lagged(&mut self, out: &mut Vec<Output>) {
        match &mut self.phase {
            Phase::Live => self.read_from(Place::START, out),
            Phase::Behind { dropped, .. } => *dropped = true,
            _ => {}
        }
    }

    fn events(&mut self, now: Instant, events: Vec<Event>, out: &mut Vec<Output>) {
        let mut rows = Vec::new();
        let mut bytes = 0;
        for event in events {
            match event {
                Event::Row(row) => {
                    if self.take_push(out) {
                        self.fly(now, &row, !matches!(row.content, RowContent::Message { .. }));
                        bytes += row.size();
                        rows.push(row);
                        if bytes >= PAGE_BYTES {
                            bytes = 0;
                            out.push(Output::Send(ServerFrame::Deliver(std::mem::take(&mut rows), false)));
                        }
                    }
                }
                Event::Own(stored, time_us) => {
                    // The stored ack is the fast path of the row; rows before it go out first.
                    if !rows.is_empty() {
                        out.push(Output::Send(ServerFrame::Deliver(std::mem::take(&mut rows), false)));
                    }
                    self.pending = self.pending.saturating_sub(1);
                    out.push(Output::Send(ServerFrame::Stored(stored)));
                    let mailbox = stored.conversation.kind() == Ok(crate::id::ConversationKind::Mailbox);
                    if !mailbox && self.take_push(out) {
                        let content = RowContent::Own {
                            message_id: stored.message_id,
                            client_seq: stored.client_seq,
                            incarnation: stored.incarnation,
                        };
                        let (conversation, seq) = (stored.conversation, stored.seq);
                        self.fly(now, &InboxRow { conversation, seq, time_us, joined: false, content }, true);
                    }
                }
                Event::Answer(frame) => {
                    self.note_answer(&frame);
                    out.push(Output::Send(frame));
                }
                Event::Ephemeral(frame) => out.push(Output::Send(frame)),
                Event::Closed(code) => {
                    if code == close::REPLACED {
                        // Whoever replaced it acknowledges for itself. It may be a copy of the device's store
                        // that is behind: it has been greeted, and must not be taken to have more.
                        self.acks = None;
                    }
                    return self.close(code, 0, out);
                }
                // The driver passes it on as `Input::Lagged`.
                Event::Lagged => {}
            }
        }
        if !rows.is_empty() {
            out.push(Output::Send(ServerFrame::Deliver(rows, false)));
        }
    }

    /// Whether a push may go out now. If not, the session falls behind and the row is read later.
    fn take_push(&mut self, out: &mut Vec<Output>) -> bool {
        match &mut self.phase {
            Phase::Live if self.flights.len() < WINDOW_ROWS && self.flying_bytes < WINDOW_BYTES => true,
            Phase::Live => {
                self.phase = Phase::Behind { after: Place::START, reading: false, dropped: true };
                self.resume(out);
                false
            }
            Phase::Behind { dropped, .. } => {
                *dropped = true;
                false
            }
            _ => false,
        }
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

    fn acks(&mut self, acks: &[AckOf], generation: u64, now: Instant, out: &mut Vec<Output>) {
        let gathered = self.acks.get_or_insert_default();
        gathered.1 = generation.max(gathered.1);
        for ack in acks {
            let known = gathered.0.entry(ack.conversation).or_default();
            *known = ack.seq.max(*known);
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
            if of_others && !self.mutants.has(Mutant::TrimOnPush) {
                let known = self.receipts.entry(ack.conversation).or_default();
                *known = ack.seq.max(*known);
            }
        }
        self.gather_at = self.gather_at.or(Some(now.after(GATHER_MS)));
        // A device that has what it says has no more on its way.
        if self.acks.as_ref().is_some_and(|(acks, _)| acks.len() > WINDOW_ROWS) {
            self.tell_acks(out);
        }
        self.resume(out);
    }

    fn heartbeat(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.catch_ups = 0;
        out.push(Output::Beat(true));
        let oldest = self.flights.values().map(|flight| flight.sent).min();
        if oldest.is_some_and(|sent| now.since(sent).as_millis() as u64 >= HEARTBEAT_MS) {
            self.loops += 1;
            if self.loops > MAX_LOOPS {
                return self.close(close::LOOP, 0, out);
            }
            self.start_over(out);
        } else if matches!(self.phase, Phase::Live | Phase::Behind { reading: false, .. }) {
            // Rows that no push announced show up at the latest now.
            self.read_from(Place::START, out);
        }
    }

    // ---- the rest ------------------------------------------------------------------------------------

    fn note_answer(&mut self, frame: &ServerFrame) {
        use crate::envelope::Subject::Message;
        if matches!(frame, ServerFrame::Stored(_) | ServerFrame::Refused(Message(..), _)) {
            self.pending = self.pending.saturating_sub(1);
        }
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
            return self.close(close::IDLE, 0, out);
        }
        if self.gather_at.is_some_and(|at| now >= at) {
            self.read_at.retain(|_, at| now < at.after(GATHER_MS));
            self.read_at.extend(self.reads.keys().map(|conversation| (*conversation, now)));
            self.tell_gathered(out);
        }
        if self.watch_at.is_some_and(|at| now >= at) {
            self.watch_at = Some(now.after(GATHER_MS));
            out.push(Output::Query(self.watched.keys().copied().collect()));
        }
    }

    fn tell_acks(&mut self, out: &mut Vec<Output>) {
        let Some((acks, generation)) = self.acks.take() else { return };
        let acks = acks.into_iter().map(|(conversation, seq)| AckOf { conversation, seq }).collect();
        out.push(Output::Ack(acks, generation));
    }

    fn tell_gathered(&mut self, out: &mut Vec<Output>) {
        self.gather_at = None;
        self.tell_acks(out);
        for (told, read) in [(&mut self.receipts, false), (&mut self.reads, true)] {
            out.extend(
                told.drain().map(|(conversation, seq)| Output::Receipt(AckOf { conversation, seq }, read)),
            );
        }
    }
}

const _: () = assert!(PageLimit::MAX.rows <= WINDOW_ROWS, "a page fits the window");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DeviceId, InstallationId};

    fn live() -> Session {
        let device = DeviceAddress {
            user: UserId::from_bytes([1; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([1; 16]),
        };
        let welcome = Welcome::example();
        let mut session = Session::new(Instant::from_millis(0), Mutants::NONE);
        session.step(Instant::from_millis(0), Input::Admitted(device, welcome), &mut Vec::new());
        session
    }

    fn said(session: &mut Session, at_ms: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        session.step(Instant::from_millis(at_ms), input, &mut out);
        out
    }

    #[test]
    fn typing_is_passed_on_once_in_three_seconds_a_conversation() {
        let mut session = live();
        let conversation = |n| ConversationId::own(UserId::from_bytes([n; 16]));
        let mut passed =
            |at, n| !said(&mut session, at, Input::Frame(ClientFrame::Typing(conversation(n)))).is_empty();
        assert!(passed(0, 1) && !passed(2999, 1) && passed(2999, 2) && passed(3000, 1));
        assert_eq!((0..1000).filter(|n| passed(10_000, *n as u8)).count(), 256, "one of each");
    }

    #[test]
    fn acks_are_gathered_and_told_before_a_read_and_at_the_end() {
        let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
        let of = |seq| AckOf { conversation, seq };
        let ack = |seq, generation| {
            let store_epoch = Welcome::example().store_epoch;
            Input::Frame(ClientFrame::Ack { acks: vec![of(seq)], store_epoch, generation })
        };
        let caught_up = |session: &mut Session| said(session, 0, Input::Page(Place::START, Vec::new()));
        let mut session = live();
        caught_up(&mut session);
        assert!(said(&mut session, 0, ack(1, 7)).is_empty() && said(&mut session, 900, ack(3, 8)).is_empty());
        assert!(said(&mut session, 950, ack(2, 8)).is_empty(), "cumulative");
        assert_eq!(session.deadline(), Some(Instant::from_millis(1000)));
        assert_eq!(said(&mut session, 1000, Input::Tick), vec![Output::Ack(vec![of(3)], 8)]);
        assert_eq!(said(&mut session, 2000, Input::Tick), vec![]);
        // Of made-up conversations no more are kept than a window has rows.
        let acks = (0..=WINDOW_ROWS).map(|n| {
            let mut id = [0; 17];
            id[..8].copy_from_slice(&n.to_be_bytes());
            AckOf { conversation: ConversationId::from_bytes(id), seq: 1 }
        });
        let store_epoch = Welcome::example().store_epoch;
        let many = ClientFrame::Ack { acks: acks.collect(), store_epoch, generation: 8 };
        let told = said(&mut session, 2000, Input::Frame(many));
        assert!(matches!(&told[..], [Output::Ack(acks, 8)] if acks.len() == WINDOW_ROWS + 1));
        said(&mut session, 2000, ack(4, 9));
        let told = said(&mut session, 2001, Input::Lagged);
        assert_eq!(told, vec![Output::Ack(vec![of(4)], 9), Output::Read(Place::START)]);
        said(&mut session, 2002, ack(5, 10));
        assert_eq!(said(&mut session, 2003, Input::Gone), vec![Output::Ack(vec![of(5)], 10)]);
        let replaced = || Input::Events(vec![Event::Closed(close::REPLACED)]);
        for (end, told) in [(Input::Drain(0), true), (Input::AckTooHigh, true), (replaced(), false)] {
            let mut session = live();
            said(&mut session, 0, ack(1, 1));
            let out = said(&mut session, 1, end);
            assert_eq!(out.first() == Some(&Output::Ack(vec![of(1)], 1)), told, "{out:?}");
            assert_eq!(said(&mut session, 2, Input::Gone), vec![]);
        }
    }

    #[test]
    fn of_many_read_watermarks_the_first_and_the_last_are_told() {
        let mut session = live();
        let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
        let receipt = |seq| Output::Receipt(AckOf { conversation, seq }, true);
        let read = |seq| Input::Frame(ClientFrame::Read(AckOf { conversation, seq }));
        assert_eq!(said(&mut session, 0, read(1)), vec![receipt(1)]);
        for seq in 2..100 {
            assert_eq!(said(&mut session, 10, read(seq)), vec![]);
        }
        assert!(session.deadline().is_some_and(|at| at <= Instant::from_millis(1010)));
        assert_eq!(said(&mut session, 1010, Input::Tick), vec![receipt(99)]);
        assert_eq!(said(&mut session, 3000, read(100)), vec![receipt(100)]);
    }
}
