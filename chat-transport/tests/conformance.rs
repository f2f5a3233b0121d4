//! Every transport passes the transport conformance suite.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use chat_core::backend::Dialer;
use chat_core::conformance::{self, TransportPair};
use chat_transport::accept::{Upgrade, accept};
use chat_transport::dial::WebSocketDialer;
use chat_transport::duplex::duplex;

#[tokio::test]
async fn in_process_duplex() {
    for case in conformance::cases::transport() {
        let (one, other) = duplex(64);
        assert_eq!(
            (case.run)(TransportPair::new(Box::new(one), Box::new(other))).await,
            Ok(()),
            "{}",
            case.name
        );
    }
}

/// Returns the dialling and the accepting end of a real socket.
async fn web_socket() -> Arc<TransportPair> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let upgrade = Upgrade { path: "/v1".into(), origins: Vec::new() };
    let dialer = WebSocketDialer::new(&url).unwrap();
    let (dialled, accepted) =
        tokio::join!(dialer.dial(), async { accept(listener.accept().await.unwrap().0, &upgrade).await });
    TransportPair::new(dialled.unwrap(), Box::new(accepted.unwrap()))
}

#[tokio::test]
async fn web_socket_passes() {
    for case in conformance::cases::transport() {
        assert_eq!((case.run)(web_socket().await).await, Ok(()), "{}", case.name);
    }
}
