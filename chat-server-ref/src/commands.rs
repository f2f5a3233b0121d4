//! The commands, each a few calls of `chat-server` with these settings.

use std::io::IsTerminal;
use std::time::Duration;

use chat_core::Handle;
use chat_server::Server;

use crate::settings::Settings;

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("failed to start the runtime: {error}"))?;
    let outcome = runtime.block_on(work);
    // Connections that did not end in time end with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Serves until a signal drains the server.
pub(crate) fn serve(settings: &Settings) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log).map_err(|e| e.to_string())?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    chat_server::raise_file_limit();
    block_on(async {
        let server = start(settings).await?;
        #[cfg(feature = "telemetry")]
        if let Some(collector) = &settings.otlp {
            let gateway = server.engine().gateway_id();
            chat_server::telemetry::export(server.engine().trace(), collector, settings.otlp_share, gateway)?;
        }
        if let Some(url) = server.url() {
            tracing::info!("listening on {url}");
        }
        tracing::info!("admin on http://{}, as {:?}", settings.admin_listen, settings.roles);
        if settings.is_open() {
            tracing::warn!(
                "open registration is on: any user of this machine can register any free name; send limits are off"
            );
        }
        server.run_until(chat_server::stop_signal()).await.map_err(String::from)
    })
}

async fn start(settings: &Settings) -> Result<Server, String> {
    let builder = settings.builder().authenticator(settings.authenticator()?);
    #[cfg(feature = "cluster")]
    if settings.is_cluster() {
        return Ok(chat_server::cluster::start(builder, &settings.cluster()?).await?);
    }
    tracing::info!("store: data in {}", settings.data.display());
    Ok(builder.data_dir(&settings.data).start().await?)
}

/// Rejects settings that name the backends of a cluster if this binary lacks the feature `cluster`.
pub(crate) fn check_build(settings: &Settings) -> Result<(), String> {
    if settings.is_cluster() && cfg!(not(feature = "cluster")) {
        return Err("store, router and registry name Cassandra, Kafka and Redis, and this binary was built \
                    without the feature `cluster`: build it with `cargo build --release -p chat-server-ref \
                    --features cluster`"
            .into());
    }
    Ok(())
}

/// Checks every backend without changing it: a line per finding.
pub(crate) fn check(settings: &Settings) -> Result<Vec<Result<String, String>>, String> {
    let mut findings = vec![settings.describe_tokens().map(|found| format!("tokens: {found}"))];
    #[cfg(feature = "cluster")]
    if settings.is_cluster() {
        match settings.cluster() {
            Ok(cluster) => {
                let found = block_on(async { Ok(chat_server::cluster::check(&cluster).await) })?;
                findings.extend(found.into_iter().map(|found| found.map_err(String::from)));
            }
            Err(error) => findings.push(Err(error)),
        }
        return Ok(findings);
    }
    findings.push(chat_server::embedded::check(&settings.data).map_err(String::from));
    Ok(findings)
}

/// Brings the store to the format of this release: a line per change.
pub(crate) fn migrate(settings: &Settings, new_log: bool, restored: bool) -> Result<Vec<String>, String> {
    #[cfg(feature = "cluster")]
    if settings.is_cluster() {
        let cluster = settings.cluster()?;
        return block_on(async { Ok(chat_server::cluster::migrate(&cluster, new_log, restored).await?) });
    }
    let _ = new_log;
    Ok(vec![chat_server::embedded::migrate(&settings.data, restored)?])
}

/// Copies the data of one process to a cluster, and reports its progress.
#[cfg(feature = "cluster")]
pub(crate) fn migrate_data(
    from: &str,
    to: &str,
    report: impl Fn(String) + Send + Sync,
) -> Result<String, String> {
    let path = from.strip_prefix("fjall:").ok_or("--from is fjall:DIRECTORY, the data of one process")?;
    block_on(async { Ok(chat_server::cluster::migrate_data(path.as_ref(), to, report).await?) })
}

/// Fails: this build has no cluster backends.
#[cfg(not(feature = "cluster"))]
pub(crate) fn migrate_data(_: &str, _: &str, _: impl Fn(String)) -> Result<String, String> {
    Err("migrate-data needs a binary with the feature `cluster`".into())
}

/// Issues a token for a user, valid for `ttl` seconds and signed with the server's secret.
///
/// # Errors
/// If the handle is invalid, or there is no usable secret.
pub(crate) fn token(settings: &Settings, user: &str, ttl: u64) -> Result<String, String> {
    let missing = "secret_file is not set: the nodes of a cluster must share it";
    let secret = settings.secret()?.ok_or(missing)?;
    let user = Handle::new(user).map_err(|error| error.to_string())?;
    Ok(secret.issue(&user, Duration::from_secs(ttl))?)
}

/// Checks every promise about the stored data, and counts it.
pub(crate) fn verify(settings: &Settings) -> Result<String, String> {
    #[cfg(feature = "cluster")]
    if settings.is_cluster() {
        let cluster = settings.cluster()?;
        return block_on(async { Ok(chat_server::cluster::verify(&cluster).await?.to_string()) });
    }
    Ok(chat_server::embedded::verify(&settings.data)?.to_string())
}
