//! Checks of a publish in the gateway, before the log.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::try_join_all;

use super::Engine;
use super::rates::Wait;
use crate::backend::{Command, CursorFilter, Operation, PageLimit, RecipientDevices, Rules, SenderFilter};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{Publish, Refusal, RowContent, SendPosition};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, ConversationKind, DeviceAddress, InstallationId, UserId};
use crate::model::limits::{
    INBOX_BYTES, INBOX_MESSAGES, MAX_GROUP_DEVICES, MAX_REMOVED_READERS, STRANGERS_PART,
};
use crate::model::message_options::Deletion;
use crate::model::roster::Role;

/// Milliseconds that a contact waits while the inboxes of all devices of a user are full.
const FULL_MS: u32 = 30_000;

/// Bytes that the largest publish takes of an inbox, at most.
const LARGEST_PUBLISH: u64 = INBOX_BYTES / 400;

/// The use of an inbox as this node read it, and how many publishes it holds for.
#[derive(Debug)]
pub(super) struct Room {
    read_ms: u64,
    publishes: u64,
    used: InboxUse,
}

/// How much of an inbox is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum InboxUse {
    /// Less than the part that strangers share.
    Low,
    /// At least that part.
    High,
    Full,
}

impl Engine {
    /// Checks the rate limits of a publish. Fails with the time to wait; nothing is decided then, and the
    /// device sends the same publish again.
    pub(super) async fn pace(
        &self,
        sender: DeviceAddress,
        publish: &Publish,
    ) -> std::result::Result<(), Wait> {
        let now = self.now_ms();
        self.limits.send(sender.installation, now)?;
        // A publish with an invalid audience is refused later, not limited here, so that a made-up user gets
        // no bucket.
        if self.limits.paces_pairs() && shape(sender, publish).is_ok() {
            for audience in &publish.audience {
                self.pace_pair(sender, audience.user, now).await?;
            }
        }
        Ok(())
    }

    async fn pace_pair(
        &self,
        sender: DeviceAddress,
        user: UserId,
        now: u64,
    ) -> std::result::Result<(), Wait> {
        let exempt = user == sender.user || !self.limits.paces_pairs();
        if exempt || !matches!(self.device_list(user).await, Ok(Some(_))) {
            return Ok(());
        }
        let known = self.is_known(sender, user).await;
        self.limits.send_to((sender.user, user), known, now)
    }

    /// Checks the byte limits of the sender and of the recipients of a publish that will be stored.
    pub(super) fn pace_bytes(&self, command: &Command) -> std::result::Result<(), Wait> {
        let (Operation::Publish(publish), None) = (&command.operation, &command.verdict) else {
            return Ok(());
        };
        let now = self.now_ms();
        self.limits.bytes_from(command.sender.user, publish.size(), now)?;
        for recipient in command.recipients.iter().filter(|recipient| recipient.user != command.sender.user) {
            let boxes =
                publish.boxes.iter().filter(|one| recipient.installations.contains(&one.installation));
            let bytes = publish.body.len() + boxes.map(|one| one.data.len()).sum::<usize>();
            self.limits.bytes_to(recipient.user, bytes, now)?;
        }
        Ok(())
    }

    /// Returns whether a sender is no stranger to a user. A failed read counts as yes: sending fails open.
    async fn is_known(&self, sender: DeviceAddress, user: UserId) -> bool {
        self.knows(user, sender.user).await.unwrap_or(true)
    }

    /// Checks the rate limits of a skip. A skip adds a row to the inbox of every member and no recipient can
    /// refuse it, so it is limited like a message.
    pub(super) async fn pace_skip(
        &self,
        sender: DeviceAddress,
        number: &SendPosition,
    ) -> std::result::Result<(), Wait> {
        const LATER_MS: u32 = 5000;
        let now = self.now_ms();
        self.limits.send(sender.installation, now)?;
        let state = self.backends.store.state(number.conversation, SenderFilter::No, None).await;
        let state = state.map_err(|_| LATER_MS)?;
        for member in state.map(|state| state.roster.members).unwrap_or_default() {
            self.pace_pair(sender, member.user, now).await?;
        }
        Ok(())
    }

