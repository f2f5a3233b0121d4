//! `chat --json`: one JSON command per input line, one JSON event per output line. `docs/cli.md` is the
//! contract.

mod line;

use std::time::Duration;

use chat_client::{
    Client, ConversationId, Error, ErrorKind, EventRecord, GroupAction, GroupInvitation, Handle, MessageId,
    MessageRef, Position, Recipient, SafetyNumber, SendRequest, Submission, UserId,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter, Stdout};
use tokio::sync::mpsc;

use self::line::{Line, Named};
use crate::commands::ends_session;
use crate::contacts::newest;
use crate::conversations::{of_conversation, of_found};
use crate::event_json::{self, error};
use crate::output::{ExitCode, Failure, escaped};
use crate::{Arguments, text};

/// Maximum length of an input line in bytes: the longest text with every byte escaped, plus the other fields.
const MAX_LINE: usize = 6 * 64 * 1024 + 64 * 1024;
/// Maximum number of sends that wait for their commit.
const PENDING: usize = 1024;

type Out = BufWriter<Stdout>;

/// Output of the task that reads the input.
enum Said {
    /// An answer, as a line of JSON.
    Line(String),
    /// An earlier event, written again because its `ref` was repeated.
    Again(Box<EventRecord>),
}

async fn write(out: &mut Out, line: &str) -> Result<(), Failure> {
    let written = async {
        out.write_all(escaped(line).as_bytes()).await?;
        out.write_all(b"\n").await
    };
    written.await.map_err(|error| Failure::of_output(&error))
}

async fn flush(out: &mut Out) -> Result<(), Failure> {
    out.flush().await.map_err(|error| Failure::of_output(&error))
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    // A program that keeps its own number would skip the events up to it: this profile is older, or another one.
    if let Some(after) = arguments.after.filter(|after| *after > client.last_event()) {
        let last = client.last_event();
        client.close().await;
        let message = format!(
            "--after {after} is above the last event of this profile, {last}: the profile is an older copy, or another one"
        );
        return Err(Failure::new(ExitCode::Failed, message));
    }
    let mut out = BufWriter::with_capacity(64 * 1024, tokio::io::stdout());
    let mut events = client.events_after(arguments.after);
    let ready = json!({
        "event": "ready", "user": client.handle().as_str(), "device": client.device().get()
    });
    write(&mut out, &ready.to_string()).await?;
    flush(&mut out).await?;

    let (lines, mut said) = mpsc::channel::<Said>(64);
    let input = tokio::spawn(read_input(client.clone(), lines));
    let mut input = std::pin::pin!(input);
    let mut open = true;
    let (mut end, mut unsent) = (None, false);
    loop {
        tokio::select! {
            biased;
            Some(said) = said.recv() => match said {
                Said::Line(line) => write(&mut out, &line).await?,
                // The stream has not reached this event yet and will write it in order. The program's cursor
                // must never pass an event that the program has not received.
                Said::Again(event) if event.number > Some(events.position()) => {}
                Said::Again(event) => write(&mut out, &event_json::line(&event)).await?,
            },
            next = events.next() => match next.map_err(text)? {
                Some(event) => {
                    write(&mut out, &event_json::line(&event)).await?;
                    if ends_session(&event.event) {
                        flush(&mut out).await?;
                        client.close().await;
                        return Err(Failure::new(ExitCode::Stopped, ""));
                    }
                }
                None => break,
            },
            _ = &mut input, if open => {
                open = false;
                end = Some(tokio::time::Instant::now() + Duration::from_secs(arguments.quit_after));
            }
            () = tokio::time::sleep(Duration::from_millis(20)), if end.is_some() => {
                let left = client.outbox_len().await.map_err(text)?;
                if left == 0 || end.is_some_and(|end| tokio::time::Instant::now() >= end) {
                    let last = client.last_event();
                    while events.position() < last {
                        let Some(event) = events.next().await.map_err(text)? else { break };
                        write(&mut out, &event_json::line(&event)).await?;
                    }
                    unsent = left > 0;
                    if unsent {
                        let message = format!("{left} messages wait in the outbox until the next start");
                        write(&mut out, &error("unsent", &message)).await?;
                    }
                    break;
                }
            }
        }
        // Flush once per batch. A line never waits for a later line.
        if said.is_empty() {
            flush(&mut out).await?;
        }
    }
    flush(&mut out).await?;
    client.close().await;
    if unsent { Err(Failure::new(ExitCode::Queued, "")) } else { Ok(()) }
}

