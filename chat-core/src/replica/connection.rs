//! The connection: dialling, handshake, heartbeats, retries.

use super::change::{Change, ListChange};
use super::conversation::Wait;
use super::output::{Ephemeral, Output, Stopped};
use super::send::SOON_MS;
use super::{DAY_MS, Phase, Purpose, RETRY_MS, Recovery, Replica, retry_ms};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::close_reason::CloseReason;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{InboxCursor, Refusal, Subject};
use crate::model::id::{ConversationId, ConversationKind, UserId};
use crate::model::limits::{HEARTBEAT_MS, LOW_PREKEYS, WIRE_VERSION};
use crate::model::rules::Rules;
use crate::model::server_frame::{Response, ServerFrame, Welcome};
use crate::model::time::Instant;

/// Backoff with full jitter: the wait is drawn from 0 to this, doubled for each attempt, up to the cap.
const BACKOFF_BASE_MS: u64 = 100;
const BACKOFF_CAP_MS: u64 = 30_000;
/// A connection that lasted this many milliseconds resets the backoff.
const SETTLED_MS: u64 = 5_000;
/// Milliseconds without an answer after which the link counts as slow.
const SLOW_MS: u64 = 5000;
/// Maximum rows that wait, for example for a device list.
const MAX_ROWS: usize = 2048;
/// Milliseconds before the replica requests a list again that the server did not return.
const LISTLESS_MS: u64 = 5000;
/// One-time prekeys on the server after a device has topped them up.
const PREKEYS: u32 = 70;
/// One-time prekeys in one upload: on a slow link, messages have their turn between two uploads.
const PREKEYS_AT_ONCE: u32 = 25;
/// Largest lead of a claimed list version over the stored one that the replica believes.
const MAX_LIST_LEAD: u64 = 1000;

impl Replica {
    pub(super) fn connected(&mut self, now: Instant) {
        if let Phase::Dialing(_, attempts) = self.phase {
            self.phase = Phase::Greeting(now.after(RETRY_MS), attempts);
        }
    }

    pub(super) fn disconnected(&mut self, now: Instant, retry_after: u32, out: &mut Vec<Output>) {
        let attempts = match self.phase {
            Phase::Stopped(_) | Phase::Idle(..) => return,
            Phase::Dialing(_, attempts) | Phase::Greeting(_, attempts) => attempts,
            Phase::Online { since, attempts, .. } => {
                out.push(Output::Event(Ephemeral::Disconnected));
                if now.since(since).as_millis() as u64 >= SETTLED_MS { 0 } else { attempts }
            }
        };
        let ceiling = BACKOFF_CAP_MS.min(BACKOFF_BASE_MS << attempts.min(16));
        let wait = self.rng.below(ceiling + 1).max(u64::from(retry_after));
        self.phase = Phase::Idle(now.after(wait), attempts.saturating_add(1));
        self.forget_connection(out);
    }

    /// Drops all state of the connection. Open requests of the application are answered with `Retry`.
    fn forget_connection(&mut self, out: &mut Vec<Output>) {
        self.recovery = Recovery::No;
        self.server_restore.connection_ended();
        self.caught_up = false;
        self.report_caught_up = None;
        self.catch_up_at = None;
        self.rows.clear();
        self.looked_up.clear();
        self.looking_up.clear();
        self.earlier_lists.clear();
        for (_, (purpose, ..)) in std::mem::take(&mut self.requests) {
            if let Purpose::Application(token) = purpose {
                out.push(Output::Answer(token, Err(Refusal::Retry(0))));
            }
        }
        for (id, conversation) in &mut self.conversations {
            conversation.sent = 0;
            conversation.wait = Wait::Nothing;
            conversation.went_back = None;
            if let Some(group) = &mut conversation.group {
                group.connection_ended();
                self.rosters_behind.extend(Some(*id).filter(|_| group.is_behind));
            }
        }
    }

    fn stop(&mut self, why: Stopped, out: &mut Vec<Output>) {
        if let Phase::Online { .. } = self.phase {
            out.push(Output::Event(Ephemeral::Disconnected));
        }
        self.forget_connection(out);
        self.phase = Phase::Stopped(why);
        out.push(Output::Hangup);
        out.push(Output::Event(Ephemeral::Stopped(why)));
    }

