//! Cassandra passes the suites that the memory backends pass: real nodes, at the addresses that
//! `tests/services/services.sh env` gives.
#![cfg(feature = "cassandra")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;

use chat_core::backend::{KeyDirectory, LogAnchor, LogIdentity, MessageStore};
use chat_core::conformance;
use chat_store::cassandra::{CassandraSettings, CassandraStore};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

/// A keyspace of our own; `None`, said aloud, if there is no Cassandra here.
struct Keyspace {
    settings: CassandraSettings,
    session: Session,
}

impl Keyspace {
    async fn new(variable: &str) -> Option<Self> {
        let Ok(url) = std::env::var(variable) else {
            println!("ignored: {variable} is not set: start Cassandra with tests/services/services.sh");
            return None;
        };
        let mut random = [0; 6];
        getrandom::fill(&mut random).unwrap();
        let mut settings: CassandraSettings = url.parse().unwrap();
        settings.keyspace = format!("test_{}", random.map(|byte| format!("{byte:02x}")).concat());
        CassandraStore::migrate(&settings).await.unwrap();
        let session = SessionBuilder::new().known_nodes(&settings.nodes).build().await.unwrap();
        Some(Self { settings, session })
    }

    /// A store without a row.
    async fn store(&self) -> Arc<CassandraStore> {
        for table in ["state", "history", "ids", "inbox", "cells", "accounts", "handles", "owners", "devices"]
        {
            let cql = format!("TRUNCATE {}.{table}", self.settings.keyspace);
            self.session.query_unpaged(cql, ()).await.unwrap();
        }
        Arc::new(CassandraStore::connect(&self.settings).await.unwrap())
    }

    async fn remove(self) {
        let cql = format!("DROP KEYSPACE {}", self.settings.keyspace);
        self.session.query_unpaged(cql, ()).await.unwrap();
    }
}

async fn suites(variable: &str) {
    let Some(keyspace) = Keyspace::new(variable).await else { return };
    for case in conformance::message_store() {
        let backend: Arc<dyn MessageStore> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    println!("{variable}: {} cases of MessageStore hold", conformance::message_store().len());
    for case in conformance::shared_message_store() {
        let backend: Arc<dyn MessageStore> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    for case in conformance::key_directory() {
        let backend: Arc<dyn KeyDirectory> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    println!("{variable}: {} cases of KeyDirectory hold", conformance::key_directory().len());
    anchors(&*keyspace.store().await).await;
    keyspace.remove().await;
}

async fn anchors(store: &CassandraStore) {
    let log = |generation, n| LogIdentity { generation, id: [n; 16], partitions: 4, opened: false };
    assert_eq!(store.log().await, Ok(None));
    assert_eq!(store.begin_log(log(1, 1)).await, Ok(log(1, 1)));
    assert_eq!(store.begin_log(log(1, 2)).await, Ok(log(1, 1)), "the first one counts");
    store.open_log(1).await.unwrap();
    assert_eq!(store.log().await, Ok(Some(LogIdentity { opened: true, ..log(1, 1) })));
    assert_eq!(store.begin_log(log(2, 3)).await, Ok(log(2, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_passes() {
    suites("CHAT_TEST_CASSANDRA").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_pass() {
    suites("CHAT_TEST_CASSANDRA_CLUSTER").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_without_the_schema_is_refused() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let other = CassandraSettings { keyspace: "test_nobody_made".to_owned(), ..keyspace.settings.clone() };
    let refused = CassandraStore::connect(&other).await.err().unwrap();
    assert!(refused.what().contains("migrate"), "{refused}");
    let copies = CassandraSettings { replication: 9, ..keyspace.settings.clone() };
    let refused = CassandraStore::migrate(&copies).await.err().unwrap();
    assert!(refused.what().contains("fewer nodes"), "{refused}");
    keyspace.remove().await;
}
