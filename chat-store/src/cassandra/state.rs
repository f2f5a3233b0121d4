//! A conversation's state: one partition, with one row for each part.
//!
//! | part | value |
//! |---|---|
//! | 0x00 | the head; its row holds the redo data of the last commit too |
//! | 0x01 | the members |
//! | 0x02, installation | the position of a sender |
//! | 0x03, user | the seq up to which the user has cleared the conversation |
//! | 0x04 | the seq up to which no message has content |
//!
//! A commit writes the parts that it changes in one batch with one timestamp, which the cluster applies to the partition
//! as a whole. One statement reads all parts, so they belong to one commit.

use std::collections::BTreeMap;

use chat_core::backend::{Commit, ConversationState, Head, SenderFilter};
use chat_core::codec::{redo, state};
use chat_core::{ConversationId, InstallationId, Result, Seq, UserId};
use futures_util::TryStreamExt as _;
use scylla::value::CqlValue;

use super::commit::{big, blob};
use super::connection::{Write, unknown};
use super::{CassandraStore, corrupt, signed, unsigned};

const HEAD: &[u8] = &[0];
const MEMBERS: &[u8] = &[1];
/// First byte of the key of a sender.
const SENDER: u8 = 2;

/// First byte of the key of a user's record of a cleared conversation.
const CLEARED: u8 = 3;
/// Key of the seq up to which no message has content.
pub(super) const ERASED: &[u8] = &[ERASED_KEY];
const ERASED_KEY: u8 = 4;

pub(super) fn cleared_part(user: UserId) -> Vec<u8> {
    [&[CLEARED][..], user.as_bytes()].concat()
}

fn sender_part(sender: InstallationId) -> Vec<u8> {
    [&[SENDER][..], sender.as_bytes()].concat()
}

/// A row of the table: part, value, redo data.
type Part = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

impl CassandraStore {
    /// Returns the highest committed seq of a conversation.
    pub(super) async fn head_seq(&self, conversation: ConversationId) -> Result<Seq> {
        let rows =
            self.connection.rows(&self.connection.statements.head, (&conversation.as_bytes()[..],)).await?;
        let seq = rows.maybe_first_row::<(i64,)>().map_err(|_| corrupt())?.map_or(0, |(seq,)| unsigned(seq));
        self.note_head(conversation, seq);
        Ok(seq)
    }

    /// Returns a conversation's state, and the redo data of the commit that produced it.
    pub(super) async fn state_and_redo(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
    ) -> Result<Option<(ConversationState, Vec<u8>)>> {
        let statements = &self.connection.statements;
        let key = &conversation.as_bytes()[..];
        let named = match senders {
            SenderFilter::All => None,
            SenderFilter::No => Some(&[][..]),
            SenderFilter::Of(senders) => Some(senders),
        };
        let rows = match named {
            None => self.connection.rows(&statements.all_parts, (key,)).await?,
            Some(senders) => {
                let named = senders.iter().map(|sender| sender_part(*sender));
                let parts: Vec<Vec<u8>> =
                    [HEAD, MEMBERS].map(<[u8]>::to_vec).into_iter().chain(named).collect();
                self.connection.rows(&statements.parts, (key, parts)).await?
            }
        };
        let mut head = None;
        let mut state = ConversationState::default();
        for row in rows.rows::<Part>().map_err(|_| corrupt())? {
            let (part, value, redo) = row.map_err(|_| corrupt())?;
            let value = value.ok_or_else(corrupt)?;
            match part.split_first() {
                Some((0, [])) => head = Some((state::decode_head(&value)?, redo.unwrap_or_default())),
                Some((1, [])) => state.roster = state::decode_roster(&value)?,
                Some((&SENDER, sender)) => {
                    let sender = InstallationId::parse(sender).map_err(|_| corrupt())?;
                    state.senders.insert(sender, state::decode_sender(&value)?);
                }
                // Not of the state, and of no commit.
                Some((&CLEARED | &ERASED_KEY, _)) => {}
                _ => return Err(corrupt()),
            }
        }
        Ok(head.map(|(head, redo)| (ConversationState { head, ..state }, redo)))
    }

    /// Finishes the last commit of every conversation.
    pub(super) async fn finish_all(&self) -> Result<()> {
        const FINISH_CONCURRENCY: usize = 16;
        let all =
            self.connection.session.execute_iter(self.connection.statements.all_heads.clone(), ()).await;
        let rows = all.map_err(unknown)?.rows_stream::<(Vec<u8>, Vec<u8>, Option<Vec<u8>>)>();
        let finish = |(conversation, head, redo): (Vec<u8>, Vec<u8>, Option<Vec<u8>>)| async move {
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            self.finish(conversation, state::decode_head(&head)?, redo.unwrap_or_default()).await
        };
        let rows = rows.map_err(|_| corrupt())?.map_err(unknown);
        rows.try_for_each_concurrent(FINISH_CONCURRENCY, finish).await
    }

    /// Returns the highest seq for a device's inbox in the redo data of a conversation's last commit, whether
    /// or not the row is written already; 0 if there is none.
    pub(super) async fn tail_to_come(
        &self,
        conversation: ConversationId,
        device: InstallationId,
    ) -> Result<Seq> {
        let found = self.state_and_redo(conversation, SenderFilter::No).await?;
        let Some((state, redo)) = found else { return Ok(0) };
        let commit = redo::decode(redo.into(), conversation, state.head)?;
        if commit.feeds.iter().any(|change| change.device == device) {
            return Ok(state.head.seq);
        }
        let own = commit.inbox.iter().filter(|(owner, _)| *owner == device);
        Ok(own.map(|(_, row)| row.seq).max().unwrap_or(0))
    }

    pub(super) async fn write_state(&self, commit: &Commit, redo: Vec<u8>) -> Result<()> {
        self.connection.batch(&self.state_writes(commit, redo)).await?;
        self.note_head(commit.conversation, commit.state.head.seq);
        Ok(())
    }

    fn state_writes(&self, commit: &Commit, redo: Vec<u8>) -> Vec<Write<'_>> {
        let statements = &self.connection.statements;
        let Head { seq, time_us, .. } = commit.state.head;
        let conversation = || blob(commit.conversation.as_bytes());
        let head = vec![
            conversation(),
            big(signed(seq)),
            CqlValue::Blob(state::encode_head(&commit.state.head)),
            CqlValue::Blob(redo),
            big(signed(time_us)),
        ];
        let mut parts = BTreeMap::new();
        if let Some(roster) = &commit.state.roster {
            parts.insert(MEMBERS.to_vec(), state::encode_roster(roster));
        }
        for (sender, position) in &commit.state.senders {
            parts.insert(sender_part(*sender), state::encode_sender(position));
        }
        let part = |(part, value)| Write {
            statement: &statements.put_part,
            values: vec![conversation(), CqlValue::Blob(part), CqlValue::Blob(value), big(signed(time_us))],
        };
        let head = Write { statement: &statements.put_head, values: head };
        std::iter::once(head).chain(parts.into_iter().map(part)).collect()
    }
}
