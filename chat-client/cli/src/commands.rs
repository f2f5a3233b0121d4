//! The subcommands.

use std::time::Duration;

use chat_client::event::Event;
use chat_client::linking::LinkCode;
use chat_client::{Client, Profile};
use chat_core::replica::Recipient;
use chat_core::{ErrorKind, Handle, UserId};
use chat_signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{Arguments, text};

/// Maximum time that a command waits for the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

fn handle(name: &str) -> Result<Handle, String> {
    Handle::new(name).map_err(text)
}

pub(crate) async fn register(arguments: &Arguments, name: &str, replace: bool) -> Result<(), String> {
    let (handle, dialer) = (handle(name)?, arguments.dialer()?);
    let token = arguments.token.clone().unwrap_or_default();
    let mut suite = Signal::new();
    let opened = if replace {
        Profile::replace(arguments.profile()?, &dialer, &mut suite, &handle, &token).await
    } else {
        Profile::register(arguments.profile()?, &dialer, &mut suite, &handle, &token).await
    };
    opened.map_err(text)?;
    // Once connected, the client uploads its prekeys. From then on other users can send to this account.
    let client = arguments.open().await?;
    connected(&client).await?;
    wait_until_reachable(&client).await;
    client.close().await;
    println!("registered {name}");
    Ok(())
}

/// Waits a short time so that the first prekeys reach the server.
async fn wait_until_reachable(client: &Client) {
    for _ in 0..50 {
        if client.devices(client.user()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
}

pub(crate) async fn login(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    connected(&client).await?;
    println!("logged in as {}", client.handle().as_str());
    client.close().await;
    Ok(())
}

pub(crate) async fn accept(arguments: &Arguments, user: &str, number: &str) -> Result<(), String> {
    let handle = handle(user)?;
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(&handle)).await?;
    client.accept(id, number).await.map_err(text)?;
    println!("accepted the keys of {user}");
    client.close().await;
    Ok(())
}

pub(crate) async fn reincarnate(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    client.reincarnate().await.map_err(text)?;
    connected(&client).await?;
    println!("this profile continues; a copy of it stops");
    client.close().await;
    Ok(())
}

/// Waits for a session with the server.
async fn connected(client: &Client) -> Result<(), String> {
    let mut events = client.events(None);
    let wait = async {
        loop {
            match events.next().await.map_err(text)?.event {
                Event::Connected => return Ok(()),
                Event::Error { message, .. } => return Err(message),
                _ => {}
            }
        }
    };
    tokio::time::timeout(REQUEST_TIMEOUT, wait).await.map_err(|_| "the server did not answer".to_owned())?
}

pub(crate) async fn link(arguments: &Arguments) -> Result<(), String> {
    let token = arguments.token.clone().unwrap_or_default();
    let pending = Profile::link(arguments.profile()?, &arguments.dialer()?, &mut Signal::new(), &token).await;
    let pending = pending.map_err(text)?;
    println!("On your first device type:\n  chat link {}", pending.code().to_text());
    pending.wait().await.map_err(text)?;
    let client = arguments.open().await?;
    connected(&client).await?;
    wait_until_reachable(&client).await;
    println!("linked as device {} of {}", client.device(), client.handle().as_str());
    client.close().await;
    Ok(())
}

pub(crate) async fn approve(arguments: &Arguments, code: &str) -> Result<(), String> {
    let code = LinkCode::parse(code).map_err(text)?;
    let client = arguments.open().await?;
    connected(&client).await?;
    let device = retry(|| client.approve(code.clone())).await?;
    println!("linked device {device}");
    client.close().await;
    Ok(())
}

/// Retries a request while there is no connection, for at most [`REQUEST_TIMEOUT`].
async fn retry<T, F: Future<Output = chat_core::Result<T>>>(ask: impl Fn() -> F) -> Result<T, String> {
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
    let to = Recipient::Handle(handle(user)?);
    let client = arguments.open().await?;
    let start = client.last_event();
    let mut sent = 0_u64;
    if what == "-" {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut answers = Vec::new();
        while let Some(line) = lines.next_line().await.map_err(|e| e.to_string())? {
            answers.push(client.send_later(to.clone(), line, None).await.map_err(text)?);
            sent += 1;
        }
        for answer in answers {
            answer.await.map_err(|_| "the client is closed")?.map_err(text)?;
        }
    } else {
        client.send(to, what, None).await.map_err(text)?;
        sent = 1;
    }
    let mut events = client.events(Some(start));
    let (mut done, mut refused) = (0, 0);
    while done < sent {
        let next = tokio::time::timeout(REQUEST_TIMEOUT, events.next()).await;
        let Ok(next) = next else {
            println!("{} of {sent} wait in the outbox until the server is reachable", sent - done);
            client.close().await;
            return Ok(());
        };
        match next.map_err(text)?.event {
            Event::Stored { .. } => done += 1,
            Event::Refused { reason, .. } => {
                (done, refused) = (done + 1, refused + 1);
                eprintln!("chat: refused: {reason}");
            }
            Event::Error { message, .. } => eprintln!("chat: {message}"),
            _ => {}
        }
    }
    client.close().await;
    if refused > 0 { Err(format!("{refused} of {sent} messages refused")) } else { Ok(()) }
}

pub(crate) async fn listen(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    let mut events = client.events(None);
    loop {
        let next = tokio::select! {
            next = events.next() => next.map_err(text)?,
            _ = tokio::signal::ctrl_c() => break,
        };
        match next.event {
            Event::Message { from, text, .. } => println!("{from}: {text}"),
            Event::Recovered { from, text, .. } => println!("{from} (earlier): {text}"),
            Event::Undecryptable { from, reason, .. } => println!("{from}: [cannot be read: {reason}]"),
            Event::IdentityChanged { user } => {
                println!("* the keys of {user} changed: compare safety numbers")
            }
            Event::Error { message, .. } => eprintln!("chat: {message}"),
            _ => {}
        }
    }
    client.close().await;
    Ok(())
}

pub(crate) async fn history(arguments: &Arguments, user: &str, limit: usize) -> Result<(), String> {
    let handle = handle(user)?;
    let client = arguments.open().await?;
    let user = retry(|| client.resolve(&handle)).await?;
    let messages = client.history(client.conversation_with(user), 0, limit).await.map_err(text)?;
    for message in messages.into_iter().rev() {
        let name = client.name_of(message.user).await.map_err(text)?;
        println!("{:>6} {name}: {}", message.seq, message.text.as_deref().unwrap_or("[cannot be read]"));
    }
    client.close().await;
    Ok(())
}

async fn own_devices(
    client: &Client,
    user: UserId,
) -> Result<chat_core::device_list::SignedDeviceList, String> {
    retry(|| client.devices(user)).await
}

pub(crate) async fn devices(arguments: &Arguments, remove: Option<u8>) -> Result<(), String> {
    let client = arguments.open().await?;
    connected(&client).await?;
    if let Some(device) = remove {
        retry(|| client.unlink(device)).await?;
    }
    let list = own_devices(&client, client.user()).await?;
    for entry in &list.list().devices {
        let this = if entry.device.get() == client.device() { " (this one)" } else { "" };
        println!("device {}{this}", entry.device.get());
    }
    client.close().await;
    Ok(())
}

pub(crate) async fn safety_number(arguments: &Arguments, user: &str) -> Result<(), String> {
    let handle = handle(user)?;
    let client = arguments.open().await?;
    let user = retry(|| client.resolve(&handle)).await?;
    println!("{}", retry(|| client.safety_number(user)).await?);
    client.close().await;
    Ok(())
}
