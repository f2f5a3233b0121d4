//! A program that is killed while it handles events, and misses none: `resume_after_kill URL`. It handles one message and
//! then ends without a warning, as after `kill -9`. Start it again and again: each message is printed, in order; the one
//! that was printed but not marked as handled is printed twice.
#![allow(clippy::print_stdout)] // a program writes to the standard output

use chat_client::prelude::*;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "ws://127.0.0.1:7777".into());
    let config = ClientConfig::new(&url, "archive", chat_signal::suite())?;
    let client = Client::register_if_new(config, "archive").await?;
    let mut events = client.events("archive").await?;
    let mut handled = 0;
    while let Some(record) = events.next().await? {
        if let Event::Message(message) = &record.event {
            println!("{}: {}", message.seq, message.text().unwrap_or("[not a text]"));
            if handled == 1 {
                std::process::abort();
            }
            handled += 1;
        }
        events.handled(&record).await?;
    }
    Ok(())
}
