//! A hostile server: a connection between a client and an honest server that changes frames. Each manipulation is
//! rejected, or the client reports it; none is silent.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chat_client::{Client, ClientConfig, Content, Event, Events, GapReason, Violation};
use chat_core::backend::{Dialer, Transport};
use chat_core::envelope::{EmptyReason, InboxRow, Message, RowContent};
use chat_core::message_options::Deletion;
use chat_core::suite::SuiteId;
use chat_core::wire::ServerFrame;
use chat_core::{ConversationId, DeviceId, Handle, MessageId, Result, StoreEpoch, UserId};
use chat_signal::Signal;
use chat_testing::TestServer;
use chat_transport::duplex::duplex;
use futures_util::StreamExt as _;

/// Changes a frame from the server.
type Tamper = dyn FnMut(&mut ServerFrame) + Send;

/// Dials the server through the hostile connection.
struct HostileDialer {
    server: Arc<TestServer>,
    tamper: Arc<Mutex<Box<Tamper>>>,
}

impl fmt::Debug for HostileDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostileDialer")
    }
}

#[async_trait]
impl Dialer for HostileDialer {
    fn authority(&self) -> &str {
        "in-process:0"
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        let (client, server) = duplex(256);
        let accept = self.server.server().acceptor();
        tokio::spawn(async move { accept(Box::new(server)).await });
        Ok(Box::new(HostileTransport { inner: Box::new(client), tamper: self.tamper.clone() }))
    }
}

struct HostileTransport {
    inner: Box<dyn Transport>,
    tamper: Arc<Mutex<Box<Tamper>>>,
}

impl fmt::Debug for HostileTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostileTransport")
    }
}

#[async_trait]
impl Transport for HostileTransport {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        let Some(bytes) = self.inner.recv().await? else { return Ok(None) };
        let mut frame = ServerFrame::parse(bytes)?;
        (self.tamper.lock().unwrap())(&mut frame);
        Ok(Some(frame.encode()))
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        self.inner.send(frames).await
    }

    async fn close(&mut self, code: u16) {
        self.inner.close(code).await;
    }
}

/// Alice with two devices, and Bob, who is behind the hostile connection.
struct World {
    server: Arc<TestServer>,
    alice: Client,
    tablet: Client,
    /// The profile of Bob.
    profiles: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let server = Arc::new(TestServer::start().await.unwrap());
        let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
        let tablet = server.linked_client(&alice, "tablet", Box::new(Signal::new())).await.unwrap();
        let world = Self { server, alice, tablet, profiles: tempfile::tempdir().unwrap() };
        let bob = Client::register_if_new(world.bob(|_| {}), "bob").await.unwrap();
        bob.ready().await.unwrap();
        world.send(&world.alice, "m1").await;
        let first = world.server.next_message(&bob).await.unwrap();
        assert_eq!(first.content(), &Content::Text("m1".into()));
        bob.close().await;
        world
    }

    /// Returns the configuration of Bob, behind the hostile connection.
    fn bob(&self, tamper: impl FnMut(&mut ServerFrame) + Send + 'static) -> ClientConfig {
        let (server, tamper) = (self.server.clone(), Arc::new(Mutex::new(Box::new(tamper) as Box<Tamper>)));
        let dialer = Arc::new(HostileDialer { server, tamper });
        ClientConfig::with_dialer(dialer, "bob", Box::new(Signal::new())).directory(self.profiles.path())
    }

    async fn send(&self, from: &Client, text: &str) {
        from.send(Handle::new("bob").unwrap(), text).await.unwrap().stored().await.unwrap();
    }

    /// Bob comes back through the hostile connection. Returns what his program learns.
    async fn reports(&self, tamper: impl FnMut(&mut ServerFrame) + Send + 'static) -> Vec<String> {
        let bob = Client::open(self.bob(tamper)).await.unwrap();
        let mut events = bob.events_after(None);
        let found = reports_of(&mut events).await;
        bob.close().await;
        found
    }
}

/// Returns descriptions of the events until nothing happens for a while.
async fn reports_of(events: &mut Events) -> Vec<String> {
    let mut found = Vec::new();
    while let Ok(Ok(Some(record))) = tokio::time::timeout(Duration::from_millis(1200), events.next()).await {
        found.push(match record.event {
            Event::Message(message) => match message.content() {
                Content::Text(text) => text.clone(),
                other => format!("unreadable {other:?}"),
            },
            Event::Integrity { violation, .. } => format!("integrity {}", violation.name()),
            Event::Gap { reason, .. } => format!("gap {}", reason.name()),
            Event::DeviceListHidden { .. } => "list hidden".into(),
            Event::PrekeysRejected => "prekeys rejected".into(),
            Event::Superseded => "superseded".into(),
            _ => continue,
        });
    }
    found
}

