use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::cluster::ClusterClientBuilder;
use ::redis::{Client, Cmd, FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use chat_core::{Error, ErrorKind, Result};

use super::cluster::Cluster;
use super::single::Single;

/// Timeout of a request. It is short because Redis holds only hints.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout of a node of a Cluster. It is shorter than [`REQUEST_TIMEOUT`]: the Redis client looks up the new
/// master of a slot only while the request is still pending.
const NODE_TIMEOUT: Duration = Duration::from_millis(700);

/// Interval between probes of a server that does not answer.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(250);

/// A connection to Redis that reconnects by itself; cheap to clone. Each call has a timeout of one second.
/// While the server does not answer, calls fail at once.
#[derive(Clone)]
pub struct RedisLink(Kind);

#[derive(Clone)]
enum Kind {
    Single(Single),
    Cluster(Cluster),
}

/// Makes a call, or fails at once if `is_silent` is set. Runs `silence` if the server does not answer this
/// call.
pub(super) async fn ask<T>(
    is_silent: &AtomicBool,
    call: impl Future<Output = RedisResult<T>>,
    silence: impl FnOnce(),
) -> Result<T> {
    if is_silent.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Unavailable, "Redis does not answer: calls fail until it does"));
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            // An error reply is an answer too.
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
    /// Connects to a server, `redis://host:port`, or to a Cluster through some of its nodes,
    /// `redis-cluster://host:port,host:port`.
    ///
    /// # Errors
    /// `Invalid` if the address has neither form, `Unavailable` if no server answers there.
    pub async fn connect(url: &str) -> Result<Self> {
        let invalid = |error| Error::new(ErrorKind::Invalid, "not a Redis address").caused_by(error);
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

    /// Returns a description for operators: single server or Cluster, and the release.
    ///
    /// # Errors
    /// `Unavailable` if no server answers.
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

    /// Runs a command for this key.
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

    /// Runs a script for this key. The script's text is sent only to a server that has not loaded it yet.
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
