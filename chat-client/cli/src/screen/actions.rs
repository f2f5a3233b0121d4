//! The actions of the user on the screen.

use chat_client::{
    Client, Content, ConversationSetting, GroupInvitation, Handle, MessageRef, Recipient, SendRequest,
    Status, Target, TimelineItem,
};

use super::entered::{Change, Entered};
use super::{Chat, PAGE, Screen};
use crate::contacts::{Decision, newest as newest_of_user};
use crate::conversations::found_line;
use crate::text;
use crate::timer::{parse_time, timer};

/// The outcome of an action: the note to show.
type Done = chat_client::Result<String>;

pub(super) async fn enter(client: &Client, screen: &mut Screen) {
    let input = std::mem::take(&mut screen.input);
    screen.note.clear();
    let done = match Entered::read(&input) {
        Entered::Nothing => Ok(String::new()),
        Entered::To(name) => open_named(client, screen, name).await,
        Entered::Join(link) => join(client, screen, link).await,
        Entered::Search(words) => search(client, screen, words).await,
        Entered::UnknownCommand(name) => {
            screen.input.clone_from(&input);
            Ok(format!("unknown command /{name}; a text may begin with //"))
        }
        entered => match screen.open.clone() {
            Some(open) => act(client, screen, &open, entered).await,
            None => {
                screen.input.clone_from(&input);
                Ok("open a chat first: /to NAME".into())
            }
        },
    };
    match done {
        Ok(note) => screen.note = note,
        Err(error) => {
            screen.note = text(error);
            screen.input = input;
        }
    }
}

/// Carries out what the user entered for the open conversation.
async fn act(client: &Client, screen: &mut Screen, open: &Chat, entered: Entered<'_>) -> Done {
    match entered {
        Entered::Text(content) => {
            // The first message of a conversation goes to its user.
            let to = open.peer.map_or(Recipient::from(open.id), Recipient::from);
            client.send(to, content).await?;
            // The message is on its way: a later failure does not give the text back.
            follow(screen).await;
            if !screen.draft.is_empty() {
                screen.draft.clear();
                let setting = ConversationSetting::Draft(String::new());
                return Ok(client.change_setting(open.id, setting).await.err().map(text).unwrap_or_default());
            }
            Ok(String::new())
        }
        Entered::Decide(decision) => decide(client, open, decision).await,
        Entered::Report(note) => report(client, open, note).await,
        Entered::Change(change) => change_newest(client, screen, change).await,
        Entered::Configure(setting) => {
            client.change_setting(open.id, setting).await?;
            Ok("changed on all your devices".into())
        }
        Entered::Disappear(time) => match parse_time(time) {
            Ok(ms) => {
                client.set_disappearing_timer(open.id, timer(ms)).await?;
                Ok(String::new())
            }
            Err(error) => Ok(error),
        },
        Entered::Jump(seq) => {
            let Some(timeline) = &mut screen.timeline else { return Ok(String::new()) };
            timeline.jump(Target::Seq(seq)).await?;
            screen.show_timeline();
            // The message is at the top.
            screen.scroll = usize::MAX;
            Ok("page down and end return to the newest message".into())
        }
        Entered::Nothing
        | Entered::To(_)
        | Entered::Join(_)
        | Entered::Search(_)
        | Entered::UnknownCommand(_) => Ok(String::new()),
    }
}

/// Shows the newest messages with these words in the open conversation, the newest last.
async fn search(client: &Client, screen: &mut Screen, words: &str) -> Done {
    const FOUND: usize = 10;
    let found = client.search(words, None, FOUND).await?;
    let known = client.conversations().await?;
    let lines: Vec<String> = found.iter().rev().map(|message| found_line(&known, message)).collect();
    let count = format!("found {}{}", found.len(), if found.len() < FOUND { "" } else { " or more" });
    match screen.open.as_ref().map(|open| open.id) {
        Some(open) => lines.into_iter().for_each(|line| screen.notice_in(open, line)),
        None => return Ok(lines.last().cloned().unwrap_or_else(|| "found nothing".into())),
    }
    Ok(count)
}

async fn decide(client: &Client, open: &Chat, decision: Decision) -> Done {
    let Some(user) = open.peer else { return Ok("this is a group: open the chat of a user".into()) };
    decision.make(client, user).await?;
    Ok(format!("{} {}", decision.done(), open.name))
}

