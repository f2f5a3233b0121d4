//! `chat --json`: one JSON command per input line, one JSON event per output line. `docs/cli.md` is the
//! contract.

use std::time::Duration;

use chat_client::event::EventRecord;
use chat_client::{Client, Enqueued};
use chat_core::{ConversationId, Handle};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter, Stdout};
use tokio::sync::{mpsc, oneshot};

use crate::{Arguments, text};

/// Maximum length of an input line in bytes: the longest text with every byte escaped, plus the other fields.
const MAX_LINE: usize = 6 * 64 * 1024 + 64 * 1024;
/// Maximum number of sends that wait for their commit.
const PENDING: usize = 1024;

#[derive(Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
enum Line {
    Send {
        to: String,
        text: String,
        #[serde(rename = "ref")]
        idempotency_key: Option<String>,
    },
    Read {
        conversation: String,
        seq: u64,
    },
    Typing {
        #[serde(default)]
        to: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
    },
    Presence {
        users: Vec<String>,
    },
    History {
        #[serde(default)]
        with: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
        #[serde(default)]
        before: u64,
        #[serde(default = "fifty")]
        limit: usize,
    },
    Accept {
        user: String,
        number: String,
    },
    SafetyNumber {
        user: String,
    },
    Reincarnate,
    Quit,
}

const fn fifty() -> usize {
    50
}

type Out = BufWriter<Stdout>;

/// Output of the task that reads the input.
enum Said {
    /// An answer, as a line of JSON.
    Line(String),
    /// An earlier event, written again because its `ref` was repeated.
    Again(EventRecord),
}

async fn write(out: &mut Out, line: &str) -> Result<(), String> {
    let written = async {
        out.write_all(line.as_bytes()).await?;
        out.write_all(b"\n").await
    };
    written.await.map_err(|e| format!("failed to write the output: {e}"))
}

fn problem(reason: &str, message: &str) -> String {
    serde_json::json!({"event": "error", "reason": reason, "message": message}).to_string()
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    let mut out = BufWriter::with_capacity(64 * 1024, tokio::io::stdout());
    let mut events = client.events(arguments.after);
    let ready = serde_json::json!({
        "event": "ready", "user": client.handle().as_str(), "device": client.device()
    });
    write(&mut out, &ready.to_string()).await?;
    out.flush().await.map_err(|e| e.to_string())?;

    let (lines, mut said) = mpsc::channel::<Said>(64);
    let input = tokio::spawn(read_input(client.clone(), lines));
    let mut input = std::pin::pin!(input);
    let mut open = true;
    let mut end = None;
    loop {
        tokio::select! {
            biased;
            Some(said) = said.recv() => match said {
                Said::Line(line) => write(&mut out, &line).await?,
                // The stream has not reached this event yet and will write it in order. The program's cursor
                // must never pass an event that the program has not received.
                Said::Again(event) if event.n > events.cursor() => {}
                Said::Again(event) => write(&mut out, &event.to_json()).await?,
            },
            next = events.next() => write(&mut out, &next.map_err(text)?.to_json()).await?,
            _ = &mut input, if open => {
                open = false;
                end = Some(tokio::time::Instant::now() + Duration::from_secs(arguments.quit_after));
            }
            () = tokio::time::sleep(Duration::from_millis(20)), if end.is_some() => {
                let left = client.outbox_len().await.map_err(text)?;
                if left == 0 || end.is_some_and(|end| tokio::time::Instant::now() >= end) {
                    let last = client.last_event();
                    while events.cursor() < last {
                        write(&mut out, &events.next().await.map_err(text)?.to_json()).await?;
                    }
                    if left > 0 {
                        let message = format!("{left} messages wait in the outbox until the next start");
                        write(&mut out, &problem("unsent", &message)).await?;
                    }
                    break;
                }
            }
        }
        // Flush once per batch. A line never waits for a later line.
        if said.is_empty() {
            out.flush().await.map_err(|e| format!("failed to write the output: {e}"))?;
        }
    }
    out.flush().await.map_err(|e| e.to_string())?;
    client.close().await;
    Ok(())
}

