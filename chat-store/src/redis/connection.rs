use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::cluster::ClusterClientBuilder;
use ::redis::{Client, Cmd, FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use chat_core::{Error, ErrorKind, Result};

use super::cluster::Cluster;
use super::single::Single;

/// How long a question may take: a hint is not worth waiting for.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a node of a Cluster may take. Less than who asks waits: only a question that is still being asked makes
/// the client look who answers for its slot now.
const NODE_TIMEOUT: Duration = Duration::from_millis(700);

/// How often who does not answer is asked whether it is there again.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(250);

/// A connection to Redis that repairs itself; cheap to clone. No call takes longer than a second, and while nobody
/// answers, calls fail at once.
#[derive(Clone)]
pub struct RedisLink(Kind);

#[derive(Clone)]
enum Kind {
    Single(Single),
    Cluster(Cluster),
}

/// Makes a call, unless it is known that nobody answers. Calls `silence` if that is found out.
pub(super) async fn ask<T>(
    is_silent: &AtomicBool,
    call: impl Future<Output = RedisResult<T>>,
    silence: impl FnOnce(),
) -> Result<T> {
    if is_silent.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Unavailable, "Redis did not answer, and is being waited for"));
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            // What it does not like is an answer.
            if is_silence(&error) {
                silence();
            }
            Err(failed(error))
        }
        Err(silent) => {
            silence();
            Err(Error::new(ErrorKind::Unavailable, "Redis does not answer in time").caused_by(silent))
        }
    }
}

fn is_silence(error: &RedisError) -> bool {
    let nobody = error.is_cluster_error() || error.kind() == ::redis::ErrorKind::ClusterConnectionNotFound;
    nobody || error.is_io_error() || error.is_connection_dropped() || error.is_timeout()
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
                .connection_timeout(NODE_TIMEOUT)
                .response_timeout(NODE_TIMEOUT)
                .build()
                .map_err(invalid)?;
            let connection = client.get_async_connection().await.map_err(failed)?;
            return Ok(Self(Kind::Cluster(Cluster::new(connection))));
        }
        let client = Client::open(url).map_err(invalid)?;
        Ok(Self(Kind::Single(Single::connect(client).await?)))
    }

    /// What was found, for people.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    pub async fn describe(&self) -> Result<String> {
        let mut info = ::redis::cmd("INFO");
        info.arg("server");
        let (what, info) = match &self.0 {
            Kind::Single(_) => ("a single server", self.run::<String>("", &info).await?),
            Kind::Cluster(connection) => ("a Cluster", connection.ask_any(&info).await?),
        };
        let release = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Ok(format!("{what}, release {}", release.unwrap_or("unknown").trim()))
    }

    /// Runs a command about this key.
    pub(super) async fn run<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T> {
        match &self.0 {
            Kind::Single(connection) => {
                connection
                    .call(|mut connection| async move { command.query_async(&mut connection).await })
                    .await
            }
            Kind::Cluster(connection) => {
                connection
                    .call(key, |mut connection| async move { command.query_async(&mut connection).await })
                    .await
            }
        }
    }

    /// Runs a script about this key, which is sent only where it is not known yet.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        key: &str,
        script: &ScriptInvocation<'_>,
    ) -> Result<T> {
        match &self.0 {
            Kind::Single(connection) => {
                connection
                    .call(|mut connection| async move { script.invoke_async(&mut connection).await })
                    .await
            }
            Kind::Cluster(connection) => {
                connection
                    .call(key, |mut connection| async move { script.invoke_async(&mut connection).await })
                    .await
            }
        }
    }
}