    /// Builds the command of a publish: the devices of its audience, and the reason to refuse it if there is
    /// one. An error means that this cannot be decided now.
    pub(super) async fn admit(&self, sender: DeviceAddress, mut publish: Publish) -> Result<Command> {
        let mut recipients = Vec::with_capacity(publish.audience.len());
        let mut stale = Vec::new();
        let rules = Rules::of(&publish);
        if let Err(refusal) = shape(sender, &publish) {
            let (operation, verdict) = (Operation::Publish(publish), Some(refusal));
            return Ok(Command { verdict, ..Command::new(sender, operation, recipients, Rules::BASIC) });
        }
        let mut verdict = (rules > self.settings.rules).then_some(Refusal::Unsupported);
        let named = publish.audience.iter().map(|a| self.list_at_least(a.user, a.list_version));
        let lists = try_join_all(named).await?;
        let own = self.device_list(sender.user).await?;
        if !own.iter().any(|list| list.list().addresses().any(|device| device == sender)) {
            verdict = verdict.or(Some(Refusal::Denied));
        }
        for (audience, list) in publish.audience.iter().zip(lists) {
            let Some(list) = list else {
                verdict = verdict.or(Some(Refusal::Denied));
                continue;
            };
            if list.list().version != audience.list_version {
                stale.push(audience.user);
            }
            let installations = self.addressed(&publish, &list);
            recipients.push(RecipientDevices {
                user: audience.user,
                list_version: list.list().version,
                installations,
            });
        }
        // In a group the roster says which devices get the message, and the shard has it.
        let is_group = publish.group.is_some();
        if verdict.is_none() && stale.is_empty() && !is_group {
            stale = uncovered(sender, &publish, &recipients);
        }
        if verdict.is_none() && stale.is_empty() && !is_group && excludes_user(sender, &publish, &recipients)
        {
            verdict = Some(Refusal::Invalid);
        }
        if verdict.is_none() && stale.is_empty() {
            verdict = self.check_change(sender, &publish).await?;
        }
        if verdict.is_none()
            && stale.is_empty()
            && let Some(deletion) = &publish.options.deletion
        {
            verdict = self.check_deletion(sender, &publish, deletion).await?;
        }
        if verdict.is_none() && !stale.is_empty() {
            verdict = Some(Refusal::Mismatch(stale));
        }
        let (mut withheld, mut full, mut strangers) = (Vec::new(), Vec::new(), Vec::new());
        let mut removed = Vec::new();
        if verdict.is_none() && is_group {
            removed = self.removed_readers(sender, &publish).await?;
            strangers = self.added_strangers(sender, &publish).await?;
            full = self.full_devices(sender, &self.group_inboxes(&publish).await?).await?;
        } else if verdict.is_none() {
            withheld = self.withheld(sender, &recipients).await?;
            full = self.full(sender, &recipients, &withheld).await?;
        }
        let reads = |one: &InstallationId| !full.contains(one) && !publish.excluded.contains(one);
        // A user without room never blocks a group.
        let is_open = |user: &&RecipientDevices| user.user != sender.user && !full.is_empty() && !is_group;
        let blocked = recipients.iter().filter(is_open).filter(|user| !user.installations.iter().any(reads));
        for recipient in blocked {
            // A contact sends the message again once a device has room.
            let is_contact = self.is_known(sender, recipient.user).await;
            verdict = Some(if is_contact { Refusal::Throttled(FULL_MS) } else { Refusal::Quota });
        }
        let withholds = |user: &&RecipientDevices| withheld.contains(&user.user);
        let of_blockers: Vec<InstallationId> =
            recipients.iter().filter(withholds).flat_map(|user| &user.installations).copied().collect();
        let is_read = |device: &InstallationId| !full.contains(device) && !of_blockers.contains(device);
        publish.boxes.retain(|one| is_read(&one.installation));
        // A refused publish writes no row, so any release can decide about it.
        let rules = if verdict.is_some() { Rules::BASIC } else { rules };
        let operation = Operation::Publish(publish);
        let command = Command::new(sender, operation, recipients, rules);
        Ok(Command { full, withheld, strangers, removed, verdict, ..command })
    }

