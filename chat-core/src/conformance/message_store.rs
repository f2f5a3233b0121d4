mod commits;
mod feeds;
mod history;
mod inboxes;
mod values;

use std::sync::Arc;

use futures_util::future::join_all;

use commits::*;
use feeds::*;
use history::*;
use inboxes::*;
use values::*;

use super::talk::{deletes, disappears};
use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::{
    Command, Commit, CommitOutcome, ConversationState, CursorFilter, Feed, FeedChange, Head, LogPosition,
    Member, MessageStore, Operation, PageLimit, RecipientDevices, Record, Rules, SenderFilter, SenderState,
};
use crate::codec::row::encode_unknown_row;
use crate::delivery::{Decision, decide};
use crate::model::envelope::{
    AckUpTo, Audience, DeviceBox, EmptyReason, InboxPosition, InboxRow, Message, Publish, RowContent,
    SendPosition,
};
use crate::model::error::ErrorKind;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, UserId};
use crate::model::limits::MAX_NUMBER;
use crate::model::message_options::MessageOptions;

type Store = Arc<dyn MessageStore>;

/// Returns the conformance cases of [`MessageStore`].
pub fn message_store() -> Vec<Case<dyn MessageStore>> {
    list_cases![
        commit_is_visible,
        a_durable_commit_counts,
        a_durable_row_may_be_acknowledged,
        commit_twice,
        commits_of_many_conversations,
        concurrent_commits_lose_nothing,
        rows_above_the_head_are_not_found,
        rows_wait_for_their_own_ack,
        expired_rows_leave_a_gap,
        inbox_is_in_drain_order,
        inbox_pages,
        a_row_may_appear_below_a_read_position,
        acks_never_go_back,
        ack_above_the_tail,
        a_rejected_ack_changes_nothing,
        an_acked_row_does_not_come_back,
        a_device_that_joins_late_is_not_behind,
        generation_never_goes_back,
        history_is_newest_first_and_pages,
        history_after_is_oldest_first,
        feeds_of_a_device_read_back,
        a_feed_is_acknowledged_above_the_tail,
        mailboxes_have_no_history,
        state_reads_back,
        state_has_the_named_senders,
        unchanged_parts_of_a_state_stay,
        every_kind_of_row_reads_back,
        groups_read_back,
        large_rows_read_back,
        numbers_have_53_bits,
        waiting_is_counted,
        old_history_is_erased,
        history_is_erased_once_every_member_cleared_it,
        erased_content_does_not_come_back,
        a_waiting_row_of_an_erased_message_is_empty,
        a_deleted_message_is_erased,
        a_message_disappears_when_its_time_is_over,
        an_erased_device_is_empty,
        an_unknown_conversation_is_empty,
    ]
}

/// Returns the conformance cases of a [`MessageStore`] that several processes share, where two owners of a
/// shard may overlap.
pub fn shared_message_store() -> Vec<Case<dyn MessageStore>> {
    list_cases![an_older_state_does_not_come_back, an_owner_that_is_behind_changes_nothing]
}

const ALICE: UserId = UserId::from_bytes([1; 16]);
const BOB: UserId = UserId::from_bytes([2; 16]);

fn device(user: UserId) -> DeviceAddress {
    let installation = InstallationId::from_bytes(*user.as_bytes());
    DeviceAddress { user, device: DeviceId::PRIMARY, installation }
}

/// A conversation of Alice's and Bob's devices in which Alice's device sends. [`decide`], the function that
/// shards use, makes the commits.
struct Conversation {
    id: ConversationId,
    state: ConversationState,
    time_us: u64,
}

impl Conversation {
    fn new(id: ConversationId, time_us: u64) -> Self {
        Self { id, state: ConversationState::default(), time_us }
    }

    fn direct() -> Self {
        Self::new(ConversationId::direct(ALICE, BOB), 1000)
    }

    /// Returns the commit of the next message, with a body of `size` bytes.
    fn next(&mut self, size: usize) -> Result<Commit, String> {
        self.next_with(size, MessageOptions::default())
    }

    fn next_with(&mut self, size: usize, options: MessageOptions) -> Result<Commit, String> {
        let (alice, bob) = (device(ALICE), device(BOB));
        let sent = self.state.senders.get(&alice.installation).copied().unwrap_or_default();
        let n = sent.client_seq + 1;
        let number = SendPosition {
            conversation: self.id,
            message_id: message_id(n),
            client_seq: n,
            prev: sent.prev,
            incarnation: 0,
            generation: 7,
        };
        let recipient = |d: DeviceAddress| RecipientDevices {
            user: d.user,
            list_version: 1,
            installations: vec![d.installation],
        };
        let publish = Publish {
            number,
            first: true,
            audience: Vec::new(),
            body: vec![n as u8; size].into(),
            boxes: vec![DeviceBox { installation: bob.installation, data: vec![n as u8; 32].into() }],
            excluded: Vec::new(),
            sent_at: 1,
            options,
            group: None,
        };
        let command = Command::new(
            alice,
            Operation::Publish(publish),
            vec![recipient(alice), recipient(bob)],
            Rules::CURRENT,
        );
        let record = Record {
            position: LogPosition { generation: 1, offset: n },
            appended_us: self.time_us + n * 10,
            command: Arc::new(command),
        };
        match decide(&self.state, &record, None) {
            Decision::Store(_, commit) => {
                self.state.apply(&commit.state);
                Ok(commit)
            }
            other => Err(format!("the shard decided {other:?}")),
        }
    }

    async fn fill(&mut self, store: &Store, count: usize) -> Outcome {
        for _ in 0..count {
            let commit = self.next(100)?;
            make_seen(store, vec![commit]).await?;
        }
        Ok(())
    }
}

fn message_id(n: u64) -> MessageId {
    let mut id = [9; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    MessageId::from_bytes(id)
}

/// Commits until everything is durable. Returns the commits that are not visible yet.
async fn commit_durable(store: &Store, commits: Vec<Commit>) -> Result<Vec<Commit>, String> {
    let count = commits.len();
    let outcomes = store.commit(commits).await;
    equal(outcomes.len(), count, "outcomes")?;
    let mut durable = Vec::new();
    for outcome in outcomes {
        if let CommitOutcome::Durable(commit) = outcome.map_err(failed)? {
            durable.push(*commit);
        }
    }
    Ok(durable)
}

/// Commits until every reader sees the commits.
async fn make_seen(store: &Store, commits: Vec<Commit>) -> Outcome {
    let durable = commit_durable(store, commits).await?;
    store.make_visible(durable).await.map_err(failed)
}

async fn inbox(store: &Store, who: UserId) -> Result<Vec<InboxRow>, String> {
    store.inbox(device(who).installation, InboxPosition::START, PageLimit::MAX).await.map_err(failed)
}

fn seqs(rows: &[InboxRow]) -> Vec<u64> {
    rows.iter().map(|row| row.seq).collect()
}

async fn ack(store: &Store, who: UserId, conversation: ConversationId, seq: u64) -> crate::Result<()> {
    store.ack(device(who).installation, 0, &[AckUpTo { conversation, seq }]).await
}
