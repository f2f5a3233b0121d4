//! Retention and deletion: rows of inboxes become gaps, and messages of history lose their content.

use chat_core::backend::Member;

use super::*;

/// Removes old rows of every inbox, leaves gaps, and returns how many rows it removed.
pub(super) fn expire(tx: &Transaction<'_>, before_us: u64, limit: usize) -> Result<usize> {
    let mut old: Vec<(InstallationId, InboxRow)> = Vec::new();
    let mut removed = 0;
    {
        let mut statement = tx
            .prepare_cached(
                "SELECT device, row FROM inbox WHERE time_us < ?1 ORDER BY device, time_us, conversation, seq",
            )
            .map_err(failed)?;
        let mut rows = statement.query([before_us as i64]).map_err(failed)?;
        while let (true, Some(row)) = (removed < limit, rows.next().map_err(failed)?) {
            let (device, row): (Vec<u8>, Vec<u8>) =
                (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            let row = decode_row(row.into()).map_err(|_| corrupt())?;
            if row.seq <= head(tx, row.conversation)? {
                removed += usize::from(!row.is_expired());
                old.push((InstallationId::parse(&device).map_err(|_| corrupt())?, row));
            }
        }
    }
    if removed == 0 {
        return Ok(0);
    }
    let mut gaps: BTreeMap<(InstallationId, ConversationId), InboxRow> = BTreeMap::new();
    for (device, row) in old {
        let (from, joined) = match gaps.get(&(device, row.conversation)) {
            Some(gap) => (gap.first_seq(), gap.joined),
            None => (row.first_seq(), row.joined),
        };
        let gap = InboxRow::expired(row.conversation, from, row.position(), joined);
        gaps.insert((device, row.conversation), gap);
        tx.prepare_cached("DELETE FROM inbox WHERE device = ?1 AND conversation = ?2 AND seq = ?3")
            .and_then(|mut s| {
                s.execute(params![device.as_bytes(), row.conversation.as_bytes(), row.seq as i64])
            })
            .map_err(failed)?;
    }
    for ((device, conversation), gap) in gaps {
        let mailbox = conversation.kind() == Ok(ConversationKind::Mailbox);
        insert_row(tx, device, &gap, mailbox)?;
    }
    Ok(removed)
}

pub(super) fn cleared(db: &Connection, conversation: ConversationId, user: UserId) -> Result<Seq> {
    let query = "SELECT seq FROM cleared WHERE conversation = ?1 AND user = ?2";
    number_of(db, query, params![conversation.as_bytes(), user.as_bytes()])
}

fn all_conversations(db: &Connection) -> Result<Vec<ConversationId>> {
    let mut statement = db.prepare_cached("SELECT conversation FROM heads").map_err(failed)?;
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(failed)?;
    rows.map(|id| ConversationId::parse(&id.map_err(failed)?).map_err(|_| corrupt())).collect()
}

/// Erases the content of at most `limit` messages of a conversation, from the oldest that has content on, for as long as they
/// are chosen. Returns how many.
fn erase_content(
    tx: &Transaction<'_>,
    conversation: ConversationId,
    reason: EmptyReason,
    limit: usize,
    is_chosen: impl Fn(&InboxRow) -> bool,
) -> Result<usize> {
    let id = conversation.as_bytes();
    let before = erased_through(tx, conversation)?;
    let head = head(tx, conversation)?;
    let (mut erased, mut through) = (Vec::new(), before);
    {
        let query = "SELECT row FROM history WHERE conversation = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq";
        let mut statement = tx.prepare_cached(query).map_err(failed)?;
        let mut rows = statement.query(params![id, before as i64, head as i64]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let row: Vec<u8> = row.get(0).map_err(failed)?;
            let mut row = decode_row(row.into()).map_err(|_| corrupt())?;
            if erased.len() == limit || !is_chosen(&row) {
                break;
            }
            through = row.seq;
            if row.erase(reason) {
                erased.push(row);
            }
        }
    }
    for row in &erased {
        tx.prepare_cached("UPDATE history SET row = ?3 WHERE conversation = ?1 AND seq = ?2")
            .and_then(|mut s| s.execute(params![id, row.seq as i64, encode_row(row)]))
            .map_err(failed)?;
    }
    if through > before {
        tx.prepare_cached("INSERT OR REPLACE INTO erased VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![id, through as i64]))
            .map_err(failed)?;
    }
    Ok(erased.len())
}

/// Returns the seq up to which a conversation has no content.
pub(super) fn erased_through(db: &Connection, conversation: ConversationId) -> Result<Seq> {
    number_of(db, "SELECT seq FROM erased WHERE conversation = ?1", [conversation.as_bytes()])
}

/// Erases the content of old messages of all conversations. Returns how many.
pub(super) fn expire_history(tx: &Transaction<'_>, before_us: u64, limit: usize) -> Result<usize> {
    let is_old = |row: &InboxRow| row.time_us < before_us;
    let mut count = 0;
    for conversation in all_conversations(tx)? {
        count += erase_content(tx, conversation, EmptyReason::Expired, limit - count, is_old)?;
        if count >= limit {
            break;
        }
    }
    Ok(count)
}

/// Records that a message disappears at a time.
pub(super) fn add_disappearing(tx: &Transaction<'_>, due_us: u64, row: &InboxRow) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO disappearing VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![due_us as i64, row.conversation.as_bytes(), row.seq as i64]))
        .map(drop)
        .map_err(failed)
}

/// Erases the content of messages whose lifetime has ended. Returns how many.
pub(super) fn expire_messages(tx: &Transaction<'_>, now_us: u64, limit: usize) -> Result<usize> {
    let mut count = 0;
    while count < limit {
        let due = due_messages(tx, now_us, limit - count)?;
        if due.is_empty() {
            break;
        }
        for (due_us, id, seq) in due {
            let row = find_history(tx, id, seq as u64)?;
            if let Some(row) = row.filter(|row| row.disappears_at_us() == Some(due_us as u64)) {
                count += usize::from(erase_message(tx, row, EmptyReason::Disappeared)?);
            }
            tx.prepare_cached(
                "DELETE FROM disappearing WHERE due_us = ?1 AND conversation = ?2 AND seq = ?3",
            )
            .and_then(|mut s| s.execute(params![due_us, id.as_bytes(), seq]))
            .map_err(failed)?;
        }
    }
    Ok(count)
}

/// Returns the first entries of messages whose lifetime has ended: time, conversation and seq.
fn due_messages(tx: &Transaction<'_>, now_us: u64, limit: usize) -> Result<Vec<(i64, ConversationId, i64)>> {
    let query =
        "SELECT due_us, conversation, seq FROM disappearing WHERE due_us <= ?1 ORDER BY due_us LIMIT ?2";
    let mut statement = tx.prepare_cached(query).map_err(failed)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement
        .query_map(params![now_us as i64, limit], |row| {
            Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?))
        })
        .map_err(failed)?;
    rows.map(|row| {
        let (due_us, conversation, seq) = row.map_err(failed)?;
        Ok((due_us, ConversationId::parse(&conversation).map_err(|_| corrupt())?, seq))
    })
    .collect()
}

