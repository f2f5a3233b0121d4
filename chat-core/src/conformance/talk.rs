//! Conversations whose commits are made by [`decide`], the function that shards use.

use std::sync::Arc;

use crate::backend::{
    Command, Commit, ConversationState, LogPosition, Operation, RecipientDevices, Record, Rules,
};
use crate::delivery::{Decision, decide};
use crate::model::envelope::{DeviceBox, Publish, SendPosition};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, Seq, UserId};
use crate::model::message_options::{Deletion, MessageOptions};

/// A conversation in which several devices send.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub id: ConversationId,
    /// The devices of each user, in the order of the members.
    pub members: Vec<(UserId, Vec<DeviceAddress>)>,
    pub state: ConversationState,
    /// Log time of the first record, in microseconds.
    pub time_us: u64,
    /// Number of the last record.
    pub records: u64,
}

impl Talk {
    /// Returns the commit of the next message. `sender` selects one of all devices.
    pub(crate) fn next(&mut self, sender: usize, size: usize) -> Result<Commit, String> {
        self.next_with(sender, size, MessageOptions::default())
    }

    /// Returns the commit of the next message, which has these options.
    pub(crate) fn next_with(
        &mut self,
        sender: usize,
        size: usize,
        options: MessageOptions,
    ) -> Result<Commit, String> {
        let devices: Vec<DeviceAddress> =
            self.members.iter().flat_map(|(_, devices)| devices.clone()).collect();
        let sender = devices[sender % devices.len()];
        let sent = self.state.senders.get(&sender.installation).copied().unwrap_or_default();
        self.records += 1;
        let n = self.records;
        let number = SendPosition {
            conversation: self.id,
            message_id: message_id(sender.installation, sent.client_seq + 1),
            client_seq: sent.client_seq + 1,
            prev: sent.prev,
            incarnation: 0,
            generation: 5 + n,
        };
        let others = devices.iter().filter(|device| **device != sender);
        let publish = Publish {
            number,
            first: true,
            audience: Vec::new(),
            body: vec![n as u8; size].into(),
            boxes: others
                .map(|device| DeviceBox { installation: device.installation, data: vec![n as u8; 32].into() })
                .collect(),
            excluded: Vec::new(),
            sent_at: 1,
            options,
            group: None,
        };
        let recipients = self.members.iter().map(|(user, devices)| RecipientDevices {
            user: *user,
            list_version: 1,
            installations: devices.iter().map(|device| device.installation).collect(),
        });
        let command = Command::new(sender, Operation::Publish(publish), recipients.collect(), Rules::CURRENT);
        let position = LogPosition { generation: 1, offset: n };
        let record = Record { position, appended_us: self.time_us + n * 10, command: Arc::new(command) };
        match decide(&self.state, &record, None) {
            Decision::Store(_, commit) => {
                self.state.apply(&commit.state);
                Ok(commit)
            }
            other => Err(format!("the shard decided {other:?}")),
        }
    }

    /// Starts at a high seq, as a conversation with a long history does.
    pub(crate) fn starting_at(mut self, seq: Seq) -> Self {
        self.state.head.seq = seq;
        self
    }
}

/// Merges commits of one conversation that follow each other into one commit.
pub(crate) fn merge(commits: impl IntoIterator<Item = Commit>) -> Option<Commit> {
    commits.into_iter().reduce(|mut whole, next| {
        whole.merge(next);
        whole
    })
}

pub(crate) fn message_id(sender: InstallationId, client_seq: u64) -> MessageId {
    let mut id = *sender.as_bytes();
    id[8..].copy_from_slice(&client_seq.to_be_bytes());
    MessageId::from_bytes(id)
}

/// Returns the options of a message that deletes another one. Only the gateway checks the signature.
pub(crate) fn deletes(seq: Seq) -> MessageOptions {
    let deletion = Deletion {
        seq,
        installation: InstallationId::from_bytes([0; 16]),
        message_id: MessageId::NIL,
        signature: vec![0; 64].into(),
    };
    MessageOptions { deletion: Some(Box::new(deletion)), ..MessageOptions::default() }
}

/// Returns the options of a message that disappears.
pub(crate) fn disappears(after_ms: u64) -> MessageOptions {
    MessageOptions { expires_after_ms: after_ms, ..MessageOptions::default() }
}