    /// Returns the reason to refuse a deletion, if there is one: the sending device signs it, and only the user that sent a
    /// message, or an admin of the group, deletes it. A message that is erased already may be deleted again, because
    /// devices that have it erase it then.
    async fn check_deletion(
        &self,
        sender: DeviceAddress,
        publish: &Publish,
        deletion: &Deletion,
    ) -> Result<Option<Refusal>> {
        let conversation = publish.number.conversation;
        let list = self.device_list(sender.user).await?;
        let entry = list.as_ref().and_then(|list| list.list().device(sender.device));
        if entry.is_none_or(|entry| deletion.verify(&entry.device_key, conversation).is_err()) {
            return Ok(Some(Refusal::Denied));
        }
        let found = self.backends.store.history(conversation, deletion.seq + 1, PageLimit::rows(1)).await?;
        let Some(row) = found.first().filter(|row| row.seq == deletion.seq) else {
            return Ok(Some(Refusal::NotFound));
        };
        let RowContent::Message { message, .. } = &row.content else {
            return Ok((!row.is_erased()).then_some(Refusal::NotFound));
        };
        if message.id != deletion.message_id || message.sender.installation != deletion.installation {
            return Ok(Some(Refusal::NotFound));
        }
        if message.group.as_ref().is_some_and(|part| part.change.is_some()) {
            // Devices that have not read it yet need the change of the group.
            return Ok(Some(Refusal::Denied));
        }
        if message.sender.user == sender.user {
            return Ok(None);
        }
        let Some(part) = &publish.group else { return Ok(Some(Refusal::Denied)) };
        let state = self.backends.store.state(conversation, SenderFilter::No, None).await?;
        let roster = state.map(|state| state.roster).unwrap_or_default();
        if part.roster_version != roster.version {
            // The shard decides by the same version, or refuses too.
            return Ok(Some(Refusal::StaleRoster(roster.version)));
        }
        let is_admin = roster.member(sender.user).is_some_and(|member| member.role >= Role::Admin);
        Ok((!is_admin).then_some(Refusal::Denied))
    }

    /// Returns the devices of a list that a publish addresses: all, or only the one of a mailbox.
    fn addressed(&self, publish: &Publish, list: &SignedDeviceList) -> Vec<InstallationId> {
        let devices = list.list().addresses().map(|device| device.installation);
        if publish.number.conversation.kind() == Ok(ConversationKind::Mailbox) {
            devices.filter(|device| publish.boxes.iter().any(|one| one.installation == *device)).collect()
        } else {
            devices.collect()
        }
    }

    /// Returns the recipients that have blocked the sender.
    async fn withheld(&self, sender: DeviceAddress, recipients: &[RecipientDevices]) -> Result<Vec<UserId>> {
        let mut withheld = Vec::new();
        for recipient in recipients.iter().filter(|recipient| recipient.user != sender.user) {
            if self.has_blocked(recipient.user, sender.user).await? {
                withheld.push(recipient.user);
            }
        }
        Ok(withheld)
    }

    /// Returns the recipient devices with a full inbox. For a stranger, and for a user in `withheld`, an inbox is full once
    /// a tenth of it is used, so that these never take the room of contacts. A soft check: concurrent publishes may exceed
    /// the limit.
    async fn full(
        &self,
        sender: DeviceAddress,
        recipients: &[RecipientDevices],
        withheld: &[UserId],
    ) -> Result<Vec<InstallationId>> {
        let devices = recipients.iter().flat_map(|r| r.installations.iter().map(move |one| (r.user, *one)));
        let devices: Vec<_> = devices.filter(|(_, device)| *device != sender.installation).collect();
        let uses = try_join_all(devices.iter().map(|(_, device)| self.inbox_use(*device))).await?;
        let mut full = Vec::new();
        for ((user, device), used) in devices.into_iter().zip(uses) {
            let is_full = match used {
                InboxUse::Low => false,
                InboxUse::High if user == sender.user || !self.limits.paces_strangers() => false,
                // The inbox may have been read since: a refusal needs a fresh count.
                InboxUse::High => {
                    (withheld.contains(&user) || !self.is_known(sender, user).await)
                        && self.read_inbox_use(device).await? != InboxUse::Low
                }
                InboxUse::Full => true,
            };
            if is_full {
                full.push(device);
            }
        }
        Ok(full)
    }

    /// Returns those devices of a group's members that have a full inbox. Members are no strangers.
    async fn full_devices(
        &self,
        sender: DeviceAddress,
        devices: &[InstallationId],
    ) -> Result<Vec<InstallationId>> {
        let devices = devices.iter().copied();
        let devices: Vec<_> = devices.filter(|device| *device != sender.installation).collect();
        let uses = try_join_all(devices.iter().map(|device| self.inbox_use(*device))).await?;
        Ok(devices
            .into_iter()
            .zip(uses)
            .filter(|(_, used)| *used == InboxUse::Full)
            .map(|(one, _)| one)
            .collect())
    }

