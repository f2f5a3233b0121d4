//! Fuzzes the WebSocket framing and the protocol frames in both directions. A parsed frame must be the same
//! after it is encoded and parsed again.
#![no_main]

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::wire::{ClientFrame, ServerFrame};
use chat_transport::websocket::{Role, WebSocket};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(frame) = ClientFrame::parse(bytes.clone(), &Bytes::new()) {
        let again = ClientFrame::parse(frame.encode(), &Bytes::new());
        assert!(matches!(frame, ClientFrame::Unknown(_)) || again == Ok(frame));
    }
    if let Ok(frame) = ServerFrame::parse(bytes) {
        let again = ServerFrame::parse(frame.encode());
        assert!(frame == ServerFrame::Unknown || again == Ok(frame));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        // The stream ends after `data`.
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let mut socket = WebSocket::new(near, Role::Server, 1 << 16, data);
        while let Ok(Some(message)) = socket.recv().await {
            assert!(message.len() <= 1 << 16);
        }
    });
});
