//! Redis passes the suites that the memory backends pass: the real server, single and Cluster, at the
//! addresses that `tests/services/services.sh env` gives.
#![cfg(feature = "redis")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;

use chat_core::backend::{Presence, Registry};
use chat_core::conformance;
use chat_store::redis::{RedisLink, RedisPresence, RedisRegistry};

/// A connection to an empty Redis; `None`, said aloud, if there is none here.
async fn fresh(variable: &str) -> Option<RedisLink> {
    let Ok(url) = std::env::var(variable) else {
        println!("ignored: {variable} is not set: start Redis with tests/services/services.sh");
        return None;
    };
    let flush = redis::cmd("FLUSHALL");
    if let Some(nodes) = url.strip_prefix("redis-cluster://") {
        let nodes = nodes.split(',').map(|node| format!("redis://{node}")).collect::<Vec<_>>();
        let client = redis::cluster::ClusterClient::new(nodes).unwrap();
        let mut cluster = client.get_async_connection().await.unwrap();
        flush.query_async::<()>(&mut cluster).await.unwrap();
    } else {
        let client = redis::Client::open(url.as_str()).unwrap();
        let mut single = client.get_multiplexed_async_connection().await.unwrap();
        flush.query_async::<()>(&mut single).await.unwrap();
    }
    Some(RedisLink::connect(&url).await.unwrap())
}

async fn registry(variable: &str) {
    for case in conformance::registry() {
        let Some(link) = fresh(variable).await else { return };
        let backend: Arc<dyn Registry> = Arc::new(RedisRegistry::new(link));
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
}

async fn presence(variable: &str) {
    for case in conformance::presence() {
        let Some(link) = fresh(variable).await else { return };
        let backend: Arc<dyn Presence> = Arc::new(RedisPresence::new(link));
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
}

#[tokio::test]
async fn a_single_server_passes() {
    registry("CHAT_TEST_REDIS").await;
    presence("CHAT_TEST_REDIS").await;
}

#[tokio::test]
async fn a_cluster_passes() {
    registry("CHAT_TEST_REDIS_CLUSTER").await;
    presence("CHAT_TEST_REDIS_CLUSTER").await;
}