    pub(super) fn stop_superseded(&mut self, out: &mut Vec<Output>) {
        self.stop(Stopped::Superseded, out);
    }

    fn hangup(&mut self, now: Instant, retry_after: u32, out: &mut Vec<Output>) {
        out.push(Output::Hangup);
        self.disconnected(now, retry_after, out);
    }

    pub(super) fn reset_attempts(&mut self) {
        if let Phase::Online { attempts, .. } = &mut self.phase {
            *attempts = 0;
        }
    }

    pub(super) fn frame(&mut self, now: Instant, frame: ServerFrame, out: &mut Vec<Output>) {
        if let Phase::Online { heard, .. } = &mut self.phase {
            *heard = now;
        }
        match (self.phase, frame) {
            (Phase::Greeting(..), ServerFrame::Challenge(challenge)) => {
                if (challenge.min_version..=challenge.max_version).contains(&WIRE_VERSION) {
                    out.push(Output::Hello {
                        nonce: challenge.nonce,
                        incarnation: self.incarnation,
                        generation: self.generation,
                        epoch: self.epoch,
                    });
                } else {
                    self.stop(Stopped::Version, out);
                }
            }
            (Phase::Greeting(_, attempts), ServerFrame::Welcome(welcome)) => {
                self.phase =
                    Phase::Online { since: now, heard: now, heartbeat: now.after(HEARTBEAT_MS), attempts };
                self.welcome(now, &welcome, out);
            }
            (_, ServerFrame::Close { reason, retry_after }) => match reason {
                CloseReason::Unauthorized => self.stop(Stopped::Unauthorized, out),
                CloseReason::Version => self.stop(Stopped::Version, out),
                CloseReason::AckTooHigh => {
                    self.server_restore.is_suspected = true;
                    self.hangup(now, retry_after, out);
                }
                // The connection that replaced this one is likely to stay: do not compete with it.
                CloseReason::Replaced => self.hangup(now, retry_after.max(5000), out),
                _ => self.hangup(now, retry_after, out),
            },
            (Phase::Online { .. }, frame) => self.online_frame(now, frame, out),
            _ => {}
        }
    }

    fn welcome(&mut self, now: Instant, welcome: &Welcome, out: &mut Vec<Output>) {
        out.push(Output::Event(Ephemeral::Connected));
        self.slow = false;
        self.server_time = (welcome.server_time, now);
        self.prekeys_held = welcome.prekeys;
        self.ask_again(now);
        for (user, version) in self.claimed.clone() {
            self.claimed_list(now, user, version, out);
        }
        match self.epoch {
            None => self.changes.push(Change::Epoch(welcome.store_epoch)),
            Some(known) if known != welcome.store_epoch => {
                self.changes.push(Change::NewEpoch(welcome.store_epoch));
                self.epoch_changed();
            }
            Some(_) => {}
        }
        self.epoch = Some(welcome.store_epoch);
        self.retention_ms = welcome.retention_ms;
        self.server_rules = Rules(welcome.rules);
        if !self.watched.is_empty() {
            out.push(Output::Send(ClientFrame::Watch(self.watched.clone())));
        }
        if self.open_conversation.is_some() {
            out.push(Output::Send(ClientFrame::OpenConversation(self.open_conversation)));
        }
        if self.server_restore.is_suspected {
            self.suspect_restore(now, out);
        } else {
            self.look_for_restore(now, welcome.instance, out);
        }
        if welcome.rollback || self.nonce.is_some() || self.reincarnation_asked {
            self.begin_recovery(now, out);
        } else if welcome.prekeys < LOW_PREKEYS || self.prekeys_are_old(now) {
            self.make_prekeys(false, out);
        }
        let own = self.device.user;
        if self.lists.get(&own).is_none_or(|list| list.list().version < welcome.list_version) {
            self.fetch_list(now, own, out);
        }
    }