/// Reports the newest messages of the user of the open conversation.
async fn report(client: &Client, open: &Chat, note: &str) -> Done {
    const REPORTED: usize = 5;
    let Some(user) = open.peer else { return Ok("this is a group: open the chat of a user".into()) };
    let messages = newest_of_user(client, user, REPORTED).await?;
    client.report(&messages, note).await?;
    Ok(format!("reported {} messages of {}; /block ends them", messages.len(), open.name))
}

/// Changes or answers the newest message of the open conversation.
async fn change_newest(client: &Client, screen: &mut Screen, change: Change<'_>) -> Done {
    if screen.timeline.as_ref().is_some_and(chat_client::Timeline::has_newer) {
        return Ok("return to the newest message first: end".into());
    }
    let own = client.user();
    let is_shown = |item: &TimelineItem| {
        let content = item.message.content();
        !item.message.archived && !matches!(content, Content::Deleted | Content::GroupChanged { .. })
    };
    let is_refused = |item: &TimelineItem| matches!(item.status, Some(Status::Refused(_)));
    let is_wanted = |item: &TimelineItem| match change {
        Change::Edit(_) | Change::Delete => {
            item.message.sender.id == own && is_shown(item) && !is_refused(item)
        }
        Change::React(_) | Change::Reply(_) => item.message.sender.id != own && is_shown(item),
        Change::Retry | Change::Discard => is_refused(item),
    };
    let Some(message) = newest_item(screen, is_wanted).map(MessageRef::from) else {
        return Ok("there is no such message in this conversation".into());
    };
    match change {
        Change::Edit(content) => drop(client.edit(message, content).await?),
        Change::Delete => drop(client.delete(message).await?),
        Change::React(emoji) => drop(client.react(message, emoji).await?),
        Change::Reply(content) => {
            client.send(message.conversation, SendRequest::text(content).reply_to(message)).await?;
            follow(screen).await;
        }
        Change::Retry => drop(client.retry(message.id).await?),
        Change::Discard => client.discard(message.id).await?,
    }
    Ok(String::new())
}

/// Returns the newest message of the open conversation that satisfies a condition.
fn newest_item(screen: &Screen, is_wanted: impl Fn(&TimelineItem) -> bool) -> Option<&chat_client::Message> {
    let items = screen.timeline.as_ref()?.items();
    items.iter().rev().find(|item| is_wanted(item)).map(|item| &item.message)
}

/// Queues that this user joins a group. Returns the line to show.
async fn join(client: &Client, screen: &Screen, link: Option<&str>) -> Done {
    let is_invitation = |item: &TimelineItem| matches!(item.message.content(), Content::Invitation(_));
    let invitation: Option<GroupInvitation> = match link {
        Some(link) => Some(link.parse()?),
        None => newest_item(screen, is_invitation).and_then(|message| match message.content() {
            Content::Invitation(invitation) => Some(GroupInvitation::clone(invitation)),
            _ => None,
        }),
    };
    let Some(invitation) = invitation else {
        return Ok("there is no invitation in this conversation; /join LINK uses a link".into());
    };
    if invitation.group().is_channel() {
        client.subscribe(&invitation).await?;
        return Ok("subscribed to the channel: it appears in the list".into());
    }
    client.join_group(&invitation).await?;
    Ok("joining the group: it appears in the list".into())
}

/// Opens the conversation with a user, or a group. A user comes first, because any contact can name a group like a user.
async fn open_named(client: &Client, screen: &mut Screen, name: &str) -> Done {
    // Handles have no capital letters.
    let handle = name.to_lowercase();
    let find = |is_wanted: &dyn Fn(&Chat) -> bool| screen.chats.iter().find(|chat| is_wanted(chat)).cloned();
    let group = find(&|chat| chat.is_group() && chat.name.to_lowercase() == handle);
    let chat = match find(&|chat| chat.peer.is_some() && chat.name == handle) {
        Some(known) => known,
        None => match (Handle::new(&handle), group) {
            (Err(_), None) => return Ok(format!("{name} is neither a handle nor a group")),
            (Err(_), Some(group)) => group,
            (Ok(_), group) => match (client.resolve(&handle).await, group) {
                (Ok(user), _) => {
                    let id = client.conversation_with(user);
                    find(&|chat| chat.id == id).unwrap_or_else(|| Chat::new(id, user, handle.clone()))
                }
                (Err(_), Some(group)) => group,
                (Err(error), None) => {
                    // Nothing that follows goes to the conversation that was open.
                    leave(client, screen).await?;
                    return Ok(format!("{name}: {}", text(error)));
                }
            },
        },
    };
    select(client, screen, chat).await.map(|()| String::new())
}

