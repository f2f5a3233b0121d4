//! A test with a server and two clients in the process of the test.
#![allow(missing_docs)]

use chat_client::prelude::*;
use chat_testing::TestServer;

#[tokio::test]
async fn bob_receives_what_alice_sends() -> Result<()> {
    let server = TestServer::start().await?;
    let (alice, bob) = (server.client("alice").await?, server.client("bob").await?);
    alice.send(bob.user(), "hello").await?;
    assert_eq!(server.next_message(&bob).await?.text(), Some("hello"));
    Ok(())
}