/// Changes the rows of new messages in a frame: the first message may be sent again, because its ack can be lost.
fn rows(change: impl Fn(&mut Vec<InboxRow>) + Send + 'static) -> impl FnMut(&mut ServerFrame) + Send {
    move |frame| {
        let ServerFrame::Deliver(rows, _) = frame else { return };
        let (mut new, known) = std::mem::take(rows)
            .into_iter()
            .partition::<Vec<_>, _>(|row| matches!(row.content, RowContent::Message { .. }) && row.seq > 1);
        if !new.is_empty() {
            change(&mut new);
        }
        *rows = known;
        rows.extend(new);
    }
}

/// Changes the first message of a frame.
fn message(change: impl Fn(&mut Message) + Send + 'static) -> impl FnMut(&mut ServerFrame) + Send {
    rows(move |rows| {
        if let RowContent::Message { message, .. } = &mut rows[0].content {
            change(Arc::make_mut(message));
        }
    })
}

/// Returns bytes with one bit changed.
fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[0] ^= 1;
    bytes.into()
}

type Manipulation = Box<dyn FnMut(&mut ServerFrame) + Send>;

/// The manipulations of three rows that wait for Bob, each with the report that must follow.
fn manipulations() -> Vec<(&'static str, &'static str, Manipulation)> {
    let empty = |reason| {
        rows(move |rows| {
            let from = rows[0].seq;
            rows[0].content = RowContent::Empty { reason, from };
        })
    };
    vec![
        (
            "drop and renumber",
            "integrity missing",
            Box::new(rows(|rows| {
                rows.remove(0);
                rows.iter_mut().for_each(|row| row.seq -= 1);
            })),
        ),
        ("drop as withdrawn", "gap withdrawn", Box::new(empty(EmptyReason::Skip))),
        ("drop as expired", "integrity expired_early", Box::new(empty(EmptyReason::Expired))),
        (
            "swap",
            "integrity repeated",
            Box::new(rows(|rows| {
                let first = rows[0].content.clone();
                rows[0].content = std::mem::replace(&mut rows[1].content, first);
            })),
        ),
        (
            "repeat under a new seq",
            "integrity repeated",
            Box::new(rows(|rows| {
                let mut again = rows[0].clone();
                rows[1..].iter_mut().for_each(|row| row.seq += 1);
                (again.seq, again.time_us) = (again.seq + 1, again.time_us + 1);
                rows.insert(1, again);
            })),
        ),
        (
            "change the body",
            "unreadable",
            Box::new(message(move |message| message.body = flipped(&message.body))),
        ),
        ("change the message id", "unreadable", Box::new(message(|message| message.id = MessageId::NIL))),
        ("change the number", "unreadable", Box::new(message(|message| message.client_seq += 1))),
        (
            "change the message before",
            "unreadable",
            Box::new(message(|message| message.prev = MessageId::NIL)),
        ),
        ("change the incarnation", "unreadable", Box::new(message(|message| message.incarnation += 1))),
        (
            "change the sending device",
            "unreadable",
            Box::new(message(|message| {
                message.sender.device = DeviceId::new(9).unwrap();
            })),
        ),
        (
            "change the list version",
            "unreadable",
            Box::new(message(|message| {
                message.audience.iter_mut().for_each(|audience| audience.list_version += 1);
            })),
        ),
        (
            "let a message expire",
            "unreadable",
            Box::new(message(|message| message.options.expires_after_ms = 1)),
        ),
        (
            "delete another message by it",
            "unreadable",
            Box::new(message(|message| {
                let deletion = Deletion {
                    seq: 1,
                    installation: message.sender.installation,
                    message_id: message.id,
                    signature: vec![0; 64].into(),
                };
                message.options.deletion = Some(Box::new(deletion));
            })),
        ),
        (
            "name another suite",
            "unreadable",
            Box::new(rows(|rows| {
                if let RowContent::Message { sealed, .. } = &mut rows[0].content {
                    *sealed = SuiteId::PRIVATE.mark(sealed.clone());
                }
            })),
        ),
        (
            "move to another conversation",
            "unreadable",
            Box::new(rows(|rows| {
                let RowContent::Message { message, .. } = &rows[0].content else { return };
                let elsewhere = ConversationId::direct(message.sender.user, UserId::from_bytes([7; 16]));
                rows[0].conversation = elsewhere;
                (rows[0].seq, rows[0].joined) = (1, true);
                rows.truncate(1);
            })),
        ),
        (
            "use the box of another message",
            "unreadable",
            Box::new(rows(|rows| {
                let RowContent::Message { sealed: other, .. } = rows[1].content.clone() else { return };
                if let RowContent::Message { sealed, .. } = &mut rows[0].content {
                    *sealed = other;
                }
            })),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_manipulation_of_rows_is_silent() {
    let honest = World::new().await;
    for text in ["m2", "m3", "m4"] {
        honest.send(&honest.alice, text).await;
    }
    assert_eq!(honest.reports(|_| {}).await, ["m2", "m3", "m4"], "an honest server raises no alarm");

    let checks = futures_util::stream::iter(manipulations());
    checks
        .for_each_concurrent(4, |(name, expected, tamper)| async move {
            let world = World::new().await;
            for text in ["m2", "m3", "m4"] {
                world.send(&world.alice, text).await;
            }
            let reports = world.reports(tamper).await;
            println!("{name}: {reports:?}");
            assert!(reports.iter().any(|report| report.starts_with(expected)), "{name}: {reports:?}");
            let shown: Vec<_> = reports.iter().filter(|report| report.starts_with('m')).collect();
            let mut once = shown.clone();
            once.sort();
            once.dedup();
            let mut shown = shown;
            shown.sort();
            assert_eq!(shown, once, "{name} shows a message twice");
        })
        .await;
}

/// Bob writes to Carol for the first time, through the hostile connection. Returns whether his message is stored, and
/// the reports to his program.
async fn first_message(tamper: impl FnMut(&mut ServerFrame) + Send + 'static) -> (bool, Vec<String>) {
    let world = World::new().await;
    let carol = world.server.client_with("carol", Box::new(Signal::new())).await.unwrap();
    let bob = Client::open(world.bob(tamper)).await.unwrap();
    let mut events = bob.events_after(None);
    let ticket = bob.send(Handle::new("carol").unwrap(), "hello").await.unwrap();
    let reports = reports_of(&mut events).await;
    let is_stored = tokio::time::timeout(Duration::from_millis(100), ticket.stored()).await.is_ok();
    bob.close().await;
    carol.close().await;
    (is_stored, reports)
}

#[tokio::test(flavor = "multi_thread")]
async fn manipulated_answers_are_rejected() {
    assert_eq!(first_message(|_| {}).await, (true, vec![]), "an honest server");
    let (stored, reports) = first_message(|frame| {
        if let ServerFrame::Response(_, response) = frame {
            response.bundles.iter_mut().for_each(|bundle| bundle.signed = flipped(&bundle.signed));
        }
    })
    .await;
    assert!(!stored && reports.contains(&"prekeys rejected".to_owned()), "{reports:?}");
    let (stored, _) = first_message(|frame| {
        if let ServerFrame::Stored(stored) = frame {
            stored.message_id = MessageId::NIL;
        }
    })
    .await;
    assert!(!stored, "an answer for another message");
    let (stored, _) = first_message(|frame| {
        if let ServerFrame::Stored(stored) = frame {
            stored.store_epoch = StoreEpoch::from_bytes([9; 16]);
        }
    })
    .await;
    assert!(!stored, "an answer of another data set");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_order_for_one_device_is_reported() {
    let world = World::new().await;
    world.send(&world.alice, "phone").await;
    world.send(&world.tablet, "tablet").await;
    // The next message of the phone names the tablet's message as the last one that it saw.
    while world.server.next_message(&world.alice).await.unwrap().content() != &Content::Text("tablet".into())
    {
    }
    world.send(&world.alice, "last").await;
    let swap = rows(|rows| {
        let first = rows[0].content.clone();
        rows[0].content = std::mem::replace(&mut rows[1].content, first);
    });
    let reports = world.reports(swap).await;
    assert!(reports.contains(&"integrity diverged".to_owned()), "{reports:?}");
    assert_eq!(Violation::Diverged { seq: 1 }.name(), "diverged");
    assert_eq!(GapReason::Withdrawn.name(), "withdrawn");
}