    fn online_frame(&mut self, now: Instant, frame: ServerFrame, out: &mut Vec<Output>) {
        match frame {
            ServerFrame::Deliver(rows, caught_up) => {
                if self.rows.len() + rows.len() > MAX_ROWS {
                    // More rows than the protocol allows in flight. The server sends the dropped rows again.
                    return self.hangup(now, 1000, out);
                }
                self.rows_in += rows.len() as u64;
                self.rows.extend(rows);
                if caught_up {
                    let missing = self.conversations.values_mut().filter_map(|known| known.missing.as_mut());
                    missing.for_each(|missing| missing.caught_up = true);
                }
                if caught_up && !self.caught_up {
                    self.caught_up = true;
                    self.report_caught_up = Some(u64::MAX);
                    self.exchange_watermarks(now, out);
                }
            }
            ServerFrame::Stored(stored) if self.compare_stored(stored, out) => {}
            ServerFrame::Stored(stored) => self.stored(now, stored),
            ServerFrame::Refused(Subject::Message(conversation, id, client_seq, incarnation), refusal)
                // A late answer to a closed incarnation does not apply to this one.
                if incarnation == self.incarnation => {
                    self.refused(now, conversation, id, client_seq, refusal, out);
                }
            ServerFrame::Refused(Subject::Request(id), refusal) => {
                if let Some((purpose, request, _)) = self.requests.remove(&id) {
                    self.request_refused(now, purpose, request, refusal, out);
                }
            }
            ServerFrame::Response(id, answer) => {
                if let Some((purpose, ..)) = self.requests.remove(&id) {
                    self.answered(now, purpose, answer, out);
                }
            }
            ServerFrame::Receipt {
                conversation,
                user,
                delivered,
                read,
            } => {
                self.receipt(conversation, user, delivered, read);
            }
            ServerFrame::HeartbeatReply(server_time) => {
                self.server_time = (server_time, now);
                if self.recovery == Recovery::No && self.prekeys_are_old(now) {
                    self.make_prekeys(false, out);
                }
            }
            ServerFrame::PrekeysLow(left)
                if left < LOW_PREKEYS
                    && self.recovery == Recovery::No
                    && !self.is_asked(&Purpose::Upload) =>
            {
                self.prekeys_held = left;
                self.make_prekeys(false, out);
            }
            ServerFrame::ReadRequested(conversation, None) => self.say_read(conversation, out),
            ServerFrame::ReadRequested(conversation, Some(asker)) => {
                self.receipt_requested(now, conversation, asker);
            }
            ServerFrame::Typing(conversation, user) => {
                out.push(Output::Event(Ephemeral::Typing(conversation, user)));
            }
            ServerFrame::Presence(user, presence) => {
                out.push(Output::Event(Ephemeral::Presence(user, presence)));
            }
            ServerFrame::ListChanged(user, version)
                if self
                    .lists
                    .get(&user)
                    .is_none_or(|list| list.list().version < version)
                => {
                    self.fetch_list(now, user, out);
                }
            _ => {}
        }
    }

