//! The shortest way to an encrypted message: `first_message URL FROM TO TEXT`.

use chat_client::prelude::*;

#[tokio::main]
async fn main() -> Result<()> {
    let [url, from, to, text] = arguments();
    let config = ClientConfig::new(&url, from.as_str(), chat_signal::suite())?;
    let client = Client::register_if_new(config, &from).await?;
    let ticket = client.send(Handle::new(&to)?, text).await?; // durably in the outbox
    ticket.stored().await?; // durable on the server
    client.close().await;
    Ok(())
}

fn arguments() -> [String; 4] {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().expect("usage: first_message URL FROM TO TEXT")
}
