//! Read positions, and the receipts of other users. Receipts in groups: [`group_receipts`](super::group_receipts).

use super::change::Change;
use super::conversation::Conversation;
use super::output::Output;
use super::{Purpose, Replica};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::envelope::AckUpTo;
use crate::model::id::{ConversationId, ConversationKind, Seq, UserId};
use crate::model::time::Instant;

/// Maximum number of conversations of which the client exchanges watermarks after a reconnect.
const WATERMARKS: usize = 64;

impl Replica {
    /// Requests and sends watermarks after a reconnect, to repair lost receipts.
    pub(super) fn exchange_watermarks(&mut self, now: Instant, out: &mut Vec<Output>) {
        // A user that never reads would keep its conversation here for ever: undelivered messages come first.
        let behind = |c: &Conversation| (c.last_own > c.peer_read).then_some(c.last_own <= c.delivered);
        let direct = self.conversations.iter().filter(|(id, _)| id.kind() == Ok(ConversationKind::Direct));
        let mut asked: Vec<_> = direct.filter_map(|(id, c)| Some((behind(c)?, *id))).collect();
        self.rotate(&mut asked, WATERMARKS);
        asked.sort_by_key(|(is_delivered, _)| *is_delivered);
        for (_, conversation) in asked.into_iter().take(WATERMARKS) {
            self.request(now, Request::Delivered(conversation), Purpose::Delivered(conversation), out);
        }
        self.request_group_progress(now, out);
        let read = self.conversations.iter().filter(|(_, c)| c.read > 0);
        let mut read: Vec<_> = read.map(|(id, c)| AckUpTo { conversation: *id, seq: c.read }).collect();
        self.rotate(&mut read, WATERMARKS);
        out.extend(read.into_iter().take(WATERMARKS).map(|read| Output::Send(ClientFrame::Read(read))));
    }

    /// Begins a list at a random place if not all of it is taken, so that each of its items is sometimes among the first.
    pub(super) fn rotate<T>(&mut self, list: &mut [T], taken: usize) {
        if list.len() > taken {
            let start = self.rng.below(list.len() as u64) as usize;
            list.rotate_left(start);
        }
    }

    /// Sends the read position of a conversation again.
    pub(super) fn say_read(&mut self, conversation: ConversationId, out: &mut Vec<Output>) {
        if let Some(known) = self.conversations.get(&conversation)
            && known.read > 0
        {
            let seq = known.read;
            self.send_if_online(ClientFrame::Read(AckUpTo { conversation, seq }), out);
        }
    }

    pub(super) fn receipt(&mut self, conversation: ConversationId, user: UserId, delivered: Seq, read: Seq) {
        let own = user == self.device.user;
        if conversation.kind() == Ok(ConversationKind::Group) && !own {
            return self.group_receipt(conversation, user, delivered, read);
        }
        let Some(known) = self.conversations.get_mut(&conversation) else {
            return;
        };
        if own {
            if read > known.read {
                known.read = read.min(known.cursor);
                self.changes.push(Change::Read(conversation, known.read));
            }
            return;
        }
        // `read` may not exceed `delivered`: a read message was delivered.
        let delivered = delivered.max(read);
        if delivered > known.delivered || read > 0 {
            known.delivered = known.delivered.max(delivered);
            known.peer_read = known.peer_read.max(read);
            self.changes.push(Change::Receipt(conversation, user, delivered, read));
        }
    }

    pub(super) fn read(&mut self, read: AckUpTo, out: &mut Vec<Output>) {
        let Some(known) = self.conversations.get_mut(&read.conversation) else {
            return;
        };
        let seq = read.seq.min(known.cursor);
        if seq > known.read {
            known.read = seq;
            self.changes.push(Change::Read(read.conversation, seq));
            self.send_if_online(ClientFrame::Read(AckUpTo { conversation: read.conversation, seq }), out);
            self.report_read(read.conversation, seq, out);
        }
    }
}
