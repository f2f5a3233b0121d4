use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Client, Cmd, FromRedisValue, RedisResult, ScriptInvocation};
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
struct Single(Arc<Server>);

struct Server {
    client: Client,
    connection: Mutex<ConnectionManager>,
    is_down: AtomicBool,
}

impl Single {
    async fn connect(client: Client) -> Result<Self> {
        let connection = Mutex::new(connection(&client).await.map_err(failed)?);
        Ok(Self(Arc::new(Server { client, connection, is_down: AtomicBool::new(false) })))
    }

    /// Makes a call, unless it is known that nobody answers.
    async fn call<T, F: Future<Output = RedisResult<T>>>(
        &self,
        call: impl FnOnce(ConnectionManager) -> F,
    ) -> Result<T> {
        if self.0.is_down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "Redis did not answer, and is being waited for"));
        }
        match tokio::time::timeout(PATIENCE, call(self.0.connection())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                // What it does not like is an answer.
                if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
                    self.note_silence();
                }
                Err(failed(error))
            }
            Err(silent) => {
                self.note_silence();
                Err(Error::new(ErrorKind::Unavailable, "Redis does not answer in time").caused_by(silent))
            }
        }
    }

    /// From here on calls fail, until it answers. It is asked by a new connection each time: nobody says that
    /// an old one leads nowhere.
    fn note_silence(&self) {
        if self.0.is_down.swap(true, Ordering::Relaxed) {
            return;
        }
        let server = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(server) = server.upgrade() {
                if let Ok(Ok(fresh)) = tokio::time::timeout(PATIENCE, connection(&server.client)).await {
                    *server.connection.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                    server.is_down.store(false, Ordering::Relaxed);
                    return;
                }
                drop(server);
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
    }
}

impl Server {
    fn connection(&self) -> ConnectionManager {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A new connection, over which the server has answered.
async fn connection(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
        .set_number_of_retries(1);
    let mut connection = client.get_connection_manager_with_config(config).await?;
    ::redis::cmd("PING").query_async::<String>(&mut connection).await?;
    Ok(connection)
}

/// No longer than a hint is worth waiting for.
async fn patiently<T>(call: impl Future<Output = RedisResult<T>>) -> Result<T> {
    let silent = |e| Error::new(ErrorKind::Unavailable, "Redis does not answer in time").caused_by(e);
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
        let client = Client::open(url).map_err(invalid)?;
        Ok(Self(Kind::Single(Single::connect(client).await?)))
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
        match &self.0 {
            Kind::Single(link) => {
                link.call(|mut connection| async move { command.query_async(&mut connection).await }).await
            }
            Kind::Cluster(link) => patiently(command.query_async(&mut link.clone())).await,
        }
    }

    /// Runs a script, which is sent only where it is not known yet.
    pub(super) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T> {
        match &self.0 {
            Kind::Single(link) => {
                link.call(|mut connection| async move { script.invoke_async(&mut connection).await }).await
            }
            Kind::Cluster(link) => patiently(script.invoke_async(&mut link.clone())).await,
        }
    }
}
