use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Cmd, FromRedisValue, RedisResult, ScriptInvocation};
use chat_core::{Error, ErrorKind, Result};

/// How long a question may take: a hint is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a single server that does not answer is asked whether it is there again.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// A connection to Redis that repairs itself; cheap to clone. No call takes longer than a second.
#[derive(Clone)]
pub struct RedisLink(Kind);

#[derive(Clone)]
enum Kind {
    Single(Single),
    Cluster(ClusterConnection),
}

/// One server. While it does not answer nobody waits for it: calls fail at once until it does.
#[derive(Clone)]
struct Single {
    connection: ConnectionManager,
    is_down: Arc<AtomicBool>,
}

impl Single {
    /// Makes a call, unless it is known that nobody answers.
    async fn noting<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "Redis did not answer, and is being waited for"));
        }
        let answer = call.await;
        if answer.is_err() {
            self.note_failure();
        }
        answer
    }

    /// From here on calls fail, until it answers.
    fn note_failure(&self) {
        if self.is_down.swap(true, Ordering::Relaxed) {
            return;
        }
        let (mut connection, is_down) = (self.connection.clone(), Arc::downgrade(&self.is_down));
        tokio::spawn(async move {
            let ping = ::redis::cmd("PING");
            while let Some(is_down) = is_down.upgrade() {
                let answer = ping.query_async::<String>(&mut connection);
                if matches!(tokio::time::timeout(PATIENCE, answer).await, Ok(Ok(_))) {
                    return is_down.store(false, Ordering::Relaxed);
                }
                drop(is_down);
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
    }
}

/// No longer than a hint is worth waiting for.
async fn patiently<T>(call: impl Future<Output = RedisResult<T>>) -> Result<T> {
    let silent = |_| Error::new(ErrorKind::Unavailable, "Redis does not answer in time");
    tokio::time::timeout(PATIENCE, call).await.map_err(silent)?.map_err(failed)
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
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1);
        let connection = client.get_connection_manager_with_config(config).await.map_err(failed)?;
        Ok(Self(Kind::Single(Single { connection, is_down: Arc::default() })))
    }

    /// What was found, for people.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    pub async fn describe(&self) -> Result<String> {
        match &self.0 {
            Kind::Single(_) => {
                let info: String = self.run(::redis::cmd("INFO").arg("server")).await?;
                let release = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
                Ok(format!("a single server, release {}", release.unwrap_or("unknown").trim()))
            }
            Kind::Cluster(_) => {
                self.run::<String>(&::redis::cmd("PING")).await?;
                Ok("a Cluster".to_owned())
            }
        }
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        async fn on<T: FromRedisValue>(mut link: impl ConnectionLike, command: &Cmd) -> Result<T> {
            patiently(command.query_async(&mut link)).await
        }
        match &self.0 {
            Kind::Single(link) => link.noting(on(link.connection.clone(), command)).await,
            Kind::Cluster(link) => on(link.clone(), command).await,
        }
    }

    /// Runs a script, which is sent only where it is not known yet.
    pub(super) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T> {
        match &self.0 {
            Kind::Single(link) => {
                link.noting(patiently(script.invoke_async(&mut link.connection.clone()))).await
            }
            Kind::Cluster(link) => patiently(script.invoke_async(&mut link.clone())).await,
        }
    }
}
