//! Restores the Cassandra of a cluster from an older copy. Kafka and Redis keep their data.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::PathBuf;

use chat_tests::cluster::{Cluster, Services, Size, fresh_name};
use chat_tests::own_services::OwnServices;
use chat_tests::restored_server::{Restorable, copy, server_goes_back};

const NET: &str = "127.0.10";

struct OwnCluster {
    // Before the services, so that the nodes end first.
    cluster: Cluster,
    services: OwnServices,
    dir: tempfile::TempDir,
}

impl OwnCluster {
    /// Stops all nodes, runs `change` with the directories of Cassandra's data and of the copy while Cassandra is stopped,
    /// then runs a command, if there is one, and starts the nodes.
    fn offline(&mut self, change: impl Fn(PathBuf, PathBuf), command: &[&str]) {
        let nodes = |cluster: &mut Cluster, each: fn(&mut chat_tests::server::Server)| {
            cluster.gateways.iter_mut().chain(&mut cluster.routers).for_each(each);
        };
        nodes(&mut self.cluster, chat_tests::server::Server::kill);
        self.services.script(&["stop", "cassandra"]);
        change(self.services.directory().join("cassandra/1/data"), self.dir.path().join("backup"));
        self.services.script(&["start", "cassandra"]);
        if !command.is_empty() {
            println!("{}", self.cluster.command(command));
        }
        nodes(&mut self.cluster, chat_tests::server::Server::restart);
    }
}

impl Restorable for OwnCluster {
    fn url(&self) -> String {
        self.cluster.gateways[0].url()
    }

    fn back_up(&mut self) {
        self.offline(|data, backup| copy(&data, &backup), &[]);
    }

    fn go_back(&mut self, is_told: bool) {
        let command: &[&str] = if is_told { &["migrate", "--restored"] } else { &[] };
        self.offline(|data, backup| copy(&backup, &data), command);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_go_back_with_a_cluster_that_its_operator_restored() {
    let Some(services) = OwnServices::start(NET, false) else { return };
    let addresses = Services {
        cassandra: format!("cassandra://{NET}.1:9042/test?replication=1"),
        kafka: format!("kafka://{NET}.1:9092/test?replication=1"),
        redis: format!("redis://{NET}.1:6379"),
    };
    let dir = tempfile::tempdir().unwrap();
    let size = Size { gateways: 1, routers: 1 };
    let cluster = Cluster::start(dir.path(), &addresses, &fresh_name(), size, None);
    server_goes_back(&mut OwnCluster { cluster, services, dir }, true).await;
}
