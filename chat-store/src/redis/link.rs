use std::fmt;
use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Cmd, FromRedisValue, ScriptInvocation};
use chat_core::{Error, ErrorKind, Result};

/// How long a question may take: a hint is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to Redis that repairs itself; cheap to clone.
#[derive(Clone)]
pub struct RedisLink(Kind);

#[derive(Clone)]
enum Kind {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl fmt::Debug for RedisLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 {
            Kind::Single(_) => "single",
            Kind::Cluster(_) => "cluster",
        };
        f.debug_tuple("RedisLink").field(&kind).finish()
    }
}

pub(super) fn failed(error: redis::RedisError) -> Error {
    Error::new(ErrorKind::Unavailable, "Redis does not answer").caused_by(error)
}

impl RedisLink {
    /// Connects to `redis://host:port`, or to a Cluster by some of its nodes,
    /// `redis-cluster://host:port,host:port`.
    ///
    /// # Errors
    /// `Invalid` if the address is neither, `Unavailable` if nobody answers there.
    pub async fn connect(url: &str) -> Result<Self> {
        let invalid = |error| Error::new(ErrorKind::Invalid, "not an address of Redis").caused_by(error);
        if let Some(nodes) = url.strip_prefix("redis-cluster://") {
            let nodes: Vec<String> = nodes.split(',').map(|node| format!("redis://{node}")).collect();
            let client = ClusterClientBuilder::new(nodes)
                .connection_timeout(PATIENCE)
                .response_timeout(PATIENCE)
                .build()
                .map_err(invalid)?;
            return client.get_async_connection().await.map(|link| Self(Kind::Cluster(link))).map_err(failed);
        }
        let client = redis::Client::open(url).map_err(invalid)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let manager = client.get_connection_manager_with_config(config).await.map_err(failed)?;
        Ok(Self(Kind::Single(manager)))
    }

    /// What was found, for people.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    pub async fn describe(&self) -> Result<String> {
        self.run::<String>(&::redis::cmd("PING")).await?;
        Ok(match self.0 {
            Kind::Single(_) => "a single server".to_owned(),
            Kind::Cluster(_) => "a Cluster".to_owned(),
        })
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        async fn on<T: FromRedisValue>(mut link: impl ConnectionLike, command: &Cmd) -> Result<T> {
            command.query_async(&mut link).await.map_err(failed)
        }
        match &self.0 {
            Kind::Single(link) => on(link.clone(), command).await,
            Kind::Cluster(link) => on(link.clone(), command).await,
        }
    }

    /// Runs a script, which is sent only where it is not known yet.
    pub(super) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T> {
        match &self.0 {
            Kind::Single(link) => script.invoke_async(&mut link.clone()).await.map_err(failed),
            Kind::Cluster(link) => script.invoke_async(&mut link.clone()).await.map_err(failed),
        }
    }
}
