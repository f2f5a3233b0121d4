//! The actions of the user on the screen.

use chat_client::{Client, ConversationId, ConversationKind, Handle, MessageId, Recipient, SendRequest};

use super::entered::{Change, Entered};
use super::talk::Talk;
use super::{PAGE, Screen};
use crate::contacts::{Decision, newest};
use crate::conversations::found_line;
use crate::text;

pub(super) async fn enter(client: &Client, screen: &mut Screen) {
    let input = std::mem::take(&mut screen.input);
    screen.note.clear();
    match Entered::read(&input) {
        Entered::Nothing => {}
        Entered::To(name) => open_talk(client, screen, name).await,
        Entered::Decide(decision) => decide(client, screen, decision).await,
        Entered::Report(note) => report(client, screen, note).await,
        Entered::Change(change) => {
            if let Err(error) = change_newest(client, screen, change).await {
                screen.note = text(error);
                screen.input = input;
            }
        }
        Entered::Join(link) => screen.note = join(client, screen, link).await.unwrap_or_else(text),
        Entered::Search(words) => search(client, screen, words).await,
        Entered::Configure(setting) => {
            let Some(id) = screen.selected else {
                screen.note = "open a chat first: /to NAME".into();
                return;
            };
            screen.note = client
                .change_setting(id, setting)
                .await
                .map_or_else(text, |()| "changed on all your devices".into());
        }
        Entered::UnknownCommand(name) => {
            screen.note = format!("unknown command /{name}; a text may begin with //");
            screen.input = input;
        }
        Entered::Text(content) => {
            let Some((id, user)) = screen.selected_talk().map(|talk| (talk.id, talk.user)) else {
                screen.note = "choose a recipient first: /to NAME".into();
                screen.input = input;
                return;
            };
            let to = if id.kind() == Ok(ConversationKind::Group) { Recipient::from(id) } else { user.into() };
            match client.send(to, content).await {
                Ok(ticket) => sent(screen, id, ticket.message(), content),
                Err(error) => {
                    screen.note = text(error);
                    screen.input = input;
                }
            }
        }
    }
}

/// Shows the newest messages with these words in the open conversation, the newest last.
async fn search(client: &Client, screen: &mut Screen, words: &str) {
    const FOUND: usize = 10;
    let found = match client.search(words, None, FOUND).await {
        Ok(found) => found,
        Err(error) => {
            screen.note = text(error);
            return;
        }
    };
    screen.note = format!("found {}{}", found.len(), if found.len() < FOUND { "" } else { " or more" });
    let known = client.conversations().await.unwrap_or_default();
    let lines: Vec<String> = found.iter().rev().map(|message| found_line(&known, message)).collect();
    match screen.selected.and_then(|id| screen.find(id)) {
        Some(talk) => lines.into_iter().for_each(|line| talk.note(line)),
        None => screen.note = lines.last().cloned().unwrap_or_else(|| "found nothing".into()),
    }
}

async fn decide(client: &Client, screen: &mut Screen, decision: Decision) {
    let talk = screen.selected_talk().filter(|talk| !talk.is_group());
    let Some((user, name)) = talk.map(|talk| (talk.user, talk.name.clone())) else {
        screen.note = "open the chat of the user first: /to NAME".into();
        return;
    };
    screen.note = match decision.make(client, user).await {
        Ok(()) => format!("{} {name}", decision.done()),
        Err(error) => text(error),
    };
}

/// Changes or answers the newest message of the open conversation.
async fn change_newest(client: &Client, screen: &mut Screen, change: Change<'_>) -> chat_client::Result<()> {
    let is_own = matches!(change, Change::Edit(_) | Change::Delete);
    let Some(message) = screen.selected_talk().and_then(|talk| talk.newest_message(is_own)) else {
        screen.note = "there is no such message in this conversation".into();
        return Ok(());
    };
    match change {
        Change::Edit(content) => drop(client.edit(message, content).await?),
        Change::Delete => drop(client.delete(message).await?),
        Change::React(emoji) => drop(client.react(message, emoji).await?),
        Change::Reply(content) => {
            let request = SendRequest::text(content).reply_to(message);
            let ticket = client.send(message.conversation, request).await?;
            sent(screen, message.conversation, ticket.message(), content);
        }
    }
    Ok(())
}

