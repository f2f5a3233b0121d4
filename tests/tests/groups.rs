//! Groups with the Signal suite, on a server in the same process.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::HashMap;
use std::time::Duration;

use chat_client::prelude::*;
use chat_client::{GroupAction, Role};
use chat_testing::TestServer;
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// Returns the texts of a group on a device, in order, once there are `count`.
async fn texts(client: &Client, group: ConversationId, count: usize) -> Vec<String> {
    let wait = async {
        loop {
            let history = client.history(group, None, 10_000).await.unwrap();
            let unreadable = history.iter().find(|one| matches!(one.content(), Content::Unreadable(_)));
            assert!(unreadable.is_none(), "{} {unreadable:?}", client.user().to_hex());
            let texts: Vec<String> =
                history.iter().rev().filter_map(|message| message.text().map(str::to_owned)).collect();
            if texts.len() >= count {
                return texts;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap()
}

async fn waits_for_group(client: &Client, group: ConversationId, members: usize) {
    let wait = async {
        while client.group(group).await.map_or(0, |known| known.members.len()) != members {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_talk_at_once_see_one_conversation() {
    let server = TestServer::start().await.unwrap();
    let mut clients = Vec::new();
    for name in ["alice", "bob", "carol", "dave"] {
        clients.push(server.client_with(name, chat_signal::suite()).await.unwrap());
    }
    let tablet = server.linked_client(&clients[1], "tablet", chat_signal::suite()).await.unwrap();
    let users: Vec<UserId> = clients.iter().map(Client::user).collect();
    server.make_contact(&clients[0], &clients[1..].iter().collect::<Vec<_>>()).await.unwrap();
    let group = clients[0].create_group("Crew", &users[1..]).await.unwrap();
    clients.push(tablet);
    for client in &clients {
        waits_for_group(client, group, 4).await;
    }
    let mut tickets = Vec::new();
    for round in 0..20 {
        for (n, client) in clients.iter().enumerate() {
            tickets.push(client.send(group, format!("{n}:{round}")).await.unwrap());
        }
        if round == 10 {
            let admin = GroupAction::SetRole(users[2], Role::Admin);
            clients[0].change_group(group, admin).await.unwrap().stored().await.unwrap();
        }
    }
    for ticket in tickets {
        timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    }
    let first = texts(&clients[0], group, 100).await;
    let mut last: HashMap<&str, u32> = HashMap::new();
    for text in &first {
        let (sender, round) = text.split_once(':').unwrap();
        let round: u32 = round.parse().unwrap();
        let before = last.insert(sender, round);
        assert!(before.map_or(round == 0, |before| round == before + 1), "{sender} {before:?} {round}");
    }
    for client in &clients[1..] {
        assert_eq!(texts(client, group, 100).await, first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_others_talk() {
    let server = TestServer::start().await.unwrap();
    let mut clients = Vec::new();
    for name in ["alice", "bob", "carol"] {
        clients.push(server.client_with(name, chat_signal::suite()).await.unwrap());
    }
    let users: Vec<UserId> = clients.iter().map(Client::user).collect();
    server.make_contact(&clients[0], &clients[1..].iter().collect::<Vec<_>>()).await.unwrap();
    let group = clients[0].create_group("Crew", &users[1..2]).await.unwrap();
    waits_for_group(&clients[1], group, 2).await;
    let mut seen_by_carol = Vec::new();
    for round in 0..6 {
        let add = GroupAction::Add(vec![users[2]]);
        clients[0].change_group(group, add).await.unwrap().stored().await.unwrap();
        for (n, client) in clients[..2].iter().enumerate() {
            let text = format!("{round}: with Carol, from {n}");
            client.send(group, text.as_str()).await.unwrap().stored().await.unwrap();
            seen_by_carol.push(text);
        }
        waits_for_group(&clients[2], group, 3).await;
        let text = format!("{round}: from Carol");
        clients[2].send(group, text.as_str()).await.unwrap().stored().await.unwrap();
        seen_by_carol.push(text);
        let remove = GroupAction::Remove { users: vec![users[2]], ban: false };
        clients[0].change_group(group, remove).await.unwrap().stored().await.unwrap();
        for (n, client) in clients[..2].iter().enumerate() {
            let text = format!("{round}: without Carol, from {n}");
            client.send(group, text.as_str()).await.unwrap().stored().await.unwrap();
        }
        waits_for_group(&clients[2], group, 2).await;
    }
    assert_eq!(texts(&clients[2], group, seen_by_carol.len()).await, seen_by_carol);
    let all = texts(&clients[0], group, 30).await;
    assert_eq!((all.len(), texts(&clients[1], group, 30).await), (30, all));
}

/// More devices than one message has boxes for.
#[tokio::test(flavor = "multi_thread")]
async fn large_group_gets_the_sender_key_in_several_messages() {
    let server = TestServer::start().await.unwrap();
    let founder = server.client_with("founder", chat_signal::suite()).await.unwrap();
    let mut members = Vec::new();
    for n in 0..130 {
        members.push(server.client_with(&format!("member{n}"), chat_signal::suite()).await.unwrap());
    }
    let users: Vec<UserId> = members.iter().map(Client::user).collect();
    server.make_contact(&founder, &members.iter().collect::<Vec<_>>()).await.unwrap();
    let group = founder.create_group("Village", &users).await.unwrap();
    let ticket = founder.send(group, "to all").await.unwrap();
    timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    for member in &members {
        assert_eq!(texts(member, group, 1).await, ["to all"]);
    }
    let ticket = members[7].send(group, "thanks").await.unwrap();
    timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    for member in members.iter().filter(|member| member.user() != members[7].user()) {
        assert_eq!(texts(member, group, 2).await, ["to all", "thanks"]);
    }
}