    async fn inbox_use(&self, device: InstallationId) -> Result<InboxUse> {
        /// Milliseconds for which the use of an inbox is remembered.
        const REMEMBERED: u64 = 60_000;
        let now = self.now_ms();
        if let Some(mut room) = self.room.get_mut(&device)
            && now < room.read_ms.saturating_add(REMEMBERED)
            && room.publishes > 0
        {
            room.publishes -= 1;
            return Ok(room.used);
        }
        self.read_inbox_use(device).await
    }

    /// Reads the use of an inbox, and remembers it for as many of the largest publishes as fit into half of the room that
    /// is left at that use. Without this a device that is behind would cost each of its senders a read per message.
    async fn read_inbox_use(&self, device: InstallationId) -> Result<InboxUse> {
        let record = self.backends.store.device(device, CursorFilter::No).await?;
        let left = |part: u64| {
            let rows = (INBOX_MESSAGES / part).saturating_sub(record.waiting_rows);
            rows.min((INBOX_BYTES / part).saturating_sub(record.waiting_bytes) / LARGEST_PUBLISH)
        };
        let fits = |part: u64| {
            record.waiting_rows < INBOX_MESSAGES / part && record.waiting_bytes < INBOX_BYTES / part
        };
        let (used, publishes) = match (fits(1), fits(STRANGERS_PART)) {
            (false, _) => return Ok(InboxUse::Full),
            (true, false) => (InboxUse::High, left(1) / 2),
            (true, true) => (InboxUse::Low, left(STRANGERS_PART) / 2),
        };
        if self.room.len() > 100_000 {
            self.room.clear();
        }
        self.room.insert(device, Room { read_ms: self.now_ms(), publishes, used });
        Ok(used)
    }

    /// Returns the newest list of a user, from the cache if that is fresh enough.
    pub(super) async fn device_list(&self, user: UserId) -> Result<Option<Arc<SignedDeviceList>>> {
        if let Some(known) = self.lists.get(&user)
            && self.now_ms() < known.1.saturating_add(self.lasts_ms(user, known.1))
        {
            return Ok(Some(known.0.clone()));
        }
        self.read_list(user).await
    }

    /// Returns for how many milliseconds a list counts as the newest: at least half of the maximum, spread so
    /// that lists that were read together are not read again together.
    pub(super) fn lasts_ms(&self, user: UserId, read_ms: u64) -> u64 {
        let early = (u64::from(user.as_bytes()[0]) ^ read_ms) % 256;
        self.settings.lists_ms - self.settings.lists_ms / 512 * early
    }

    /// Returns the newest list of a user. Reads it again if the cached one is older than `version`: the
    /// device that names this version has seen that list.
    async fn list_at_least(&self, user: UserId, version: u64) -> Result<Option<Arc<SignedDeviceList>>> {
        match self.device_list(user).await? {
            Some(list) if list.list().version < version => self.read_list(user).await,
            list => Ok(list),
        }
    }

    pub(super) async fn read_list(&self, user: UserId) -> Result<Option<Arc<SignedDeviceList>>> {
        let before = self.lists_changed.load(Ordering::Acquire);
        let Some(list) = self.backends.keys.list(user).await? else {
            return Ok(None);
        };
        let list = Arc::new(list);
        if self.lists_changed.load(Ordering::Acquire) != before {
            // The list may have changed since it was read: do not cache it.
            return Ok(Some(list));
        }
        if self.lists.len() > 100_000 {
            self.lists.clear();
        }
        Ok(Some(self.remember(list)))
    }

    /// Caches the newest list of a user and returns it. An older list that arrives late does not replace it.
    pub(super) fn remember(&self, list: Arc<SignedDeviceList>) -> Arc<SignedDeviceList> {
        let now = self.now_ms();
        let mut known = self.lists.entry(list.list().user).or_insert_with(|| (list.clone(), now));
        if known.0.list().version <= list.list().version {
            *known = (list, now);
        }
        known.0.clone()
    }
}

