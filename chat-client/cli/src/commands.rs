//! The subcommands.

use std::collections::VecDeque;
use std::time::Duration;

use chat_client::{
    Client, Content, DeviceId, Error, ErrorKind, Event, Events, Handle, LinkCode, SafetyNumber, Status,
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::event_json::{problem, unreadable_reason};
use crate::{Arguments, text};

/// Maximum time that a command waits for the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of lines that `send -` submits before it waits for the first of them.
const IN_FLIGHT: usize = 1024;

pub(crate) async fn register(arguments: &Arguments, name: &str, replace: bool) -> Result<(), String> {
    let config = arguments.config()?;
    let opened = if replace {
        Client::replace(config, name).await
    } else {
        Client::register_if_new(config, name).await
    };
    let client = opened.map_err(text)?;
    ready(&client).await?;
    client.close().await;
    println!("registered {name}");
    Ok(())
}

/// Waits until the server has the prekeys of this device, so that other users can send to it.
async fn ready(client: &Client) -> Result<(), String> {
    let ready = tokio::time::timeout(REQUEST_TIMEOUT, client.ready()).await;
    ready.map_err(|_| "the server did not answer".to_owned())?.map_err(text)
}

pub(crate) async fn login(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    ready(&client).await?;
    println!("logged in as {}", client.handle().as_str());
    client.close().await;
    Ok(())
}

pub(crate) async fn accept(arguments: &Arguments, user: &str, number: &str) -> Result<(), String> {
    let number = SafetyNumber::parse(number).map_err(text)?;
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    client.accept_identity(id, &number).await.map_err(text)?;
    println!("accepted the keys of {user}");
    client.close().await;
    Ok(())
}

pub(crate) async fn reincarnate(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    client.reincarnate().await.map_err(text)?;
    ready(&client).await?;
    println!("this profile continues; a copy of it stops");
    client.close().await;
    Ok(())
}

pub(crate) async fn link(arguments: &Arguments) -> Result<(), String> {
    let pending = Client::link(arguments.config()?).await.map_err(text)?;
    println!("On your first device type:\n  chat link {}", pending.code());
    let client = pending.approved().await.map_err(text)?;
    ready(&client).await?;
    println!("linked as device {} of {}", client.device().get(), client.handle().as_str());
    client.close().await;
    Ok(())
}

pub(crate) async fn approve(arguments: &Arguments, code: &str) -> Result<(), String> {
    let code = LinkCode::parse(code).map_err(text)?;
    let client = arguments.open().await?;
    ready(&client).await?;
    let device = retry(|| client.approve_link(&code)).await?;
    println!("linked device {}", device.get());
    client.close().await;
    Ok(())
}

/// Retries a request while there is no connection, for at most [`REQUEST_TIMEOUT`].
async fn retry<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> Result<T, String> {
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

pub(crate) async fn send(arguments: &Arguments, user: &str, what: &str) -> Result<(), String> {
    let to = Handle::new(user).map_err(text)?;
    let client = arguments.open().await?;
    let mut tickets = Vec::new();
    if what == "-" {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut submitted = VecDeque::new();
        while let Some(line) = lines.next_line().await.map_err(|e| e.to_string())? {
            submitted.push_back(client.submit(&to, line).await.map_err(text)?);
            if submitted.len() > IN_FLIGHT
                && let Some(first) = submitted.pop_front()
            {
                tickets.push(first.await.map_err(text)?);
            }
        }
        for submission in submitted {
            tickets.push(submission.await.map_err(text)?);
        }
    } else {
        tickets.push(client.send(&to, what).await.map_err(text)?);
    }
    let (sent, mut done, mut refused) = (tickets.len(), 0, 0);
    let mut events = client.events_after(Some(client.last_event()));
    for ticket in &tickets {
        let outcome = tokio::select! {
            outcome = ticket.stored() => Some(outcome),
            () = print_problems(&mut events) => None,
            () = tokio::time::sleep(REQUEST_TIMEOUT) => None,
        };
        match outcome {
            Some(Ok(_)) => done += 1,
            Some(Err(error)) => {
                let Status::Refused(reason) = ticket.status().await.map_err(text)? else {
                    return Err(text(error));
                };
                (done, refused) = (done + 1, refused + 1);
                eprintln!("chat: refused: {}: {}", reason.name(), text(error));
            }
            None => {
                println!("{} of {sent} wait in the outbox until the server is reachable", sent - done);
                client.close().await;
                return Ok(());
            }
        }
    }
    client.close().await;
    if refused > 0 { Err(format!("{refused} of {sent} messages refused")) } else { Ok(()) }
}

/// Prints problems of the connection; ends with the client.
async fn print_problems(events: &mut Events) {
    while let Ok(Some(record)) = events.next().await {
        if let Some((_, message)) = problem(&record.event) {
            eprintln!("chat: {message}");
        }
    }
}

pub(crate) async fn listen(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    let mut events = client.events_after(None);
    loop {
        let next = tokio::select! {
            next = events.next() => next.map_err(text)?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(record) = next else { break };
        match &record.event {
            Event::Message(message) => println!("{}: {}", message.sender, shown(message.content())),
            Event::Recovered(message) => {
                println!("{} (earlier): {}", message.sender, shown(message.content()))
            }
            Event::IdentityChanged { user } => {
                println!("* the keys of {user} changed: compare safety numbers")
            }
            event => {
                if let Some((_, message)) = problem(event) {
                    eprintln!("chat: {message}");
                }
            }
        }
    }
    client.close().await;
    Ok(())
}

/// Returns the content of a message for a line of the terminal.
pub(crate) fn shown(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        content => format!("[cannot be read: {}]", unreadable_reason(content)),
    }
}

pub(crate) async fn history(arguments: &Arguments, user: &str, limit: usize) -> Result<(), String> {
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    let messages = client.history(client.conversation_with(id), None, limit).await.map_err(text)?;
    for message in messages.into_iter().rev() {
        println!("{:>6} {}: {}", message.seq, message.sender, shown(message.content()));
    }
    client.close().await;
    Ok(())
}

pub(crate) async fn devices(arguments: &Arguments, remove: Option<u8>) -> Result<(), String> {
    let client = arguments.open().await?;
    ready(&client).await?;
    if let Some(device) = remove {
        let device = DeviceId::new(u32::from(device)).map_err(text)?;
        retry(|| client.unlink(device)).await?;
    }
    for device in retry(|| client.devices()).await? {
        let this = if device == client.device() { " (this one)" } else { "" };
        println!("device {}{this}", device.get());
    }
    client.close().await;
    Ok(())
}

pub(crate) async fn safety_number(arguments: &Arguments, user: &str) -> Result<(), String> {
    let client = arguments.open().await?;
    let user = retry(|| client.resolve(user)).await?;
    println!("{}", retry(|| client.safety_number(user)).await?);
    client.close().await;
    Ok(())
}
