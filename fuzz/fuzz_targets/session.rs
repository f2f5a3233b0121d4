//! Fuzzes a session with inputs in any order. It must not panic, produce no output after it closed, and never
//! have more rows in flight than the window allows.
#![no_main]

use bytes::Bytes;
use chat_core::backend::{InboxPage, PageLimit};
use chat_core::delivery::SessionEvent;
use chat_core::envelope::{EmptyReason, InboxRow, InboxPosition, RowContent, Stored, Durability};
use chat_core::limits::WINDOW_ROWS;
use chat_core::session::{Input, Output, Session};
use chat_core::wire::{ClientFrame, ServerFrame, Welcome};
use chat_core::{ConversationId, DeviceAddress, DeviceId, InstallationId, Instant, MessageId, StoreEpoch, UserId};
use libfuzzer_sys::fuzz_target;

fn row(seq: u64) -> InboxRow {
    let content = RowContent::Empty { reason: EmptyReason::Skip, from: seq };
    InboxRow { conversation: ConversationId::from_bytes([0x11; 17]), seq, time_us: seq, joined: false, content }
}

fn page(limit: PageLimit, rows: Vec<InboxRow>) -> InboxPage {
    InboxPage { has_more: limit.is_reached(&rows), rows }
}

fuzz_target!(|data: &[u8]| {
    let epoch = StoreEpoch::from_bytes([1; 16]);
    let device = DeviceAddress {
        user: UserId::from_bytes([1; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([1; 16]),
    };
    let mut now = Instant::from_millis(0);
    let mut session = Session::new(now);
    let (mut asked, mut limit) = (InboxPosition::START, PageLimit::MAX);
    let mut seq = 0;
    let mut closed = false;
    let mut on_the_way = 0_usize;
    for chunk in data.chunks(3) {
        let (kind, n) = (chunk[0], u64::from(*chunk.get(1).unwrap_or(&0)));
        now = now.after(u64::from(*chunk.get(2).unwrap_or(&0)) * 100);
        let input = match kind % 12 {
            0 => {
                let welcome = Welcome { store_epoch: epoch, server_time: 0, rollback: false, incarnation: 0, prekeys: 0, list_version: 1, retention_ms: 0, instance: 0, contacts_version: n, token_expires_in_ms: 0, rules: 3 };
                let expires_at = (n > 128).then(|| now.after(n * 100));
                Input::Admitted { device, welcome, expires_at }
            }
            1 => {
                seq += 1;
                Input::Events(vec![SessionEvent::Row(row(seq)); n as usize % 4])
            }
            // A page has at most the rows that were asked for.
            2 => Input::Page(asked, page(limit, (seq + 1..=seq + n).map(row).take(limit.rows).collect())),
            3 => Input::Page(asked, page(limit, Vec::new())),
            4 => Input::Lagged,
            5 => Input::Tick,
            6 => {
                let acks = vec![chat_core::envelope::AckUpTo { conversation: row(1).conversation, seq: seq + n }];
                on_the_way = 0;
                Input::Frame(ClientFrame::Ack { acks, store_epoch: epoch, generation: n })
            }
            7 => Input::Frame(ClientFrame::Heartbeat),
            8 => Input::Frame(ClientFrame::CatchUp),
            9 => {
                seq += 1;
                let stored = Stored { conversation: row(1).conversation, message_id: MessageId::NIL, client_seq: n, incarnation: 0, seq, store_epoch: epoch, durability: Durability::Memory };
                Input::Events(vec![SessionEvent::Own(stored, seq)])
            }
            10 => Input::PageFailed,
            _ => match ClientFrame::parse(Bytes::copy_from_slice(data), &Bytes::new()) {
                Ok(frame) => Input::Frame(frame),
                Err(_) => Input::Drain(n as u32),
            },
        };
        let again = matches!(input, Input::Frame(ClientFrame::CatchUp | ClientFrame::Heartbeat));
        let mut out = Vec::new();
        session.step(now, input, &mut out);
        assert!(!closed || out.is_empty(), "the session produced output after it closed");
        for output in out {
            match output {
                Output::Read(after, next) => (asked, limit) = (after, next),
                Output::Close(_) => closed = true,
                Output::Send(ServerFrame::Deliver(rows, _)) => on_the_way += rows.len(),
                _ => {}
            }
        }
        if again {
            on_the_way = 0;
        }
        assert!(on_the_way <= 2 * WINDOW_ROWS, "{on_the_way} rows in flight");
        let _ = session.deadline();
    }
});
