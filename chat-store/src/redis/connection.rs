use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::cluster::ClusterClientBuilder;
use ::redis::{
    Client, ClientTlsConfig, Cmd, FromRedisValue, IntoConnectionInfo as _, RedisError, RedisResult,
    ScriptInvocation, TlsCertificates,
};
use chat_core::backend::ServiceUrl;
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

pub(super) fn failed(error: RedisError) -> Error {
    // The code of a wrong password, and the one of a missing login. A Cluster has them in the text only.
    let text = error.to_string();
    if error.kind() == ::redis::ErrorKind::AuthenticationFailed
        || ["WRONGPASS", "NOAUTH", "AuthenticationFailed"].iter().any(|code| text.contains(code))
    {
        return Error::new(ErrorKind::Denied, "Redis refuses the login").caused_by(error);
    }
    Error::new(ErrorKind::Unavailable, "Redis does not answer").caused_by(error)
}

fn invalid(error: RedisError) -> Error {
    Error::new(ErrorKind::Invalid, "not a Redis address").caused_by(error)
}

/// The address of a server or Cluster.
struct Address {
    url: ServiceUrl,
    is_cluster: bool,
}

impl Address {
    fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (is_cluster, is_encrypted) = match scheme {
            "redis" => (false, false),
            "rediss" => (false, true),
            "redis-cluster" => (true, false),
            "rediss-cluster" => (true, true),
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "a Redis address looks like redis://host:port or redis-cluster://host:port,host:port",
                ));
            }
        };
        let tls = match (is_encrypted, rest.contains('?')) {
            (false, _) => "",
            (true, false) => "?tls=true",
            (true, true) => "&tls=true",
        };
        let url = ServiceUrl::parse(&format!("redis://{rest}{tls}"), "redis")?;
        if !url.parameters.is_empty() || (is_cluster && !url.name.is_empty()) {
            return Err(Error::new(ErrorKind::Invalid, "a Redis address has an unknown parameter"));
        }
        Ok(Self { url, is_cluster })
    }

    /// Returns an address for the client for each node.
    fn servers(&self) -> Vec<String> {
        let scheme = if self.url.access.tls.is_some() { "rediss" } else { "redis" };
        self.url.nodes.iter().map(|node| format!("{scheme}://{node}/{}", self.url.name)).collect()
    }

    /// Returns the certificates of encrypted connections.
    fn certificates(&self) -> Result<Option<TlsCertificates>> {
        let Some(tls) = &self.url.access.tls else { return Ok(None) };
        let client_tls =
            tls.read_identity()?.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        Ok(Some(TlsCertificates { client_tls, root_cert: tls.read_ca()? }))
    }
}

impl RedisLink {
    /// Connects to a server, `redis://host:port`, or to a Cluster through some of its nodes,
    /// `redis-cluster://host:port,host:port`. The parameters of login and TLS are those of [`ServiceUrl`];
    /// `rediss` is `redis` with `tls=true`.
    ///
    /// # Errors
    /// `Invalid` if the address has neither form or names a file that cannot be read, `Denied` if the server refuses the
    /// login, `Unavailable` if no server answers there.
    pub async fn connect(url: &str) -> Result<Self> {
        let address = Address::parse(url)?;
        if address.url.access.tls.is_some() && rustls::crypto::CryptoProvider::get_default().is_none() {
            // The Redis client uses the default of the process. If another thread sets one meanwhile, that one counts.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let certificates = address.certificates()?;
        let (user, password) = match &address.url.access.login {
            Some(login) => (login.user.as_str(), Some(login.password()?)),
            None => ("", None),
        };
        if address.is_cluster {
            let mut builder = ClusterClientBuilder::new(address.servers())
                .connection_timeout(NODE_TIMEOUT)
                .response_timeout(NODE_TIMEOUT);
            if let Some(password) = password {
                builder = builder.username(user).password(password.as_str());
            }
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            let client = builder.build().map_err(invalid)?;
            let connection = client.get_async_connection().await.map_err(failed)?;
            return Ok(Self(Kind::Cluster(Cluster::new(connection))));
        }
        let [server] = <[String; 1]>::try_from(address.servers())
            .map_err(|_| Error::new(ErrorKind::Invalid, "only redis-cluster:// has several nodes"))?;
        let mut info = server.into_connection_info().map_err(invalid)?;
        if let Some(password) = password {
            let settings = info.redis_settings().clone().set_username(user).set_password(password.as_str());
            info = info.set_redis_settings(settings);
        }
        let client = match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        };
        Ok(Self(Kind::Single(Single::connect(client.map_err(invalid)?).await?)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let servers = |url: &str| Address::parse(url).map(|address| address.servers());
        assert_eq!(servers("redis://a:1/2").unwrap(), ["redis://a:1/2"]);
        assert_eq!(servers("rediss://a:1").unwrap(), ["rediss://a:1/"]);
        assert_eq!(servers("redis-cluster://a:1,b:2?tls=true").unwrap(), ["rediss://a:1/", "rediss://b:2/"]);
        let login = Address::parse("rediss://a:1?user=u&password_file=/p").unwrap();
        assert!(login.url.access.login.is_some() && login.url.access.tls.is_some());
        for bad in ["kafka://a:1", "a:1", "redis://u:p@a:1", "redis://a:1?db=2", "redis-cluster://a:1/2"] {
            assert_eq!(servers(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
