//! The baseline server: it frames, appends to a file, shares one `fdatasync` among waiting clients, answers
//! and forwards.
//!
//! A client frame is `[1][to: u32][payload]`; the first frame of a client is `[0][own: u32]`. A server frame
//! is `[1]` for "stored" or `[2][payload]` for a forwarded payload.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_transport::accept::{Upgrade, accept};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

type Peers = Arc<Mutex<HashMap<u32, mpsc::Sender<Bytes>>>>;

pub(crate) async fn serve(port: u16, log: PathBuf) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (append, waiting) = mpsc::channel::<(Bytes, oneshot::Sender<()>)>(4096);
    std::thread::spawn(move || write(log, waiting));
    let peers: Peers = Arc::default();
    let upgrade = Arc::new(Upgrade { path: "/v1".into(), origins: Vec::new() });
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (append, peers, upgrade) = (append.clone(), peers.clone(), upgrade.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(socket) = accept(stream, &upgrade).await {
                connection(Box::new(socket), append, peers).await;
            }
        });
    }
}

fn write(log: PathBuf, mut waiting: mpsc::Receiver<(Bytes, oneshot::Sender<()>)>) {
    let mut file = std::fs::File::create(log).unwrap();
    let mut batch = Vec::new();
    let mut bytes = Vec::new();
    while waiting.blocking_recv_many(&mut batch, 4096) > 0 {
        bytes.clear();
        for (record, _) in &batch {
            bytes.extend_from_slice(record);
        }
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        for (_, answer) in batch.drain(..) {
            let _ = answer.send(());
        }
    }
}

async fn connection(
    mut socket: Box<dyn Transport>,
    append: mpsc::Sender<(Bytes, oneshot::Sender<()>)>,
    peers: Peers,
) {
    let (out, mut queue) = mpsc::channel::<Bytes>(1024);
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            frame = socket.recv() => {
                let Ok(Some(frame)) = frame else { return };
                let number = u32::from_be_bytes(frame[1..5].try_into().unwrap());
                if frame[0] == 0 {
                    peers.lock().unwrap().insert(number, out.clone());
                    continue;
                }
                let (answer, answered) = oneshot::channel();
                append.send((frame.clone(), answer)).await.unwrap();
                let to = peers.lock().unwrap().get(&number).cloned();
                let own = out.clone();
                tokio::spawn(async move {
                    if answered.await.is_ok() {
                        let _ = own.send(Bytes::from_static(&[1])).await;
                        if let Some(to) = to {
                            let mut forwarded = vec![2];
                            forwarded.extend_from_slice(&frame[5..]);
                            let _ = to.send(forwarded.into()).await;
                        }
                    }
                });
            }
            n = queue.recv_many(&mut frames, 256) => {
                if n == 0 || socket.send(std::mem::take(&mut frames)).await.is_err() {
                    return;
                }
            }
        }
    }
}
