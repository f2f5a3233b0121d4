//! The subcommands.

use std::collections::VecDeque;
use std::time::Duration;

use chat_client::{
    Client, Content, DeviceId, Error, ErrorKind, Event, Events, GroupInvitation, Handle, LinkCode,
    SafetyNumber, Status, Ticket,
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::event_json::{problem, unreadable_reason};
use crate::group_change::change_text;
use crate::output::{ExitCode, Failure, line, printable};
use crate::timer::timer_text;
use crate::{Arguments, text};

/// Maximum time that a command waits for the server.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of lines that `send -` submits before it waits for the first of them.
const IN_FLIGHT: usize = 1024;

pub(crate) async fn register(arguments: &Arguments, name: &str, replace: bool) -> Result<(), Failure> {
    let config = arguments.config()?;
    let opened = if replace {
        Client::replace(config, name).await
    } else {
        Client::register_if_new(config, name).await
    };
    let client = opened.map_err(text)?;
    ready(&client).await?;
    client.close().await;
    line(format!("registered {name}"))?;
    Ok(())
}

/// Waits until the server has the prekeys of this device, so that other users can send to it.
pub(crate) async fn ready(client: &Client) -> Result<(), String> {
    let ready = tokio::time::timeout(REQUEST_TIMEOUT, client.ready()).await;
    ready.map_err(|_| "the server did not answer".to_owned())?.map_err(text)
}

pub(crate) async fn login(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    line(format!("logged in as {}", client.handle().as_str()))?;
    client.close().await;
    Ok(())
}

pub(crate) async fn accept(arguments: &Arguments, user: &str, number: &str) -> Result<(), Failure> {
    let number = SafetyNumber::parse(number).map_err(text)?;
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    client.accept_identity(id, &number).await.map_err(text)?;
    line(format!("accepted the keys of {user}"))?;
    client.close().await;
    Ok(())
}

/// Deletes the account and its profile.
pub(crate) async fn delete_account(arguments: &Arguments, handle: &str) -> Result<(), Failure> {
    let client = arguments.open().await?;
    if client.handle().as_str() != handle {
        let own = client.handle().as_str();
        return Err(format!("the account of this profile is {own}: nothing was deleted").into());
    }
    ready(&client).await?;
    retry(|| client.delete_account()).await?;
    client.close().await;
    let profile = arguments.profile_directory()?;
    std::fs::remove_dir_all(&profile).map_err(|error| format!("{}: {error}", profile.display()))?;
    line(format!("deleted the account of {handle}"))?;
    Ok(())
}

pub(crate) async fn reincarnate(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    client.reincarnate().await.map_err(text)?;
    ready(&client).await?;
    line("this profile continues; a copy of it stops")?;
    client.close().await;
    Ok(())
}

pub(crate) async fn link(arguments: &Arguments) -> Result<(), Failure> {
    let pending = Client::link(arguments.config()?).await.map_err(text)?;
    line(format!("On your first device type:\n  chat link {}", pending.code()))?;
    let client = pending.approved().await.map_err(text)?;
    ready(&client).await?;
    line(format!("linked as device {} of {}", client.device().get(), client.handle().as_str()))?;
    print_account(&client).await?;
    client.close().await;
    Ok(())
}

pub(crate) async fn approve(arguments: &Arguments, code: &str) -> Result<(), Failure> {
    let code = LinkCode::parse(code).map_err(text)?;
    let client = arguments.open().await?;
    ready(&client).await?;
    let device = retry(|| client.approve_link(&code)).await?;
    line(format!("linked device {}", device.get()))?;
    print_account(&client).await?;
    client.close().await;
    Ok(())
}

/// Prints the safety number of the account itself: both devices of a link show the same one.
async fn print_account(client: &Client) -> Result<(), Failure> {
    let number = retry(|| client.safety_number(client.user())).await?;
    line(format!("safety number of the account, the same on both devices:\n  {number}"))?;
    Ok(())
}

/// Retries a request while there is no connection, for at most [`REQUEST_TIMEOUT`].
pub(crate) async fn retry<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> Result<T, String> {
    let end = tokio::time::Instant::now() + REQUEST_TIMEOUT;
    loop {
        match ask().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && tokio::time::Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            outcome => return outcome.map_err(text),
        }
    }
}