/// Reads the input until its end or a `quit` command. Pauses while the outbox is full.
async fn read_input(client: Client, say: mpsc::Sender<Said>) {
    let mut input = BufReader::with_capacity(64 * 1024, tokio::io::stdin());
    let (pending, answers) = mpsc::channel(PENDING);
    let repeats = tokio::spawn(report(answers, say.clone()));
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut input, &mut line).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = say.send(Said::Line(error("bad_line", "the line is too long"))).await;
                continue;
            }
            Err(()) => break,
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(Line::Quit) => break,
            Ok(command) => {
                if let Err(said) = carry_out(&client, command, &pending, &say).await {
                    let _ = say.send(Said::Line(said)).await;
                }
            }
            Err(malformed) => {
                let _ = say.send(Said::Line(error("bad_line", &malformed.to_string()))).await;
            }
        }
    }
    drop(pending);
    let _ = repeats.await;
}

/// Reads one line. Returns `false` if the line was too long (it is skipped), and an error at the end of the
/// input.
async fn read_line(input: &mut BufReader<tokio::io::Stdin>, line: &mut Vec<u8>) -> Result<bool, ()> {
    let mut fits = true;
    loop {
        let buffer = input.fill_buf().await.map_err(drop)?;
        if buffer.is_empty() {
            return if line.is_empty() { Err(()) } else { Ok(fits) };
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        if line.len() + taken <= MAX_LINE {
            line.extend_from_slice(&buffer[..taken]);
        } else {
            fits = false;
        }
        input.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(fits);
        }
    }
}

/// A message that waits for its commit.
struct Sending {
    idempotency_key: Option<String>,
    submission: Submission,
}

/// Writes refusals, and the earlier events of a `ref` that was used before.
async fn report(mut sending: mpsc::Receiver<Sending>, say: mpsc::Sender<Said>) {
    while let Some(Sending { idempotency_key, submission }) = sending.recv().await {
        let lines = match submission.await {
            Ok(ticket) if ticket.is_repeated() => match ticket.events().await {
                Ok(events) => events.into_iter().map(|event| Said::Again(Box::new(event))).collect(),
                Err(failed) => vec![Said::Line(error("send", failed.what()))],
            },
            Ok(_) => Vec::new(),
            Err(failed) => vec![Said::Line(not_queued(idempotency_key.as_deref(), &failed))],
        };
        for line in lines {
            let _ = say.send(line).await;
        }
    }
}

/// Returns the line for a message that was not queued.
fn not_queued(key: Option<&str>, why: &Error) -> String {
    match why.kind() {
        ErrorKind::Invalid => refused(key, "too_long"),
        ErrorKind::Conflict => refused(key, "ref_reused"),
        ErrorKind::Denied => refused(key, "identity_changed"),
        _ => error("send", why.what()),
    }
}

fn refused(key: Option<&str>, reason: &str) -> String {
    let mut line = json!({"event": "refused", "reason": reason});
    if let Some(key) = key {
        line["ref"] = key.into();
    }
    line.to_string()
}

