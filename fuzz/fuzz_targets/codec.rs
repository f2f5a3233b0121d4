//! Fuzzes the storage encoding: rows, commands, redo records, parts of a state and device lists. A decoded value must be
//! the same after it is encoded and decoded again.
#![no_main]

use bytes::Bytes;
use chat_core::backend::Head;
use chat_core::codec::node::{decode_command, encode_command};
use chat_core::codec::{decode_list, decode_row, encode_list, encode_row, redo, state};
use chat_core::{ConversationId, UserId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(row) = decode_row(bytes.clone()) {
        assert_eq!(decode_row(encode_row(&row).into()), Ok(row));
    }
    if let Ok(command) = decode_command(bytes.clone()) {
        assert_eq!(decode_command(encode_command(&command).into()), Ok(command));
    }
    if let Ok(list) = decode_list(bytes.clone()) {
        assert_eq!(decode_list(encode_list(&list).into()), Ok(list));
    }
    let (conversation, head) = (ConversationId::own(UserId::from_bytes([1; 16])), Head::default());
    if let Ok(commit) = redo::decode(bytes, conversation, head) {
        assert_eq!(redo::decode(redo::encode(&commit).into(), conversation, head), Ok(commit));
    }
    if let Ok(head) = state::decode_head(data) {
        assert_eq!(state::decode_head(&state::encode_head(&head)), Ok(head));
    }
    if let Ok(roster) = state::decode_roster(data) {
        assert_eq!(state::decode_roster(&state::encode_roster(&roster)), Ok(roster));
    }
    if let Ok(sender) = state::decode_sender(data) {
        assert_eq!(state::decode_sender(&state::encode_sender(&sender)), Ok(sender));
    }
    let _ = state::decode_format_1(data);
});