    fn answered(&mut self, now: Instant, purpose: Purpose, answer: Box<Response>, out: &mut Vec<Output>) {
        match purpose {
            Purpose::Application(token) => out.push(Output::Answer(token, Ok(answer))),
            Purpose::Resolve(handle) => match answer.user {
                Some(user) => self.resolved(handle, user),
                None => self.unknown_user(&handle),
            },
            Purpose::Lists(users) => {
                let handles = answer.handles.into_iter().chain(std::iter::repeat(None));
                for (list, handle) in answer.lists.into_iter().zip(handles) {
                    let user = list.list().user;
                    // Only requested users; and a resolved handle keeps its user.
                    if !users.contains(&user) {
                        continue;
                    }
                    self.take_list(now, list);
                    if let Some(handle) = handle
                        && !self.handles.contains_key(&handle)
                    {
                        self.resolved(handle, user);
                    }
                }
                for user in users {
                    self.note_looked_up(user);
                    self.stale.remove(&user);
                    if !self.lists.contains_key(&user) {
                        self.listless.insert(user, now.after(LISTLESS_MS));
                    }
                    self.report_if_hidden(user, out);
                }
            }
            Purpose::ListVersion(user, version) => {
                let key = self.lists.get(&user).map(|newest| *newest.account_key());
                let list = answer.lists.into_iter().find(|list| {
                    list.list().user == user
                        && list.list().version == version
                        && Some(*list.account_key()) == key
                });
                self.earlier_lists.insert((user, version), list);
            }
            Purpose::Roster(id) => self.roster_answered(now, id, answer.roster.map(|roster| *roster)),
            Purpose::Claim(id, user, wanted) => {
                let others_open = id.kind() == Ok(ConversationKind::Group)
                    && self
                        .requests
                        .values()
                        .any(|(purpose, ..)| matches!(purpose, Purpose::Claim(of, ..) if *of == id));
                let is_short = answer.bundles.len() < wanted.len();
                if is_short {
                    // A device without prekeys may no longer be on the list.
                    self.stale.insert(user);
                    self.fetch_list(now, user, out);
                }
                let may_exclude = self.may_exclude(now, id, user, &wanted);
                if let Some(conversation) = self.conversations.get_mut(&id) {
                    for device in &wanted {
                        *conversation.answered_claims.entry(*device).or_default() += 1;
                    }
                    let is_first = !conversation.are_unusable(&wanted);
                    if conversation.wait == Wait::Bundles && !others_open {
                        conversation.wait = if may_exclude && is_short && is_first {
                            // The device may be uploading its first prekeys.
                            Wait::Until(now.after(SOON_MS))
                        } else if !may_exclude && (answer.bundles.is_empty() || conversation.claims > 1) {
                            // The device never uploaded prekeys, or its bundle is refused. It may upload new
                            // ones at any moment, but each claim costs it one.
                            Wait::Until(now.after(1000 << conversation.claims.min(6)))
                        } else {
                            Wait::Nothing
                        };
                    }
                }
                if let (Some(list), false) = (self.lists.get(&user), answer.bundles.is_empty()) {
                    self.ratchets_moved = true;
                    self.changes.push(Change::Sessions);
                    out.push(Output::Bundles(list.clone(), answer.bundles));
                }
            }
            Purpose::Upload => {
                self.prekeys_held = u32::try_from(answer.prekeys).unwrap_or(u32::MAX);
                self.prekeys_at = self.server_ms(now);
                self.changes.push(Change::Prekeys(self.prekeys_at));
                if self.prekeys_held < PREKEYS {
                    self.make_prekeys(false, out);
                }
            }
            Purpose::Cursors => self.cursors(answer.cursors, out),
            Purpose::ServerRestore => self.compare_cursors(now, answer.cursors, out),
            Purpose::Missing => {
                self.looked_back = true;
                if answer.cursors.iter().any(|(id, cursor)| cursor.tail < self.cursor(*id)) {
                    self.suspect_restore(now, out);
                }
                if answer.cursors.iter().any(|(id, cursor)| self.has_forgotten(*id, *cursor)) {
                    self.begin_recovery(now, out);
                }
            }
            Purpose::Reincarnate => self.reincarnated(now, answer.incarnation, out),
            Purpose::Delivered(conversation) => {
                for (user, delivered) in answer.progress {
                    self.receipt(conversation, user, delivered, 0);
                }
                let peer = self
                    .lists
                    .keys()
                    .find(|user| ConversationId::direct(**user, self.device.user) == conversation);
                if let Some(user) = peer.copied() {
                    self.receipt(conversation, user, answer.delivered, 0);
                }
            }
        }
    }

    /// Whether this device acknowledged rows that its store does not have.
    fn has_forgotten(&self, id: ConversationId, remote: InboxCursor) -> bool {
        let known = self.conversations.get(&id);
        let cursor = known.map_or(0, |known| known.cursor);
        // A row in transit is not missing.
        let missing = known.and_then(|known| known.missing).filter(|missing| missing.caught_up);
        // Without a received row, rows from before this device joined count as acknowledged. Never all rows,
        // since the row with which the device joins does not.
        let received = cursor > 0 || missing.is_some_and(|missing| missing.seq <= remote.acked);
        cursor < remote.acked && (received || remote.acked >= remote.tail)
    }

