//! The subcommands for contacts, blocked users and reports.

use std::io::BufRead as _;

use chat_client::{Client, Content, ConversationId, Message, MessageId, UserId, open_reported};
use serde::Deserialize;

use crate::commands::{ready, retry, shown};
use crate::output::{Failure, line, printable};
use crate::{Arguments, ContactCommand, text};

/// A decision about a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    Accept,
    Block,
    Unblock,
}

impl Decision {
    pub(crate) async fn make(self, client: &Client, user: UserId) -> chat_client::Result<()> {
        match self {
            Self::Accept => client.accept(user).await,
            Self::Block => client.block(user).await,
            Self::Unblock => client.unblock(user).await,
        }
    }

    pub(crate) const fn done(self) -> &'static str {
        match self {
            Self::Accept => "accepted",
            Self::Block => "blocked",
            Self::Unblock => "unblocked",
        }
    }
}

pub(crate) async fn run(arguments: &Arguments, command: &ContactCommand) -> Result<(), Failure> {
    match command {
        ContactCommand::List => list(arguments).await,
        ContactCommand::Accept { user } => decide(arguments, user, Decision::Accept).await,
        ContactCommand::Block { user } => decide(arguments, user, Decision::Block).await,
        ContactCommand::Unblock { user } => decide(arguments, user, Decision::Unblock).await,
    }
}

async fn list(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    for contact in client.contacts().await.map_err(text)? {
        line(format!("{} {}", contact.user, contact.relation.name()))?;
    }
    client.close().await;
    Ok(())
}

async fn decide(arguments: &Arguments, user: &str, decision: Decision) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    retry(|| decision.make(&client, id)).await?;
    line(format!("{} {user}", decision.done()))?;
    client.close().await;
    Ok(())
}

/// Reports the newest messages of a user.
pub(crate) async fn report(
    arguments: &Arguments,
    user: &str,
    count: usize,
    note: &str,
) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let id = retry(|| client.resolve(user)).await?;
    let messages = newest(&client, id, count).await.map_err(text)?;
    if messages.is_empty() {
        return Err(format!("there are no messages of {user} to report").into());
    }
    retry(|| client.report(&messages, note)).await?;
    line(format!("reported {} messages of {user}", messages.len()))?;
    client.close().await;
    Ok(())
}

/// Returns the newest messages of another user that can be reported.
pub(crate) async fn newest(client: &Client, user: UserId, count: usize) -> chat_client::Result<Vec<Message>> {
    const SEARCHED: usize = 200;
    let mut messages = client.history(client.conversation_with(user), None, SEARCHED).await?;
    messages
        .retain(|one| one.sender.id == user && !one.archived && matches!(one.content(), Content::Text(_)));
    messages.truncate(count);
    Ok(messages)
}

#[derive(Deserialize)]
struct ReportLine {
    reported_by: String,
    user: String,
    conversation: String,
    note: String,
    messages: Vec<ReportedLine>,
}

#[derive(Deserialize)]
struct ReportedLine {
    seq: u64,
    id: String,
    body: String,
    body_key: String,
}

/// Prints the texts of the reports on the standard input, which a server wrote.
pub(crate) fn open_reports() -> Result<(), Failure> {
    for (number, input) in std::io::stdin().lock().lines().enumerate() {
        let malformed = |why: &dyn std::fmt::Display| format!("line {} is not a report: {why}", number + 1);
        let input = input.map_err(|e| format!("failed to read the input: {e}"))?;
        let report: ReportLine = serde_json::from_str(&input).map_err(|e| malformed(&e))?;
        let conversation = ConversationId::from_hex(&report.conversation).map_err(|e| malformed(&e))?;
        line(format!("{} reports {}: {}", report.reported_by, report.user, printable(&report.note)))?;
        for message in report.messages {
            let id = MessageId::from_hex(&message.id).map_err(|e| malformed(&e))?;
            let body = hex::decode(&message.body).map_err(|e| malformed(&e))?;
            let key = hex::decode(&message.body_key).ok().and_then(|key| key.try_into().ok());
            let key: [u8; 32] = key.ok_or_else(|| malformed(&"a key has 64 digits"))?;
            let content = open_reported(conversation, id, &body, &key);
            let content = content.as_ref().map_or_else(|| "[the key does not fit]".to_owned(), shown);
            line(format!("{:>6} {}: {content}", message.seq, report.user))?;
        }
    }
    Ok(())
}