/// Closes the open conversation. A text that was not sent becomes its draft; a command stays in the input.
///
/// # Errors
/// If the draft cannot be kept: then the conversation stays open.
pub(super) async fn leave(client: &Client, screen: &mut Screen) -> chat_client::Result<()> {
    let is_command = screen.input.starts_with('/') && !screen.input.starts_with("//");
    if let Some(open) = &screen.open
        && !is_command
    {
        if screen.input != screen.draft {
            client.change_setting(open.id, ConversationSetting::Draft(screen.input.clone())).await?;
        }
        screen.input.clear();
    }
    (screen.open, screen.timeline, screen.presence, screen.scroll) = (None, None, None, 0);
    screen.draft.clear();
    screen.entries.clear();
    Ok(())
}

/// Opens a conversation. The input has its draft.
pub(super) async fn select(client: &Client, screen: &mut Screen, chat: Chat) -> chat_client::Result<()> {
    leave(client, screen).await?;
    screen.timeline = Some(client.timeline(chat.id).await?);
    // The server sends typing notifications of a group, and the presence of a user, only while it is open.
    client.open_conversation(Some(chat.id)).await?;
    client.watch_presence(chat.peer.into_iter().filter(|peer| *peer != client.user()).collect()).await?;
    if screen.input.is_empty() {
        screen.input.clone_from(&chat.draft);
    }
    screen.draft.clone_from(&chat.draft);
    screen.open = Some(chat);
    screen.show_timeline();
    read(client, screen).await;
    Ok(())
}

/// Shows the newest message.
async fn follow(screen: &mut Screen) {
    screen.scroll = 0;
    if let Some(timeline) = screen.timeline.as_mut().filter(|timeline| timeline.has_newer()) {
        if let Err(error) = timeline.jump(Target::Newest).await {
            screen.note = text(error);
        }
        screen.show_timeline();
    }
}

/// Scrolls up by a page, and reads older messages. Those of a channel come from the server, if this device lacks them.
pub(super) async fn older(client: &Client, screen: &mut Screen) {
    screen.scroll = screen.scroll.saturating_add(screen.height.max(1));
    let (Some(timeline), Some(open)) = (&mut screen.timeline, &screen.open) else { return };
    let done = match timeline.has_older() {
        true => timeline.older(PAGE).await.map(drop),
        // The timeline reports the messages that were read.
        false if open.id.is_channel() => client.load_history(open.id, PAGE).await.map(drop),
        false => Ok(()),
    };
    if let Err(error) = done {
        screen.note = text(error);
    }
    screen.show_timeline();
}

/// Scrolls down by a page, and reads newer messages at the end.
pub(super) async fn newer(client: &Client, screen: &mut Screen) {
    let is_at_end = screen.scroll == 0;
    screen.scroll = screen.scroll.saturating_sub(screen.height.max(1));
    if let Some(timeline) = screen.timeline.as_mut().filter(|timeline| is_at_end && timeline.has_newer()) {
        if let Err(error) = timeline.newer(PAGE).await {
            screen.note = text(error);
        }
        let before = screen.line_count();
        screen.show_timeline();
        // The next page is shown.
        let below = screen.line_count().saturating_sub(before);
        screen.scroll = below.saturating_sub(screen.height.max(1));
    }
    read(client, screen).await;
}

/// Shows the newest message of the open conversation.
pub(super) async fn newest(client: &Client, screen: &mut Screen) {
    follow(screen).await;
    read(client, screen).await;
}

/// Reports the open conversation as read while its newest line is visible.
pub(super) async fn read(client: &Client, screen: &mut Screen) {
    let (Some(open), Some(timeline), 0) = (&screen.open, &screen.timeline, screen.scroll) else { return };
    let newest = timeline.items().iter().rev().map(|item| item.message.seq).find(|seq| *seq > 0);
    if let Some(seq) = newest.filter(|_| open.unread > 0 && !timeline.has_newer()) {
        let _ = client.read(open.id, seq).await;
    }
}
