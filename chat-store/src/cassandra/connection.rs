use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::{ServiceAccess, ServiceTls, ServiceUrl};
use chat_core::{Error, ErrorKind, Result};
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, MetadataError,
    NewSessionError,
};
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchStatement, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use scylla::value::{CqlValue, Row};

use super::corrupt;
use super::schema::Statements;

/// Timeout of a statement. After it the outcome is unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Address of a Cassandra keyspace and its replication.
///
/// ```
/// use chat_store::cassandra::CassandraSettings;
/// let settings: CassandraSettings = "cassandra://10.0.0.1:9042,10.0.0.2:9042/chat?dc=eu".parse().unwrap();
/// assert_eq!((settings.keyspace.as_str(), settings.replication), ("chat", 3));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct CassandraSettings {
    /// Contact points, each `host:port`.
    pub nodes: Vec<String>,
    pub keyspace: String,
    /// Data centre whose quorum confirms reads and writes.
    pub datacenter: String,
    /// Number of copies in the data centre, 1 to 9. The default is 3; another number must be set explicitly.
    pub replication: u32,
    /// Login and TLS.
    pub access: ServiceAccess,
}

impl FromStr for CassandraSettings {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let invalid = || {
            Error::new(
                ErrorKind::Invalid,
                "a Cassandra address looks like cassandra://host:port,host:port/keyspace?dc=datacenter1&replication=3",
            )
        };
        let url = ServiceUrl::parse(url, "cassandra")?;
        let keyspace = if url.name.is_empty() { "chat" } else { &url.name };
        let named = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase())
                && text.len() <= 48
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        if !named(keyspace) {
            return Err(invalid());
        }
        let mut settings = Self {
            nodes: url.nodes,
            keyspace: keyspace.to_owned(),
            datacenter: "datacenter1".to_owned(),
            replication: 3,
            access: url.access,
        };
        for (key, value) in url.parameters {
            match key.as_str() {
                "dc" if value.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) => {
                    settings.datacenter = value;
                }
                "replication" => {
                    let copies = value.parse().ok().filter(|copies| (1..=9).contains(copies));
                    settings.replication = copies.ok_or_else(invalid)?;
                }
                _ => return Err(invalid()),
            }
        }
        Ok(settings)
    }
}

/// A driver session with its prepared statements.
pub(super) struct Connection {
    pub session: Session,
    pub settings: CassandraSettings,
    pub statements: Statements,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Converts any failure of a statement to `Unavailable`. The statement may have been executed.
pub(super) fn unknown(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "Cassandra does not answer").caused_by(error)
}

pub(super) async fn session(settings: &CassandraSettings) -> Result<Session> {
    // The driver sends an idempotent statement to a second node too if the first is slow.
    let speculative =
        SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval: Duration::from_millis(100) };
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(REQUEST_TIMEOUT))
        .speculative_execution_policy(Some(Arc::new(speculative)))
        .build();
    let mut builder = SessionBuilder::new();
    if let Some(login) = &settings.access.login {
        builder = builder.user(&login.user, login.password()?.as_str());
    }
    if let Some(tls) = &settings.access.tls {
        builder = builder.tls_context(Some(client_config(tls)?));
    }
    builder
        .known_nodes(&settings.nodes)
        .prefer_datacenter(settings.datacenter.clone())
        .connection_timeout(Duration::from_secs(3))
        .keepalive_interval(Duration::from_secs(3))
        .keepalive_timeout(Duration::from_secs(3))
        .pool_size(PoolSize::PerHost(NonZeroUsize::MIN.saturating_add(1)))
        .default_execution_profile_handle(profile.into_handle())
        .fetch_full_schema_metadata(false)
        .build()
        .await
        .map_err(|error| if is_login_refused(&error) { login_refused(error) } else { unknown(error) })
}

fn is_login_refused(error: &NewSessionError) -> bool {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: ConnectionError::ConnectionSetupRequestError(request),
    })) = error
    else {
        return false;
    };
    match request.get_error() {
        ConnectionSetupRequestErrorKind::DbError(error, _) => *error == DbError::AuthenticationError,
        ConnectionSetupRequestErrorKind::MissingAuthentication => true,
        _ => false,
    }
}

fn login_refused(error: NewSessionError) -> Error {
    Error::new(ErrorKind::Denied, "Cassandra refuses the login").caused_by(error)
}

