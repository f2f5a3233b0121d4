use std::sync::Arc;

use bytes::Bytes;
use chat_core::DeviceAddress;
use chat_core::envelope::{Audience, Message};
use chat_core::{DeviceId, InstallationId, UserId};

use super::*;
use crate::config::Profile;
use crate::content::encode_text;
use crate::store::open_for_test;

fn device(n: u8) -> DeviceAddress {
    let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
    DeviceAddress { user, device: DeviceId::PRIMARY, installation }
}

/// The arrival of a message with seq 1.
fn arrival(conversation: ConversationId, sender: DeviceAddress, audience: &[UserId], text: &str) -> Change {
    let message = Message {
        id: MessageId::from_bytes([7; 16]),
        sender,
        client_seq: 1,
        prev: MessageId::NIL,
        incarnation: 0,
        audience: audience.iter().map(|user| Audience { user: *user, list_version: 1 }).collect(),
        body: Bytes::new(),
        sent_at: 0,
        options: chat_core::message_options::MessageOptions::default(),
        group: None,
    };
    let content = RowContent::Message { message: Arc::new(message), sealed: Bytes::new() };
    let row = InboxRow { conversation, seq: 1, time_us: 1, joined: true, content };
    let opened = Opened {
        content: Ok(encode_text(text).into()),
        ..Opened::unreadable(chat_core::replica::Unreadable::Malformed)
    };
    Change::Received(Box::new(row), opened)
}

#[test]
fn peer_is_the_user_that_the_conversation_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
    let (own, tablet) =
        (device(1), DeviceAddress { installation: InstallationId::from_bytes([9; 16]), ..device(1) });
    let [bob, carol, dave] = [2, 3, 4].map(device);
    store.load(own).unwrap();
    // An own device wrote to Bob, and Carol names Dave in the audience of her message.
    let with = |other: DeviceAddress| ConversationId::direct(own.user, other.user);
    store.apply(arrival(with(bob), tablet, &[own.user, bob.user], "from the tablet")).unwrap();
    store.apply(arrival(with(carol), carol, &[dave.user, carol.user, own.user], "from Carol")).unwrap();
    assert_eq!(store.peer(with(bob)).unwrap(), Some(bob.user));
    assert_eq!(store.peer(with(carol)).unwrap(), Some(carol.user));
}

#[test]
fn same_id_in_two_conversations_is_two_messages() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
    let (own, sender) = (device(1), device(2));
    store.load(own).unwrap();
    let conversations = [ConversationId::direct(own.user, sender.user), ConversationId::own(own.user)];
    for (n, conversation) in conversations.into_iter().enumerate() {
        store.apply(arrival(conversation, sender, &[], &format!("text {n}"))).unwrap();
    }
    let shown = conversations.map(|conversation| store.history(conversation, None, 10).unwrap());
    assert_eq!(
        shown.map(|messages| messages[0].text().map(str::to_owned)),
        ["text 0", "text 1"].map(|text| Some(text.to_owned()))
    );
    let events = store.events(0, 10).unwrap();
    let texts: Vec<_> = events
        .iter()
        .filter_map(|record| match &record.event {
            crate::event::Event::Message(message) => message.text(),
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["text 0", "text 1"]);
}