/// Checks that audience and boxes fit the conversation.
fn shape(sender: DeviceAddress, publish: &Publish) -> std::result::Result<(), Refusal> {
    let users: Vec<UserId> = publish.audience.iter().map(|a| a.user).collect();
    let id = publish.number.conversation;
    let mut seen = HashSet::new();
    if publish
        .boxes
        .iter()
        .any(|one| !seen.insert(one.installation) || one.installation == sender.installation)
    {
        return Err(Refusal::Invalid);
    }
    // A device is either excluded or has a box, and the sending device is neither.
    if publish.excluded.iter().any(|device| !seen.insert(*device) || *device == sender.installation) {
        return Err(Refusal::Invalid);
    }
    let is_group = id.has_roster();
    // Content without a shared box could be read by no member.
    let is_closed =
        publish.group.as_ref().is_some_and(|part| part.shared.is_empty() && !publish.body.is_empty());
    if is_closed || publish.group.is_some() != is_group || seen.len() > MAX_GROUP_DEVICES && is_group {
        return Err(Refusal::Invalid);
    }
    let changes_group = publish.group.as_ref().is_some_and(|part| part.change.is_some());
    let expires = publish.options.expires_after_ms > 0;
    if expires && (changes_group || publish.options.deletion.is_some()) {
        // Devices that have not read it yet need it.
        return Err(Refusal::Invalid);
    }
    if !is_group && publish.options.wake.iter().any(|user| !users.contains(user)) {
        return Err(Refusal::Invalid);
    }
    let fits = match id.kind() {
        Ok(ConversationKind::Direct) => {
            users.len() == 2
                && users.contains(&sender.user)
                && id == ConversationId::direct(users[0], users[1])
        }
        Ok(ConversationKind::Own) => users == [sender.user] && id == ConversationId::own(sender.user),
        Ok(ConversationKind::Mailbox) => {
            users.len() == 1
                && publish.options.is_default()
                && publish.excluded.is_empty()
                && publish.boxes.len() == 1
                && id == ConversationId::mailbox(sender.installation, publish.boxes[0].installation)
        }
        // A post of a channel has no boxes: its key is in the link.
        Ok(ConversationKind::Channel) if !seen.is_empty() => false,
        Ok(ConversationKind::Group | ConversationKind::Channel) => {
            let change = publish.group.as_ref().and_then(|part| part.change.as_ref());
            let mut added = change.into_iter().flat_map(|change| change.action().added());
            // A member is added with its device list, which limits the reads and the pace of its sender.
            if added.any(|user| !users.contains(user)) {
                return Err(Refusal::Invalid);
            }
            let removed = change.map_or(0, |change| change.action().removed().len());
            if id.is_channel() && removed > MAX_REMOVED_READERS {
                return Err(Refusal::TooLarge);
            }
            let mut named = HashSet::new();
            users.iter().all(|user| named.insert(*user))
        }
        Err(_) => false,
    };
    if fits { Ok(()) } else { Err(Refusal::Denied) }
}

/// Returns the users whose devices do not match the boxes and the excluded devices.
fn uncovered(sender: DeviceAddress, publish: &Publish, recipients: &[RecipientDevices]) -> Vec<UserId> {
    let boxed = publish.boxes.iter().map(|one| one.installation);
    let covered: HashSet<InstallationId> = boxed.chain(publish.excluded.iter().copied()).collect();
    let missing = |r: &&RecipientDevices| {
        r.installations.iter().any(|i| *i != sender.installation && !covered.contains(i))
    };
    let mut stale: Vec<UserId> = recipients.iter().filter(missing).map(|r| r.user).collect();
    let wanted: usize =
        recipients.iter().flat_map(|r| &r.installations).filter(|i| **i != sender.installation).count();
    let mailbox = publish.number.conversation.kind() == Ok(ConversationKind::Mailbox);
    if stale.is_empty() && (covered.len() != wanted || (mailbox && wanted != 1)) {
        // There is a box for a device that is on no list (any more).
        stale = publish.audience.iter().map(|a| a.user).collect();
    }
    stale
}

/// Returns whether every device of another user is excluded, so that the user could not read the message.
fn excludes_user(sender: DeviceAddress, publish: &Publish, recipients: &[RecipientDevices]) -> bool {
    recipients
        .iter()
        .filter(|recipient| recipient.user != sender.user)
        .any(|recipient| recipient.installations.iter().all(|device| publish.excluded.contains(device)))
}

/// Returns the refusal of the gateway if it may be answered without the log: only for ids that were never
/// sent before.
pub(super) fn early_refusal(command: &Command) -> Option<Refusal> {
    match &command.operation {
        Operation::Publish(publish) if publish.first => command.verdict.clone(),
        _ => None,
    }
}

/// Maps a backend error to a refusal.
pub(super) fn refusal_of(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::Invalid => Refusal::Invalid,
        ErrorKind::Denied => Refusal::Denied,
        ErrorKind::NotFound => Refusal::NotFound,
        ErrorKind::Conflict => Refusal::Taken,
        ErrorKind::Throttled => Refusal::Throttled(1000),
        ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Closed => {
            Refusal::Retry(1000)
        }
    }
}