fn client_config(tls: &ServiceTls) -> Result<Arc<ClientConfig>> {
    let invalid = |text| Error::new(ErrorKind::Invalid, text);
    let mut roots = RootCertStore::empty();
    match tls.read_ca()? {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let refused = "the file with the certificates of the authorities is not PEM";
                let certificate = certificate.map_err(|error| invalid(refused).caused_by(error))?;
                let refused = "a certificate of an authority is not valid";
                roots.add(certificate).map_err(|error| invalid(refused).caused_by(error))?;
            }
        }
        // A certificate of the operating system that cannot be used is no reason to refuse all others.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(invalid("there is no certificate of an authority"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| invalid("TLS is not available").caused_by(error))?
        .with_root_certificates(roots);
    let Some((cert, key)) = tls.read_identity()? else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let refused = "the certificate or key of this node is not PEM";
    let chain = CertificateDer::pem_slice_iter(&cert).collect::<std::result::Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| invalid(refused).caused_by(error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| invalid(refused).caused_by(error))?;
    let config = builder.with_client_auth_cert(chain, key);
    Ok(Arc::new(
        config
            .map_err(|error| invalid("the certificate and key of this node do not fit").caused_by(error))?,
    ))
}

impl Connection {
    pub(super) async fn connect(settings: &CassandraSettings) -> Result<Self> {
        let session = session(settings).await?;
        let statements = Statements::prepare(&session, &settings.keyspace).await?;
        Ok(Self { session, settings: settings.clone(), statements })
    }

    /// Returns the rows of a read statement.
    pub(super) async fn rows(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
    ) -> Result<QueryRowsResult> {
        let result = self.session.execute_unpaged(statement, values).await.map_err(unknown)?;
        result.into_rows_result().map_err(unknown)
    }

    /// Returns the rows of a read statement as a stream, which reads page by page.
    pub(super) async fn stream<T>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<BoxStream<'static, Result<T>>>
    where
        T: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + Send + Unpin + 'static,
    {
        let rows = self.session.execute_iter(statement.clone(), values).await.map_err(unknown)?;
        Ok(rows.rows_stream::<T>().map_err(|_| corrupt())?.map_err(unknown).boxed())
    }

    /// Executes an idempotent write.
    pub(super) async fn write(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
    ) -> Result<()> {
        self.session.execute_unpaged(statement, values).await.map(drop).map_err(unknown)
    }

    /// Executes a conditional statement. Returns whether its condition held.
    pub(super) async fn applied(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
    ) -> Result<bool> {
        was_applied(self.session.execute_unpaged(statement, values).await.map_err(unknown)?)
    }

    /// Sends idempotent writes in one request.
    pub(super) async fn batch(&self, writes: &[Write<'_>]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        self.send_batch(writes, true).await.map(drop)
    }

    /// Sends writes to one partition. They apply only if all conditions among them hold; returns whether they
    /// did.
    pub(super) async fn batch_applied(&self, writes: &[Write<'_>]) -> Result<bool> {
        was_applied(self.send_batch(writes, false).await?)
    }

    async fn send_batch(&self, writes: &[Write<'_>], repeatable: bool) -> Result<QueryResult> {
        metrics::histogram!("chat_cassandra_batch_writes").record(writes.len() as f64);
        let statements =
            writes.iter().map(|write| BatchStatement::PreparedStatement(write.statement.clone())).collect();
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
        batch.set_is_idempotent(repeatable);
        let bound = |value| if matches!(value, &CqlValue::Empty) { None } else { Some(value) };
        let values: Vec<Vec<Option<&CqlValue>>> =
            writes.iter().map(|write| write.values.iter().map(bound).collect()).collect();
        self.session.batch(&batch, &values).await.map_err(unknown)
    }
}

/// One write of a batch.
pub(super) struct Write<'a> {
    pub statement: &'a PreparedStatement,
    /// `Empty` is sent as null.
    pub values: Vec<CqlValue>,
}

impl Write<'_> {
    /// Returns the approximate size in bytes.
    pub(super) fn size(&self) -> usize {
        let blob = |value: &CqlValue| match value {
            CqlValue::Blob(bytes) => bytes.len(),
            _ => 8,
        };
        self.values.iter().map(blob).sum()
    }
}

fn was_applied(result: QueryResult) -> Result<bool> {
    // The columns of the answer depend on whether the statement was applied.
    let rows = result.into_rows_result().map_err(unknown)?;
    let row = rows.maybe_first_row::<Row>().map_err(unknown)?;
    let first = row.and_then(|row| row.columns.into_iter().next().flatten());
    Ok(matches!(first, Some(CqlValue::Boolean(true))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let settings: CassandraSettings = "cassandra://a:1,b:2".parse().unwrap();
        assert_eq!((settings.nodes.len(), settings.keyspace.as_str()), (2, "chat"));
        for bad in [
            "redis://a:1",
            "cassandra://",
            "cassandra://a:1/Bad;DROP",
            "cassandra://a:1/k?dc=a'b",
            "cassandra://a:1/k?replication=0",
            "cassandra://a:1/k?x=1",
        ] {
            assert!(bad.parse::<CassandraSettings>().is_err(), "{bad}");
        }
    }
}