/// Reads the input until its end or a `quit` command. Pauses while the outbox is full.
async fn read_input(client: Client, say: mpsc::Sender<Said>) {
    let mut input = BufReader::with_capacity(64 * 1024, tokio::io::stdin());
    let (pending, answers) = mpsc::channel(PENDING);
    let repeats = tokio::spawn(repeat(answers, say.clone()));
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut input, &mut line).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = say.send(Said::Line(problem("bad_line", "the line is too long"))).await;
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
            Err(error) => {
                let _ = say.send(Said::Line(problem("bad_line", &error.to_string()))).await;
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

/// Writes the earlier events of a `ref` that was used before.
async fn repeat(
    mut answers: mpsc::Receiver<oneshot::Receiver<chat_core::Result<Enqueued>>>,
    say: mpsc::Sender<Said>,
) {
    while let Some(answer) = answers.recv().await {
        let lines: Vec<Said> = match answer.await {
            Ok(Ok(queued)) => queued.repeated.into_iter().map(Said::Again).collect(),
            Ok(Err(error)) => vec![Said::Line(problem("send", error.what()))],
            Err(_) => return,
        };
        for line in lines {
            let _ = say.send(line).await;
        }
    }
}

async fn carry_out(
    client: &Client,
    line: Line,
    pending: &mpsc::Sender<oneshot::Receiver<chat_core::Result<Enqueued>>>,
    say: &mpsc::Sender<Said>,
) -> Result<(), String> {
    let failed = |error: chat_core::Error| problem("failed", error.what());
    match line {
        Line::Send { to, text, idempotency_key } => {
            let answer = client.send_to(&to, text, idempotency_key).await.map_err(failed)?;
            pending.send(answer).await.map_err(|_| problem("failed", "the client is closed"))
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
                found.push(client.resolve(&Handle::new(&user).map_err(failed)?).await.map_err(failed)?);
            }
            client.watch(found).await.map_err(failed)
        }
        Line::History { with, conversation, before, limit } => {
            let conversation = find(client, with, conversation).await?;
            let messages = client.history(conversation, before, limit.min(200)).await.map_err(failed)?;
            let mut shown = Vec::new();
            for message in messages {
                let from = client.name_of(message.user).await.map_err(failed)?;
                shown.push(serde_json::json!({
                    "from": from, "device": message.device, "seq": message.seq,
                    "message_id": message.id.to_uuid_string(), "text": message.text, "sent_at": message.sent_at
                }));
            }
            let line = serde_json::json!({
                "event": "history", "conversation": conversation.to_hex(), "messages": shown
            });
            say.send(Said::Line(line.to_string()))
                .await
                .map_err(|_| problem("failed", "the output is closed"))
        }
        Line::Accept { user, number } => {
            let user = client.resolve(&Handle::new(&user).map_err(failed)?).await.map_err(failed)?;
            client.accept(user, &number).await.map_err(failed)
        }
        Line::SafetyNumber { user } => {
            let id = client.resolve(&Handle::new(&user).map_err(failed)?).await.map_err(failed)?;
            let number = client.safety_number(id).await.map_err(failed)?;
            let line = serde_json::json!({"event": "safety_number", "user": user, "number": number});
            say.send(Said::Line(line.to_string()))
                .await
                .map_err(|_| problem("failed", "the output is closed"))
        }
        Line::Reincarnate => client.reincarnate().await.map_err(failed),
        Line::Quit => Ok(()),
    }
}

async fn find(
    client: &Client,
    user: Option<String>,
    conversation: Option<String>,
) -> Result<ConversationId, String> {
    let failed = |error: chat_core::Error| problem("failed", error.what());
    match (user, conversation) {
        (_, Some(conversation)) => ConversationId::from_hex(&conversation).map_err(failed),
        (Some(user), None) => {
            let user = client.resolve(&Handle::new(&user).map_err(failed)?).await.map_err(failed)?;
            Ok(client.conversation_with(user))
        }
        (None, None) => Err(problem("bad_line", "a user or a conversation is required")),
    }
}