pub(crate) async fn send(arguments: &Arguments, user: &str, what: &str) -> Result<(), Failure> {
    let to = Handle::new(user).map_err(text)?;
    let client = arguments.open().await?;
    let (tickets, invalid) = if what == "-" {
        send_input(&client, &to).await?
    } else {
        (vec![client.send(&to, what).await.map_err(not_sent)?], 0)
    };
    let outcome = outcome(&client, &tickets, Duration::from_secs(arguments.quit_after)).await;
    client.close().await;
    outcome?;
    match invalid {
        0 => Ok(()),
        invalid => Err(format!("{invalid} lines were not sent").into()),
    }
}

/// Sends each line of the input. Returns the tickets, and the number of lines that cannot be sent.
async fn send_input(client: &Client, to: &Handle) -> Result<(Vec<Ticket>, usize), Failure> {
    let mut input = BufReader::new(tokio::io::stdin());
    let (mut tickets, mut submitted, mut invalid) = (Vec::new(), VecDeque::new(), 0);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes).await.map_err(|e| format!("failed to read the input: {e}"))?
            == 0
        {
            break;
        }
        let content = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let submission = match std::str::from_utf8(content.strip_suffix(b"\r").unwrap_or(content)) {
            Ok(content) => client.submit(to, content).await.map_err(|error| (error.kind(), text(error))),
            Err(_) => Err((ErrorKind::Invalid, "the line is not UTF-8".to_owned())),
        };
        match submission {
            Ok(submission) => submitted.push_back(submission),
            // The line cannot be sent; the others can.
            Err((ErrorKind::Invalid, reason)) => {
                invalid += 1;
                eprintln!("chat: line {number} was not sent: {reason}");
            }
            Err((_, reason)) => return Err(reason.into()),
        }
        if submitted.len() > IN_FLIGHT
            && let Some(first) = submitted.pop_front()
        {
            tickets.push(first.await.map_err(text)?);
        }
    }
    for submission in submitted {
        tickets.push(submission.await.map_err(text)?);
    }
    Ok((tickets, invalid))
}

/// Waits until the messages are stored. Returns a failure if a message is refused, or is not stored in time.
async fn outcome(client: &Client, tickets: &[Ticket], timeout: Duration) -> Result<(), Failure> {
    let (sent, mut done, mut refused) = (tickets.len(), 0, 0);
    let mut events = client.events_after(Some(client.last_event()));
    for ticket in tickets {
        let outcome = tokio::select! {
            outcome = ticket.stored() => Some(outcome),
            has_ended = print_problems(&mut events) => {
                if has_ended {
                    let left = sent - done;
                    let text = format!("the session ended: {left} of {sent} messages stay in the outbox");
                    return Err(Failure::new(ExitCode::Stopped, text));
                }
                None
            }
            () = tokio::time::sleep(timeout) => None,
        };
        match outcome {
            Some(Ok(_)) => done += 1,
            Some(Err(error)) => {
                let Status::Refused(reason) = ticket.status().await.map_err(text)? else {
                    return Err(text(error).into());
                };
                (done, refused) = (done + 1, refused + 1);
                eprintln!("chat: refused: {}: {}", reason.name(), printable(&text(error)));
            }
            None => {
                let left = sent - done;
                let text = format!("{left} of {sent} messages are not sent; they stay in the outbox");
                return Err(Failure::new(ExitCode::Queued, text));
            }
        }
    }
    match refused {
        0 => Ok(()),
        refused => Err(Failure::new(ExitCode::Refused, format!("{refused} of {sent} messages refused"))),
    }
}

/// Returns the failure of a message that was not queued.
fn not_sent(error: Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::Invalid | ErrorKind::Denied | ErrorKind::NotFound => ExitCode::Refused,
        _ => ExitCode::Failed,
    };
    Failure::new(code, text(error))
}

/// Prints problems of the connection. Ends with the session (`true`) or with the client.
async fn print_problems(events: &mut Events) -> bool {
    while let Ok(Some(record)) = events.next().await {
        if let Some((_, message)) = problem(&record.event) {
            eprintln!("chat: {}", printable(&message));
        }
        if ends_session(&record.event) {
            return true;
        }
    }
    false
}