async fn carry_out(
    client: &Client,
    line: Line,
    pending: &mpsc::Sender<Sending>,
    say: &mpsc::Sender<Said>,
) -> Result<(), String> {
    let failed = |why: Error| error("failed", why.what());
    let closed = || error("failed", "the output is closed");
    match line {
        Line::Send { to, conversation, text, idempotency_key, reply_to, mentions, forwarded } => {
            let key = idempotency_key.as_deref();
            let to: Recipient = match (to, conversation) {
                (Some(to), _) => Handle::new(&to).map_err(|_| refused(key, "unknown_user"))?.into(),
                (None, Some(id)) => ConversationId::from_hex(&id).map_err(failed)?.into(),
                (None, None) => return Err(error("bad_line", "a user or a conversation is required")),
            };
            let mut request = SendRequest::text(text);
            if let Some(reply_to) = reply_to {
                // The reference is read in the conversation of the message.
                let any = ConversationId::own(client.user());
                request = request.reply_to(named(client, any, &reply_to).await?);
            }
            for user in resolve(client, mentions).await? {
                request = request.mention(user);
            }
            if forwarded {
                request = request.forwarded();
            }
            if let Some(key) = key {
                request = request.idempotency_key(key);
            }
            let submitted = client.submit(to, request).await;
            let submission = submitted.map_err(|why| not_queued(key, &why))?;
            pending.send(Sending { idempotency_key, submission }).await.map_err(|_| closed())
        }
        Line::Edit { conversation, message_id, text } => {
            let conversation = ConversationId::from_hex(&conversation).map_err(failed)?;
            let message = named(client, conversation, &Named { from: None, message_id }).await?;
            client.edit(message, text).await.map(drop).map_err(failed)
        }
        Line::Delete { conversation, message } => {
            let conversation = ConversationId::from_hex(&conversation).map_err(failed)?;
            let message = named(client, conversation, &message).await?;
            client.delete(message).await.map(drop).map_err(failed)
        }
        Line::React { conversation, message, emoji, remove } => {
            let conversation = ConversationId::from_hex(&conversation).map_err(failed)?;
            let message = named(client, conversation, &message).await?;
            let changed = match remove {
                false => client.react(message, emoji).await,
                true => client.unreact(message, emoji).await,
            };
            changed.map(drop).map_err(failed)
        }
        Line::Read { conversation, seq } => {
            let conversation = ConversationId::from_hex(&conversation).map_err(failed)?;
            client.read(conversation, seq).await.map_err(failed)
        }
        Line::Typing { to, conversation } => {
            let conversation = find(client, to, conversation).await?;
            client.typing(conversation).await.map_err(failed)
        }
        Line::Presence { users } => {
            let mut found = Vec::new();
            for user in users {
                found.push(client.resolve(&user).await.map_err(failed)?);
            }
            client.watch_presence(found).await.map_err(failed)
        }
        Line::PresenceAudience { audience } => {
            let before = client.presence_audience().await.map_err(failed)?;
            if let Some(audience) = audience.filter(|audience| *audience != before) {
                // An event reports it.
                return client.set_presence_audience(audience).await.map_err(failed);
            }
            let audience = before;
            let line = json!({"event": "presence_audience", "audience": audience});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::History { with, conversation, before, limit } => {
            let conversation = find(client, with, conversation).await?;
            let before = if before == 0 { None } else { Some(before) };
            let messages = client.history(conversation, before, limit.min(200)).await.map_err(failed)?;
            let shown: Vec<_> = messages.iter().map(event_json::of_history).collect();
            let line = json!({"event": "history", "conversation": conversation.to_hex(), "messages": shown});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Conversations => {
            let known = client.conversations().await.map_err(failed)?;
            let known: Vec<_> = known.iter().map(of_conversation).collect();
            let line = json!({"event": "conversations", "conversations": known});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Configure { with, conversation, edit } => {
            let conversation = find(client, with, conversation).await?;
            edit.apply(client, conversation).await.map_err(failed)
        }
        Line::Search { text, with, conversation, limit } => {
            let within = match (&with, &conversation) {
                (None, None) => None,
                _ => Some(find(client, with, conversation).await?),
            };
            let found = client.search(&text, within, limit.min(200)).await.map_err(failed)?;
            let found: Vec<_> = found.iter().map(of_found).collect();
            let line = json!({"event": "found", "text": text, "messages": found});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Accept { user, number } => {
            let user = client.resolve(&user).await.map_err(failed)?;
            let number = SafetyNumber::parse(&number).map_err(failed)?;
            client.accept_identity(user, &number).await.map_err(failed)
        }
        Line::SafetyNumber { user } => {
            let id = client.resolve(&user).await.map_err(failed)?;
            let number = client.safety_number(id).await.map_err(failed)?.to_string();
            let line = json!({"event": "safety_number", "user": user, "number": number});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Contact { user, decision } => {
            let id = client.resolve(&user).await.map_err(failed)?;
            decision.make(client, id).await.map_err(failed)
        }
        Line::Contacts => {
            let contacts = client.contacts().await.map_err(failed)?;
            let contacts: Vec<_> = contacts.iter().map(event_json::of_contact).collect();
            let line = json!({"event": "contacts", "contacts": contacts});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::ClearHistory { user } => {
            let conversation = find(client, Some(user.clone()), None).await?;
            client.clear_history(conversation).await.map_err(failed)?;
            let line = json!({"event": "history_cleared", "user": user});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::GroupCreate { name, users } => {
            let users = resolve(client, users).await?;
            let group = client.create_group(&name, &users).await.map_err(failed)?;
            let line = json!({"event": "group_created", "conversation": group.to_hex(), "name": name});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::GroupJoin { invitation } => {
            let invitation: GroupInvitation = match ConversationId::from_hex(&invitation) {
                Ok(group) => GroupInvitation::new(group, None, None).map_err(failed)?,
                Err(_) => invitation.parse().map_err(failed)?,
            };
            client.join_group(&invitation).await.map(drop).map_err(failed)
        }
        Line::ChannelCreate { name } => {
            let channel = client.create_channel(&name).await.map_err(failed)?;
            let link = client.group(channel).await.map_err(failed)?.link.and_then(|link| link.invitation);
            let line = json!({
                "event": "channel_created", "conversation": channel.to_hex(), "name": name,
                "invitation": link.map(|link| link.to_string()),
            });
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Subscribe { invitation } => {
            let invitation: GroupInvitation = invitation.parse().map_err(failed)?;
            client.subscribe(&invitation).await.map_err(failed)?;
            let line = json!({"event": "subscribed", "conversation": invitation.group().to_hex()});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Unsubscribe { conversation } => {
            let channel = ConversationId::from_hex(&conversation).map_err(failed)?;
            client.unsubscribe(channel).await.map_err(failed)?;
            let line = json!({"event": "unsubscribed", "conversation": conversation});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::RenewChannelKey { conversation } => {
            let channel = ConversationId::from_hex(&conversation).map_err(failed)?;
            client.renew_channel_key(channel).await.map(drop).map_err(failed)
        }
        Line::LoadHistory { conversation, limit } => {
            let channel = ConversationId::from_hex(&conversation).map_err(failed)?;
            let count = client.load_history(channel, limit).await.map_err(failed)?;
            let line = json!({"event": "history_loaded", "conversation": conversation, "messages": count});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Receipts { conversation, seq } => {
            let group = ConversationId::from_hex(&conversation).map_err(failed)?;
            let receipts = client.receipts(Position::new(group, seq)).await.map_err(failed)?;
            let members: Vec<_> = receipts.iter().map(event_json::of_receipt).collect();
            let line =
                json!({"event": "receipts", "conversation": conversation, "seq": seq, "members": members});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Open { conversation } => {
            let conversation =
                conversation.map(|id| ConversationId::from_hex(&id)).transpose().map_err(failed)?;
            client.open_conversation(conversation).await.map_err(failed)
        }
        Line::GroupLink { conversation, needs_approval } => {
            let group = ConversationId::from_hex(&conversation).map_err(failed)?;
            let (link, _) = client.create_group_link(group, needs_approval).await.map_err(failed)?;
            let line = json!({
                "event": "group_link_created", "conversation": conversation, "invitation": link.to_string()
            });
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::GroupChange { conversation, action, users, role, edit, policy } => {
            let group = ConversationId::from_hex(&conversation).map_err(failed)?;
            if action == "edit" {
                return edit.apply(client, group).await.map(drop).map_err(failed);
            }
            let users = resolve(client, users).await?;
            let action = match (action.as_str(), role, &users[..]) {
                ("add", ..) => GroupAction::Add(users),
                ("invite", ..) => GroupAction::Invite(users),
                ("remove_link", ..) => GroupAction::SetLink(None),
                ("set_policy", ..) => match policy {
                    Some(policy) => GroupAction::SetPolicy(policy.policy()),
                    None => return Err(error("bad_line", "a policy is required")),
                },
                ("remove", ..) => GroupAction::Remove { users, ban: false },
                ("ban", ..) => GroupAction::Remove { users, ban: true },
                ("unban", ..) => GroupAction::Unban(users),
                ("leave", ..) => GroupAction::Leave,
                ("set_role", Some(role), [user]) => GroupAction::SetRole(*user, role.role()),
                ("set_role", ..) => return Err(error("bad_line", "a role and one user are required")),
                _ => return Err(error("bad_line", "an unknown action")),
            };
            client.change_group(group, action).await.map(drop).map_err(failed)
        }
        Line::Group { conversation } => {
            let group = ConversationId::from_hex(&conversation).map_err(failed)?;
            let line = event_json::of_group(&client.group(group).await.map_err(failed)?);
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Report { user, messages, note } => {
            let id = client.resolve(&user).await.map_err(failed)?;
            let messages = newest(client, id, messages).await.map_err(failed)?;
            client.report(&messages, &note).await.map_err(failed)?;
            let line = json!({"event": "reported", "user": user, "messages": messages.len()});
            say.send(Said::Line(line.to_string())).await.map_err(|_| closed())
        }
        Line::Token { token } => client.set_token(&token).await.map_err(failed),
        Line::Reincarnate => client.reincarnate().await.map_err(failed),
        Line::Quit => Ok(()),
    }
}

/// Returns the message that a line names.
async fn named(client: &Client, conversation: ConversationId, named: &Named) -> Result<MessageRef, String> {
    let failed = |why: Error| error("failed", why.what());
    let user = match &named.from {
        None => client.user(),
        Some(from) => match UserId::from_hex(from) {
            Ok(user) => user,
            Err(_) => client.resolve(from).await.map_err(failed)?,
        },
    };
    let id = MessageId::from_hex(&named.message_id.replace('-', "")).map_err(failed)?;
    Ok(MessageRef { conversation, user, id })
}

async fn resolve(client: &Client, users: Vec<String>) -> Result<Vec<UserId>, String> {
    let mut found = Vec::with_capacity(users.len());
    for user in users {
        found.push(client.resolve(&user).await.map_err(|why| error("failed", why.what()))?);
    }
    Ok(found)
}

async fn find(
    client: &Client,
    user: Option<String>,
    conversation: Option<String>,
) -> Result<ConversationId, String> {
    let failed = |why: Error| error("failed", why.what());
    match (user, conversation) {
        (_, Some(conversation)) => ConversationId::from_hex(&conversation).map_err(failed),
        (Some(user), None) => Ok(client.conversation_with(client.resolve(&user).await.map_err(failed)?)),
        (None, None) => Err(error("bad_line", "a user or a conversation is required")),
    }
}
