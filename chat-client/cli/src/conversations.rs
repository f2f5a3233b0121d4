//! The list of conversations, their settings, and the search.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chat_client::{Client, Conversation, ConversationId, ConversationSetting, Message};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::commands::shown;
use crate::event_json::of_history;
use crate::output::{Failure, line, printable};
use crate::timer::{parse_time, time_text, timer};
use crate::{Arguments, text};

/// Settings of a conversation that change, as options and in `chat --json`.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
pub(crate) struct SettingsEdit {
    /// Mute it until this time, in milliseconds since 1970; 0 ends that.
    #[arg(long, value_name = "MILLISECONDS")]
    #[serde(default)]
    muted_until: Option<u64>,
    /// Move it to the archive, or back.
    #[arg(long, value_name = "true|false")]
    #[serde(default)]
    archived: Option<bool>,
    /// Keep it at the top, or not.
    #[arg(long, value_name = "true|false")]
    #[serde(default)]
    pinned: Option<bool>,
    /// Keep a text that is not sent yet; empty for none.
    #[arg(long)]
    #[serde(default)]
    draft: Option<String>,
    /// For all of its users: messages that are sent from now on disappear after this time, for example 30s, 5m, 12h, 7d;
    /// "off" ends that.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    #[serde(default)]
    disappear_after: Option<u64>,
}

impl SettingsEdit {
    pub(crate) async fn apply(self, client: &Client, id: ConversationId) -> chat_client::Result<()> {
        let until = |ms: u64| (ms > 0).then(|| UNIX_EPOCH.checked_add(Duration::from_millis(ms))).flatten();
        let settings = [
            self.muted_until.map(|ms| ConversationSetting::MutedUntil(until(ms))),
            self.archived.map(ConversationSetting::Archived),
            self.pinned.map(ConversationSetting::Pinned),
            self.draft.map(ConversationSetting::Draft),
        ];
        for setting in settings.into_iter().flatten() {
            client.change_setting(id, setting).await?;
        }
        if let Some(ms) = self.disappear_after {
            client.set_disappearing_timer(id, timer(ms)).await?;
        }
        Ok(())
    }
}

/// Returns the name that a conversation has in the list.
pub(crate) fn name_of(one: &Conversation) -> String {
    match (&one.name, &one.peer) {
        (Some(name), _) => printable(name),
        (None, Some(peer)) => peer.to_string(),
        (None, None) => one.id.to_hex(),
    }
}

/// Returns the conversation with this name or id: of a group, or with a user.
async fn find(client: &Client, name: &str) -> Result<ConversationId, Failure> {
    if let Ok(id) = ConversationId::from_hex(name) {
        return Ok(id);
    }
    let known = client.conversations().await.map_err(text)?;
    let found: Vec<_> = known.iter().filter(|one| name_of(one) == name).collect();
    match &found[..] {
        [one] => Ok(one.id),
        [] => Err(format!("there is no conversation {name}").into()),
        _ => Err(format!("several conversations have the name {name}: pass the id").into()),
    }
}

/// Prints the conversations of this device.
pub(crate) async fn list(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    for one in client.conversations().await.map_err(text)? {
        let marks = [
            (one.unread > 0).then(|| format!("{} unread", one.unread)),
            (one.mentions > 0).then(|| format!("{} mentions", one.mentions)),
            one.is_pinned.then(|| "pinned".into()),
            one.is_archived.then(|| "archived".into()),
            one.muted_until.is_some_and(|until| until > SystemTime::now()).then(|| "muted".into()),
            one.disappearing_timer.map(|after| format!("disappear after {}", time_text(after))),
            (!one.draft.is_empty()).then(|| format!("draft: {}", printable(&one.draft))),
        ];
        let marks: Vec<String> = marks.into_iter().flatten().collect();
        line(format!("{} {} {}", one.id.to_hex(), name_of(&one), marks.join(", ")).trim_end().to_owned())?;
    }
    client.close().await;
    Ok(())
}

/// Changes settings of a conversation.
pub(crate) async fn configure(arguments: &Arguments, name: &str, edit: SettingsEdit) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let id = find(&client, name).await?;
    let is_sent = edit.disappear_after.is_some();
    edit.apply(&client, id).await.map_err(text)?;
    if is_sent {
        // The other settings travel with the next start.
        client.drained().await.map_err(text)?;
    }
    client.close().await;
    Ok(())
}

/// Prints the messages of this device that contain all these words.
pub(crate) async fn search(
    arguments: &Arguments,
    words: &str,
    within: Option<&str>,
    limit: usize,
) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let within = match within {
        Some(name) => Some(find(&client, name).await?),
        None => None,
    };
    let known = client.conversations().await.map_err(text)?;
    for message in client.search(words, within, limit).await.map_err(text)? {
        line(found_line(&known, &message))?;
    }
    client.close().await;
    Ok(())
}

/// Returns a message that a search found, as a line.
pub(crate) fn found_line(known: &[Conversation], message: &Message) -> String {
    let conversation = known.iter().find(|one| one.id == message.conversation);
    let place = match conversation.filter(|one| one.id.has_roster()) {
        Some(group) => format!("{} {}", name_of(group), message.seq),
        None => message.seq.to_string(),
    };
    format!("{place} {}: {}", message.sender, shown(message.content()))
}

/// Returns a conversation as `chat --json` writes it.
pub(crate) fn of_conversation(one: &Conversation) -> Value {
    let muted_until = one.muted_until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
    json!({
        "conversation": one.id.to_hex(), "name": one.name, "user": one.peer.as_ref().map(ToString::to_string),
        "unread": one.unread, "mentions": one.mentions, "read": one.read,
        "muted_until": muted_until.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        "archived": one.is_archived, "pinned": one.is_pinned, "draft": one.draft,
        "disappear_after": one.disappearing_timer.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        "last_message": one.last_message.as_ref().map(of_history)
    })
}

/// Returns a message that a search found, as `chat --json` writes it.
pub(crate) fn of_found(message: &Message) -> Value {
    let mut value = of_history(message);
    value["conversation"] = message.conversation.to_hex().into();
    value
}
