//! Two users in one process, with Signal encryption: ticks, read receipts and safety numbers.
#![allow(clippy::print_stdout)] // a program writes to the standard output

use chat_client::prelude::*;
use chat_testing::TestServer;

#[tokio::main]
async fn main() -> Result<()> {
    let server = TestServer::start().await?;
    let alice = server.client_with("alice", chat_signal::suite()).await?;
    let bob = server.client_with("bob", chat_signal::suite()).await?;

    let ticket = alice.send(bob.user(), "hello Bob").await?;
    println!("stored at {}", ticket.stored().await?.seq);
    let message = server.next_message(&bob).await?;
    println!("Bob received: {}", message.text().unwrap_or("[not a text]"));
    // Until Bob accepts or answers, the message is a request, and Alice learns only that it is stored.
    assert!(message.is_request);
    bob.accept(alice.user()).await?;
    ticket.delivered().await?;
    bob.read(message.conversation, message.seq).await?;
    ticket.read().await?;
    println!("Bob has read it");

    message.reply(&bob, "hello Alice").await?;
    println!("Alice received: {}", server.next_message(&alice).await?.text().unwrap_or("[not a text]"));

    let (of_alice, of_bob) = (alice.safety_number(bob.user()).await?, bob.safety_number(alice.user()).await?);
    assert_eq!(of_alice, of_bob, "there is a man in the middle");
    println!("safety number: {of_alice}");
    Ok(())
}