    fn request_refused(
        &mut self,
        now: Instant,
        purpose: Purpose,
        request: Request,
        refusal: Refusal,
        out: &mut Vec<Output>,
    ) {
        match (purpose, refusal) {
            (Purpose::Application(token), refusal) => out.push(Output::Answer(token, Err(refusal))),
            (Purpose::Resolve(handle), Refusal::NotFound | Refusal::Denied | Refusal::Invalid) => {
                self.unknown_user(&handle);
            }
            (Purpose::Reincarnate, Refusal::Throttled(_)) => self.stop_superseded(out),
            (Purpose::Cursors | Purpose::Reincarnate | Purpose::ServerRestore, refusal)
                if refusal.is_final() =>
            {
                self.hangup(now, 5000, out)
            }
            (purpose, Refusal::Retry(wait) | Refusal::Throttled(wait)) => {
                self.request_at(now.after(u64::from(wait).max(RETRY_MS)), request, purpose);
            }
            (Purpose::Lists(users), _) => {
                for user in users {
                    self.note_looked_up(user);
                    self.stale.remove(&user);
                    self.listless.insert(user, now.after(LISTLESS_MS));
                    self.report_if_hidden(user, out);
                }
            }
            (Purpose::Roster(id), _) => self.roster_answered(now, id, None),
            (Purpose::ListVersion(user, version), _) => {
                self.earlier_lists.insert((user, version), None);
            }
            (Purpose::Claim(conversation, user, _), _) => {
                self.stale.insert(user);
                self.fetch_list(now, user, out);
                if let Some(conversation) = self.conversations.get_mut(&conversation) {
                    conversation.wait = Wait::Until(now.after(RETRY_MS));
                }
            }
            _ => {}
        }
    }

    /// Accepts a list from the server: never a lower version, and another account key only as
    /// `ListChange::IdentityChanged`.
    pub(super) fn take_list(&mut self, now: Instant, list: SignedDeviceList) {
        let user = list.list().user;
        // Only this user's own devices hold its account key: a list signed by another key is forged.
        if user == self.device.user && self.account_key.is_some_and(|key| key != *list.account_key()) {
            return;
        }
        let change = match self.lists.get(&user) {
            None => ListChange::First,
            Some(known) if known.account_key() == list.account_key() => {
                if list.list().version <= known.list().version {
                    return;
                }
                let old: Vec<_> = known.list().addresses().collect();
                ListChange::Updated(list.list().addresses().filter(|device| !old.contains(device)).collect())
            }
            Some(_) if user == self.device.user => return,
            Some(known) if list.list().version <= known.list().version => return,
            Some(_) => {
                self.refuse_unstored(user, "identity_changed");
                ListChange::IdentityChanged
            }
        };
        self.lists.insert(user, list.clone());
        self.changes.push(Change::List(list, change));
        if user == self.device.user {
            self.update_rosters(now);
        }
    }

    /// Whether the signed prekeys must be replaced: by the server's clock they are a week old, or their
    /// upload time is in the future.
    fn prekeys_are_old(&self, now: Instant) -> bool {
        let time = self.server_ms(now);
        let old = time < self.prekeys_at || time > self.prekeys_at.saturating_add(7 * DAY_MS);
        old && !self.is_asked(&Purpose::Upload)
    }

    /// Requests a new signed prekey, if it is due, and some of the one-time prekeys that are missing on the server.
    pub(super) fn make_prekeys(&mut self, replace: bool, out: &mut Vec<Output>) {
        let held = if replace { 0 } else { self.prekeys_held };
        let count = PREKEYS.saturating_sub(held).min(PREKEYS_AT_ONCE);
        out.push(Output::MakePrekeys { replace, count });
    }

    /// Handles the version that a sender claims, end to end, for its own list. If it is later than the stored
    /// one, the replica fetches the list again, and reports it if the server keeps hiding it.
    pub(super) fn claimed_list(&mut self, now: Instant, user: UserId, version: u64, out: &mut Vec<Output>) {
        let known = self.lists.get(&user).map_or(0, |list| list.list().version);
        if version > known && version - known <= MAX_LIST_LEAD {
            let claimed = self.claimed.entry(user).or_default();
            *claimed = version.max(*claimed);
            if self.hidden.get(&user).is_none_or(|known| *known < version) {
                self.fetch_list(now, user, out);
            }
        }
    }

    /// Reports, once for each version, that the server hides a list that exists.
    fn report_if_hidden(&mut self, user: UserId, out: &mut Vec<Output>) {
        let Some(claimed) = self.claimed.get(&user).copied() else { return };
        if self.lists.get(&user).is_some_and(|list| list.list().version >= claimed) {
            self.claimed.remove(&user);
        } else if self.hidden.insert(user, claimed) != Some(claimed) {
            out.push(Output::Event(Ephemeral::ListHidden(user)));
        }
    }

