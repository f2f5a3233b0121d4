//! A bot that answers each message with the same text, once: `echo_bot URL`. It continues where it stopped.

use chat_client::prelude::*;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "ws://127.0.0.1:7777".into());
    let config = ClientConfig::new(&url, "echo-bot", chat_signal::suite())?;
    let client = Client::register_if_new(config, "echo-bot").await?;
    let mut events = client.events("echo").await?;
    while let Some(record) = events.next().await? {
        if let Event::Message(message) = &record.event
            && let Content::Text(text) = message.content()
        {
            // If the bot is killed before `handled`, it receives the event again. The key makes the reply the same one.
            let key = format!("echo:{}", message.id.to_uuid_string());
            message.reply(&client, SendRequest::text(text).idempotency_key(key)).await?;
        }
        events.handled(&record).await?;
    }
    Ok(())
}