/// Erases the content of one message, and the boxes that wait for the devices of the members. Returns whether it had
/// content.
pub(super) fn erase_message(tx: &Transaction<'_>, mut row: InboxRow, reason: EmptyReason) -> Result<bool> {
    if !row.erase(reason) {
        return Ok(false);
    }
    let (id, seq) = (row.conversation, row.seq as i64);
    tx.prepare_cached("UPDATE history SET row = ?3 WHERE conversation = ?1 AND seq = ?2")
        .and_then(|mut s| s.execute(params![id.as_bytes(), seq, encode_row(&row)]))
        .map_err(failed)?;
    for device in members(tx, id)?.iter().flat_map(|member| &member.installations) {
        let key = params![device.as_bytes(), id.as_bytes(), seq];
        let waiting: Option<Vec<u8>> = tx
            .prepare_cached("SELECT row FROM inbox WHERE device = ?1 AND conversation = ?2 AND seq = ?3")
            .and_then(|mut s| s.query_row(key, |row| row.get(0)).optional())
            .map_err(failed)?;
        let Some(waiting) = waiting else { continue };
        let mut waiting = decode_row(waiting.into()).map_err(|_| corrupt())?;
        if waiting.erase(reason) {
            let (value, size) = (encode_row(&waiting), waiting.size() as i64);
            tx.prepare_cached(
                "UPDATE inbox SET row = ?4, size = ?5 WHERE device = ?1 AND conversation = ?2 AND seq = ?3",
            )
            .and_then(|mut s| s.execute(params![device.as_bytes(), id.as_bytes(), seq, value, size]))
            .map_err(failed)?;
        }
    }
    Ok(true)
}

fn members(tx: &Transaction<'_>, conversation: ConversationId) -> Result<Vec<Member>> {
    let members: Option<Vec<u8>> = tx
        .prepare_cached("SELECT members FROM heads WHERE conversation = ?1")
        .and_then(|mut s| s.query_row([conversation.as_bytes()], |row| row.get(0)).optional())
        .map_err(failed)?;
    Ok(members.map(|value| state::decode_roster(&value)).transpose()?.unwrap_or_default().members)
}

/// Records that a user cleared a conversation, and erases the content that every member has cleared.
pub(super) fn clear_history(
    tx: &Transaction<'_>,
    conversation: ConversationId,
    user: UserId,
    through: Seq,
) -> Result<()> {
    let through = through.min(head(tx, conversation)?) as i64;
    tx.prepare_cached(
        "INSERT INTO cleared VALUES (?1, ?2, ?3) ON CONFLICT (conversation, user) DO UPDATE SET seq = max(seq, ?3)",
    )
    .and_then(|mut s| s.execute(params![conversation.as_bytes(), user.as_bytes(), through]))
    .map_err(failed)?;
    let members = members(tx, conversation)?;
    let marks = members.iter().map(|member| cleared(tx, conversation, member.user));
    let by_all = marks.collect::<Result<Vec<Seq>>>()?.into_iter().min().unwrap_or(0);
    let is_chosen = |row: &InboxRow| row.seq <= by_all;
    erase_content(tx, conversation, EmptyReason::Cleared, usize::MAX, is_chosen).map(drop)
}