pub(crate) async fn listen(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let mut events = client.events_after(None);
    loop {
        let next = tokio::select! {
            next = events.next() => next.map_err(text)?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(record) = next else { break };
        match &record.event {
            Event::Message(message) => {
                let request = if message.is_request { " (message request)" } else { "" };
                line(format!("{}{request}: {}", message.sender, shown(message.content())))?;
            }
            Event::Recovered(message) => {
                line(format!("{} (earlier): {}", message.sender, shown(message.content())))?;
            }
            Event::Gap { from_seq, to_seq, reason, .. } => {
                line(format!("* messages {from_seq} to {to_seq} are missing: {}", reason.name()))?;
            }
            Event::Integrity { violation, .. } => {
                line(format!(
                    "* messages were dropped, swapped or replaced on the way: {}",
                    violation.name()
                ))?;
            }
            Event::IdentityChanged { user } => {
                line(format!("* the keys of {user} changed: compare safety numbers"))?;
            }
            event => {
                if let Some((_, message)) = problem(event) {
                    eprintln!("chat: {}", printable(&message));
                }
                if ends_session(event) {
                    client.close().await;
                    return Err(Failure::new(ExitCode::Stopped, "the session ended"));
                }
            }
        }
    }
    client.close().await;
    Ok(())
}

/// Whether the client stays disconnected after this event, until it is started again.
pub(crate) const fn ends_session(event: &Event) -> bool {
    matches!(event, Event::TokenRequired | Event::UpdateRequired)
}

/// Returns a description of an invitation, or of the link of a group.
pub(crate) fn invitation_text(invitation: &GroupInvitation) -> String {
    if invitation.group().is_channel() {
        return match invitation.name() {
            Some(name) => format!("shares the channel {}: {invitation}", printable(name)),
            None => format!("shares a channel: {invitation}"),
        };
    }
    match (invitation.secret(), invitation.name()) {
        (Some(_), _) => format!("made the link {invitation}"),
        (None, Some(name)) => {
            format!("invites you to the group {}, {}", printable(name), invitation.group().to_hex())
        }
        (None, None) => format!("invites you to the group {}", invitation.group().to_hex()),
    }
}

/// Returns the content of a message for a line of the terminal.
pub(crate) fn shown(content: &Content) -> String {
    match content {
        Content::Text(text) => printable(text),
        Content::GroupChanged { action, users, profile } => {
            format!("[{}]", printable(&change_text(action, users, profile.as_deref())))
        }
        Content::Deleted => "[deleted]".to_owned(),
        Content::Invitation(invitation) => format!("[{}]", invitation_text(invitation)),
        Content::DisappearingTimer(after) => format!("[{}]", timer_text(*after)),
        content => format!("[cannot be read: {}]", unreadable_reason(content)),
    }
}

pub(crate) async fn history(arguments: &Arguments, user: &str, limit: usize) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    let messages = client.history(client.conversation_with(id), None, limit).await.map_err(text)?;
    for message in messages.into_iter().rev() {
        line(format!("{:>6} {}: {}", message.seq, message.sender, shown(message.content())))?;
    }
    client.close().await;
    Ok(())
}

/// Deletes the messages of the conversation with a user that this device has received.
pub(crate) async fn clear_history(arguments: &Arguments, user: &str) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    let id = retry(|| client.resolve(user)).await?;
    retry(|| client.clear_history(client.conversation_with(id))).await?;
    line(format!("cleared the conversation with {user}"))?;
    client.close().await;
    Ok(())
}

pub(crate) async fn devices(arguments: &Arguments, remove: Option<u8>) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    if let Some(device) = remove {
        let device = DeviceId::new(u32::from(device)).map_err(text)?;
        retry(|| client.unlink(device)).await?;
    }
    for device in retry(|| client.devices()).await? {
        let this = if device == client.device() { " (this one)" } else { "" };
        line(format!("device {}{this}", device.get()))?;
    }
    client.close().await;
    Ok(())
}

pub(crate) async fn safety_number(arguments: &Arguments, user: &str) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let user = retry(|| client.resolve(user)).await?;
    line(retry(|| client.safety_number(user)).await?)?;
    client.close().await;
    Ok(())
}