    fn note_looked_up(&mut self, user: UserId) {
        let asked_after = self.looking_up.remove(&user).unwrap_or(0);
        let known = self.looked_up.entry(user).or_default();
        *known = (*known).max(asked_after);
    }

    pub(super) fn fetch_list(&mut self, now: Instant, user: UserId, out: &mut Vec<Output>) {
        let purpose = Purpose::Lists(vec![user]);
        let waits = self.listless.get(&user).is_some_and(|at| now < *at);
        if !waits && !self.is_asked(&purpose) {
            self.request(now, Request::Lists(vec![user]), purpose, out);
        }
    }

    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Dialing(at, _) | Phase::Greeting(at, _) if now >= at => self.hangup(now, 0, out),
            Phase::Online { heard, .. } if now >= heard.after(2 * HEARTBEAT_MS + RETRY_MS) => {
                self.hangup(now, 0, out)
            }
            Phase::Online { heartbeat, .. } => {
                if self.slow_at().is_some_and(|at| now >= at) {
                    self.slow = true;
                    out.push(Output::Event(Ephemeral::Slow));
                }
                if now >= heartbeat {
                    if let Phase::Online { heartbeat, .. } = &mut self.phase {
                        *heartbeat = now.after(HEARTBEAT_MS);
                    }
                    out.push(Output::Send(ClientFrame::Heartbeat));
                    if !self.caught_up && self.recovery != Recovery::Cursors {
                        // The caught-up flag never arrived: rows, or the frame with the flag, were lost.
                        out.push(Output::Send(ClientFrame::CatchUp));
                    }
                    if self.recovery == Recovery::No && !self.looked_back && !self.is_asked(&Purpose::Missing)
                    {
                        self.request(now, Request::Cursors, Purpose::Missing, out);
                    }
                }
                if self.catch_up_at.is_some_and(|at| now >= at) {
                    self.catch_up_at = None;
                }
                self.listless.retain(|_, at| now < *at);
                self.send_group_receipts(now, out);
                self.ask_again(now);
                self.retry_requests(now, out);
                self.retry_publishes(now, out);
            }
            _ => {}
        }
    }

    /// Returns when the link counts as slow: a message waits long for its answer, or the waiting rows for their end.
    pub(super) fn slow_at(&self) -> Option<Instant> {
        let Phase::Online { since, .. } = self.phase else { return None };
        let catches_up = (!self.caught_up).then_some(since);
        let sent = self.conversations.values().filter(|known| known.sent > 0);
        let waits = sent.filter_map(|known| known.queue.front().map(|entry| entry.sent_at));
        let first = waits.chain(catches_up).min().filter(|_| !self.slow);
        first.map(|at| at.after(SLOW_MS))
    }

    fn retry_requests(&mut self, now: Instant, out: &mut Vec<Output>) {
        // Under the same id: an answer to any attempt counts, since a large one may take longer than the wait.
        let retry_at = now.after(retry_ms(self.unanswered_bytes()));
        for (id, (_, request, again)) in &mut self.requests {
            if now >= *again {
                *again = retry_at;
                out.push(Output::Send(ClientFrame::Request(*id, request.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId};
    use crate::replica::{Input, ReplicaSnapshot};

    #[test]
    fn replica_does_not_dial_before_retry_after() {
        let device = DeviceAddress {
            user: UserId::from_bytes([1; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([1; 16]),
        };
        let mut replica = Replica::new(Instant::from_millis(0), ReplicaSnapshot::new(device), 1);
        let mut step = |at, input| {
            let mut out = Vec::new();
            replica.step(Instant::from_millis(at), input, &mut out);
            out.contains(&Output::Dial)
        };
        assert!(step(0, Input::Tick));
        assert!(!step(10, Input::Rejected(5000)));
        assert!(!step(5009, Input::Tick) && step(5010, Input::Tick));
        // Without `retry_after` the first waits are short.
        assert!(!step(6000, Input::Disconnected) && step(6400, Input::Tick));
    }
}