/// Reads the newest page of a conversation again, after messages were changed.
pub(super) async fn refresh(client: &Client, screen: &mut Screen, conversation: ConversationId) {
    let own = screen.own.clone();
    let Some(talk) = screen.find(conversation) else { return };
    let Ok(messages) = client.history(conversation, None, PAGE).await else { return };
    for message in messages.iter().filter(|message| !message.archived) {
        let author = message.sender.to_string();
        let is_own = author == own;
        talk.add(message.seq, message.id, author, message.content(), is_own);
        talk.mark(message, is_own);
    }
}

/// Queues that this user joins a group. Returns the line to show.
async fn join(client: &Client, screen: &Screen, link: Option<&str>) -> chat_client::Result<String> {
    let invitation = match link {
        Some(link) => Some(link.parse()?),
        None => screen.selected_talk().and_then(Talk::invitation),
    };
    let Some(invitation) = invitation else {
        return Ok("there is no invitation in this conversation; /join LINK uses a link".into());
    };
    client.join_group(&invitation).await?;
    Ok("joining the group: it appears with its first message".into())
}

/// Reports the newest messages of the selected user.
async fn report(client: &Client, screen: &mut Screen, note: &str) {
    const REPORTED: usize = 5;
    let talk = screen.selected_talk().filter(|talk| !talk.is_group());
    let Some((user, name)) = talk.map(|talk| (talk.user, talk.name.clone())) else {
        screen.note = "open the chat of the user first: /to NAME".into();
        return;
    };
    let reported = async {
        let messages = newest(client, user, REPORTED).await?;
        client.report(&messages, note).await.map(|()| messages.len())
    };
    screen.note = match reported.await {
        Ok(count) => format!("reported {count} messages of {name}; /block ends them"),
        Err(error) => text(error),
    };
}

fn sent(screen: &mut Screen, selected: ConversationId, id: MessageId, content: &str) {
    screen.scroll = 0;
    let own = screen.own.clone();
    if let Some(talk) = screen.find(selected) {
        talk.queue(id, own, content.to_owned());
    }
}

/// Opens the conversation with a user. No conversation is selected while the user is unknown.
async fn open_talk(client: &Client, screen: &mut Screen, name: &str) {
    screen.selected = None;
    // Handles have no capital letters.
    let name = name.to_lowercase();
    if Handle::new(&name).is_err() {
        screen.note = format!("{name} is not a handle");
        return;
    }
    match client.resolve(&name).await {
        Ok(user) => {
            let id = client.conversation_with(user);
            screen.talk(id, user, || name);
            select(client, screen, id).await;
        }
        Err(error) => screen.note = format!("{name}: {}", text(error)),
    }
}

pub(super) async fn select(client: &Client, screen: &mut Screen, id: ConversationId) {
    screen.selected = Some(id);
    screen.scroll = 0;
    // The server sends typing notifications of a group only while it is open.
    let _ = client.open_conversation(Some(id)).await;
    if screen.find(id).is_some_and(|talk| talk.oldest().is_none_or(|oldest| oldest > 1)) {
        load_older(client, screen).await;
    }
    read(client, screen).await;
}

/// Reads a page of the history below the oldest message on the screen.
pub(super) async fn load_older(client: &Client, screen: &mut Screen) {
    let own = screen.own.clone();
    let Some(selected) = screen.selected else { return };
    let Some(talk) = screen.find(selected).filter(|talk| !talk.is_complete) else { return };
    let Ok(messages) = client.history(selected, talk.oldest(), PAGE).await else { return };
    talk.is_complete = messages.len() < PAGE;
    for message in messages {
        let author = message.sender.to_string();
        let is_own = author == own;
        if message.archived {
            talk.add_archived(message.seq, message.id, author, message.content());
        } else {
            talk.add(message.seq, message.id, author, message.content(), is_own);
        }
        talk.mark(&message, is_own);
    }
}

/// Reports the open conversation as read while its newest line is visible.
pub(super) async fn read(client: &Client, screen: &mut Screen) {
    let (Some(selected), 0) = (screen.selected, screen.scroll) else { return };
    if let Some(talk) = screen.find(selected).filter(|talk| talk.unread > 0) {
        talk.unread = 0;
        let newest = talk.newest();
        let _ = client.read(selected, newest).await;
    }
}
