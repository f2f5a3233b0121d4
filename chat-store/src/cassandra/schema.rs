use std::collections::HashMap;

use chat_core::{Error, ErrorKind, Result};
use scylla::client::session::Session;
use scylla::statement::Statement;
use scylla::statement::prepared::PreparedStatement;

use super::connection::{CassandraSettings, Connection, session, unknown};
use super::conversion;

/// Version of the tables below.
const VERSION: i32 = 3;
/// Previous version, which [`migrate`] converts to [`VERSION`].
const BEFORE: i32 = 2;
/// Stored in place of the version while a data set is copied to the keyspace.
const COPYING: i32 = 0;

/// Tables of the schema, without [`HANDLES`]. Inbox tombstones only free space, so they are kept for hours,
/// not days.
const TABLES: [&str; 14] = [
    "meta (one text PRIMARY KEY, version int, epoch blob, generation bigint, log blob, partitions int, opened boolean)",
    "state_parts (conversation blob, part blob, seq bigint, value blob, redo blob, PRIMARY KEY (conversation, part)) \
     WITH compaction = {'class': 'LeveledCompactionStrategy'}",
    "history (conversation blob, bucket bigint, seq bigint, row blob, PRIMARY KEY ((conversation, bucket), seq)) \
     WITH CLUSTERING ORDER BY (seq DESC)",
    "disappearing (minute bigint, due_us bigint, conversation blob, seq bigint, \
     PRIMARY KEY (minute, due_us, conversation, seq)) WITH gc_grace_seconds = 10800",
    "ids (conversation blob, sender blob, minute int, id blob, seq bigint, \
     PRIMARY KEY ((conversation, sender, minute), id))",
    "inbox (installation blob, day int, time_us bigint, conversation blob, seq bigint, size int, row blob, \
     PRIMARY KEY ((installation, day), time_us, conversation, seq)) WITH gc_grace_seconds = 10800",
    "cells (installation blob, conversation blob, generation bigint static, born bigint static, \
     floor bigint static, tail bigint, acked bigint, first bigint, PRIMARY KEY (installation, conversation)) \
     WITH compaction = {'class': 'LeveledCompactionStrategy'}",
    "feeds (installation blob, conversation blob, seq bigint, joins boolean, \
     PRIMARY KEY (installation, conversation, seq))",
    "accounts (user blob PRIMARY KEY, handle text, version bigint, list blob)",
    "lists (user blob, version bigint, list blob, PRIMARY KEY (user, version))",
    "devices (installation blob, id bigint, signed blob static, signature blob static, through bigint static, \
     incarnation int static, nonce blob static, at_ms bigint static, data blob, PRIMARY KEY (installation, id)) \
     WITH gc_grace_seconds = 86400",
    "owners (installation blob PRIMARY KEY, user blob)",
    "revocations (day int, at bigint, user blob, PRIMARY KEY (day, at, user))",
    "contacts (owner blob, other blob, version bigint static, pairs bigint static, accepted boolean, blocked boolean, \
     PRIMARY KEY (owner, other))",
];
const HANDLES: &str = "handles (handle text PRIMARY KEY, user blob)";

async fn run(session: &Session, statement: String) -> Result<()> {
    session.query_unpaged(statement, ()).await.map(drop).map_err(unknown)
}

/// Creates the missing parts of the schema.
async fn make_tables(settings: &CassandraSettings) -> Result<Session> {
    let session = session(settings).await?;
    let nodes = session.get_cluster_state().get_nodes_info().len();
    if nodes < settings.replication as usize {
        return Err(Error::new(
            ErrorKind::Invalid,
            "Cassandra has fewer nodes than the requested copies: add nodes, or set ?replication=1 (then \
             data that one node loses is lost)",
        ));
    }
    let CassandraSettings { keyspace, datacenter, replication, .. } = settings;
    run(
        &session,
        format!(
            "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
             {{'class': 'NetworkTopologyStrategy', '{datacenter}': {replication}}} AND durable_writes = true"
        ),
    )
    .await?;
    for table in TABLES.iter().chain([&HANDLES]) {
        run(&session, format!("CREATE TABLE IF NOT EXISTS {keyspace}.{table}")).await?;
    }
    session.await_schema_agreement().await.map_err(unknown)?;
    Ok(session)
}

async fn begin_life(session: &Session, keyspace: &str, version: i32, epoch: [u8; 16]) -> Result<()> {
    let first =
        format!("INSERT INTO {keyspace}.meta (one, version, epoch) VALUES ('life', ?, ?) IF NOT EXISTS");
    session.query_unpaged(first, (version, &epoch[..])).await.map(drop).map_err(unknown)
}

pub(super) async fn migrate(settings: &CassandraSettings) -> Result<String> {
    let session = make_tables(settings).await?;
    let mut epoch = [0; 16];
    getrandom::fill(&mut epoch)
        .map_err(|e| Error::new(ErrorKind::Unavailable, "failed to read system randomness").caused_by(e))?;
    let CassandraSettings { keyspace, datacenter, replication, .. } = settings;
    begin_life(&session, keyspace, VERSION, epoch).await?;
    convert(&session, settings).await?;
    Ok(format!("keyspace {keyspace}: schema version {VERSION}, {replication} copies in {datacenter}"))
}

/// Gives the data set a new store epoch. No node may serve the keyspace meanwhile.
pub(super) async fn renew_epoch(settings: &CassandraSettings) -> Result<()> {
    let session = make_tables(settings).await?;
    let mut epoch = [0; 16];
    getrandom::fill(&mut epoch)
        .map_err(|e| Error::new(ErrorKind::Unavailable, "failed to read system randomness").caused_by(e))?;
    // A conditional update, like every other write of the row.
    let renew = format!("UPDATE {}.meta SET epoch = ? WHERE one = 'life' IF EXISTS", settings.keyspace);
    session.query_unpaged(renew, (&epoch[..],)).await.map(drop).map_err(unknown)
}

/// Converts a data set of version [`BEFORE`], if the keyspace holds one, and removes what only that version reads.
/// Repeating an interrupted conversion is safe. No node may serve the keyspace meanwhile.
async fn convert(session: &Session, settings: &CassandraSettings) -> Result<()> {
    let keyspace = &settings.keyspace;
    let version = format!("SELECT version FROM {keyspace}.meta WHERE one = 'life'");
    let rows = session.query_unpaged(version, ()).await.map_err(unknown)?;
    let rows = rows.into_rows_result().map_err(unknown)?;
    if rows.maybe_first_row::<(i32,)>().map_err(unknown)? == Some((BEFORE,)) {
        conversion::convert_states(Connection::connect(settings).await?).await?;
        let raise = format!("UPDATE {keyspace}.meta SET version = ? WHERE one = 'life' IF version = ?");
        session.query_unpaged(raise, (VERSION, BEFORE)).await.map_err(unknown)?;
    }
    run(session, format!("DROP TABLE IF EXISTS {keyspace}.state")).await
}

/// Creates the schema for a copy of the data set with this epoch. No node serves the keyspace before
/// [`end_import`].
pub(super) async fn begin_import(settings: &CassandraSettings, epoch: [u8; 16]) -> Result<Connection> {
    let session = make_tables(settings).await?;
    begin_life(&session, &settings.keyspace, COPYING, epoch).await?;
    let connection = Connection::connect(settings).await?;
    let conflict = |text| Err(Error::new(ErrorKind::Conflict, text));
    match identity(&connection).await? {
        Some((COPYING, life)) if life == epoch => Ok(connection),
        Some((_, life)) if life == epoch => conflict("the copy is already finished: serve it"),
        _ => conflict("the keyspace holds another data set: name a new keyspace"),
    }
}

/// Finishes the copy: the data set may be served from now on.
pub(super) async fn end_import(connection: &Connection) -> Result<()> {
    if connection.applied(&connection.statements.end_import, (VERSION, COPYING)).await? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "another process finished the copy"))
}

async fn identity(connection: &Connection) -> Result<Option<(i32, [u8; 16])>> {
    let other = || Error::new(ErrorKind::Corrupt, "the identity of the keyspace cannot be decoded");
    let rows = connection.rows(&connection.statements.identity, ()).await?;
    let row = rows.maybe_first_row::<(i32, Vec<u8>)>().map_err(|_| other())?;
    row.map(|(version, epoch)| Ok((version, epoch.try_into().map_err(|_| other())?))).transpose()
}

/// Returns `Invalid` if the keyspace keeps fewer copies than requested, or does not write them to disk.
pub(super) async fn check_copies(connection: &Connection) -> Result<()> {
    let CassandraSettings { keyspace, datacenter, replication, .. } = &connection.settings;
    let select = "SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let rows = connection.session.query_unpaged(select, (keyspace,)).await.map_err(unknown)?;
    let rows = rows.into_rows_result().map_err(unknown)?;
    let row = rows.maybe_first_row::<(HashMap<String, String>, bool)>().map_err(unknown)?;
    let refused = |text| Err(Error::new(ErrorKind::Invalid, text));
    let Some((copies, durable)) = row else {
        return refused("there is no such keyspace: run `chat-server-ref migrate`");
    };
    let copies = copies.get(datacenter).and_then(|copies| copies.parse().ok()).unwrap_or(0);
    if copies < *replication {
        return refused(
            "the keyspace has fewer copies in the data centre of ?dc= than requested: ALTER KEYSPACE and \
             repair it, or set ?replication=1 (then data that one node loses is lost)",
        );
    }
    if !durable {
        return refused("the keyspace has durable_writes = false: acknowledged data would not be on disk");
    }
    Ok(())
}

/// Checks the schema's version. Returns the epoch of the data set.
pub(super) async fn check(connection: &Connection) -> Result<[u8; 16]> {
    match identity(connection).await? {
        Some((VERSION, epoch)) => Ok(epoch),
        Some((COPYING, _)) => Err(Error::new(
            ErrorKind::Invalid,
            "a data set is being copied to the keyspace: run `chat-server-ref migrate-data` to finish it",
        )),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            "the keyspace does not hold this release's schema: run `chat-server-ref migrate`",
        )),
    }
}

pub(super) async fn describe(connection: &Connection) -> Result<String> {
    let release = connection.session.query_unpaged("SELECT release_version FROM system.local", ()).await;
    let release = release.map_err(unknown)?.into_rows_result().map_err(unknown)?;
    let (release,) = release.first_row::<(String,)>().map_err(unknown)?;
    let state = connection.session.get_cluster_state();
    let nodes = state.get_nodes_info();
    let up = nodes.iter().filter(|node| node.is_connected()).count();
    Ok(format!(
        "release {release}, {up} of {} nodes connected, keyspace {}, {} copies in {}, {}",
        nodes.len(),
        connection.settings.keyspace,
        connection.settings.replication,
        connection.settings.datacenter,
        commitlog_sync(connection).await?
    ))
}

/// Returns `commitlog_sync` of the node that answers, with a warning if it is `periodic`.
async fn commitlog_sync(connection: &Connection) -> Result<String> {
    let select = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'";
    let rows = connection.session.query_unpaged(select, ()).await.map_err(unknown)?;
    let rows = rows.into_rows_result().map_err(unknown)?;
    let row = rows.maybe_first_row::<(Option<String>,)>().map_err(unknown)?;
    Ok(match row.and_then(|(value,)| value).as_deref() {
        Some("periodic") => {
            "commitlog_sync periodic: WARNING: nodes that lose power together lose the last writes \
             that they acknowledged; set it to batch or group"
                .to_owned()
        }
        value => format!("commitlog_sync {}", value.unwrap_or("unknown")),
    })
}

macro_rules! statements {
    ($($kind:ident { $($name:ident: $cql:literal,)+ })+) => {
        /// All statements, prepared once.
        pub(super) struct Statements {
            $($(pub $name: PreparedStatement,)+)+
        }

        impl Statements {
            pub(super) async fn prepare(session: &Session, keyspace: &str) -> Result<Self> {
                let prefix = format!("{keyspace}.");
                Ok(Self {
                    $($($name: prepare(session, &$cql.replace('@', &prefix), Kind::$kind).await?,)+)+
                })
            }
        }
    };
}

/// Kind of a statement: whether the driver may execute it twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A read, or a write with its own timestamp: the driver may repeat it.
    Repeatable,
    /// A write with a condition, or in a batch with one: a second attempt may fail because the first was
    /// applied.
    Conditional,
}

statements! {
    Repeatable {
        identity: "SELECT version, epoch FROM @meta WHERE one = 'life'",
        log: "SELECT generation, log, partitions, opened FROM @meta WHERE one = 'log'",
        parts: "SELECT part, value, redo FROM @state_parts WHERE conversation = ? AND part IN ?",
        all_parts: "SELECT part, value, redo FROM @state_parts WHERE conversation = ?",
        all_heads: "SELECT conversation, value, redo FROM @state_parts WHERE part = 0x00 ALLOW FILTERING",
        marks: "SELECT part, seq, value FROM @state_parts WHERE conversation = ? AND part IN ?",
        drop_redo: "DELETE redo FROM @state_parts USING TIMESTAMP ? WHERE conversation = ? AND part = 0x00",
        conversations: "SELECT DISTINCT conversation FROM @state_parts",
        head: "SELECT seq FROM @state_parts WHERE conversation = ? AND part = 0x00",
        put_head: "INSERT INTO @state_parts (conversation, part, seq, value, redo) VALUES (?, 0x00, ?, ?, ?) USING TIMESTAMP ?",
        put_part: "INSERT INTO @state_parts (conversation, part, value) VALUES (?, ?, ?) USING TIMESTAMP ?",
        history: "SELECT row FROM @history WHERE conversation = ? AND bucket = ? AND seq < ? LIMIT ?",
        history_of: "SELECT row FROM @history WHERE conversation = ? AND bucket = ? ORDER BY seq ASC",
        history_after: "SELECT row FROM @history WHERE conversation = ? AND bucket = ? AND seq > ? ORDER BY seq ASC LIMIT ?",
        history_in: "SELECT row FROM @history WHERE conversation = ? AND bucket = ? AND seq IN ?",
        put_history: "INSERT INTO @history (conversation, bucket, seq, row) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
        put_disappearing: "INSERT INTO @disappearing (minute, due_us, conversation, seq) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
        disappearing_in: "SELECT due_us, conversation, seq FROM @disappearing WHERE minute = ? AND due_us <= ?",
        disappearing_minutes: "SELECT DISTINCT minute FROM @disappearing",
        delete_disappearing: "DELETE FROM @disappearing USING TIMESTAMP ? WHERE minute = ? AND due_us = ? AND conversation = ? AND seq = ?",
        find: "SELECT seq FROM @ids WHERE conversation = ? AND sender = ? AND minute = ? AND id = ?",
        put_id: "INSERT INTO @ids (conversation, sender, minute, id, seq) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
        all_ids: "SELECT conversation, sender, minute, id, seq FROM @ids",
        delete_id: "DELETE FROM @ids USING TIMESTAMP ? WHERE conversation = ? AND sender = ? AND minute = ? AND id = ?",
        inbox: "SELECT time_us, conversation, seq, size, row FROM @inbox WHERE installation = ? AND day = ? AND (time_us, conversation, seq) > (?, ?, ?) LIMIT ?",
        inbox_keys: "SELECT time_us, conversation, seq, size FROM @inbox WHERE installation = ? AND day = ? AND time_us >= ?",
        inbox_partitions: "SELECT DISTINCT installation, day FROM @inbox",
        put_inbox: "INSERT INTO @inbox (installation, day, time_us, conversation, seq, size, row) VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
        inbox_of: "SELECT time_us, conversation, seq, size, row FROM @inbox WHERE installation = ? AND day = ?",
        delete_inbox: "DELETE FROM @inbox USING TIMESTAMP ? WHERE installation = ? AND day = ? AND time_us = ? AND conversation = ? AND seq = ?",
        erase_inbox: "DELETE FROM @inbox USING TIMESTAMP ? WHERE installation = ? AND day = ?",
        erase_feeds: "DELETE FROM @feeds USING TIMESTAMP ? WHERE installation = ?",
        put_feed: "INSERT INTO @feeds (installation, conversation, seq, joins) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
        delete_feed: "DELETE FROM @feeds USING TIMESTAMP ? WHERE installation = ? AND conversation = ? AND seq = ?",
        feeds: "SELECT conversation, seq, joins FROM @feeds WHERE installation = ?",
        feed_of: "SELECT seq FROM @feeds WHERE installation = ? AND conversation = ? LIMIT 1",
        all_feeds: "SELECT installation, conversation, seq FROM @feeds",
        erase_cells: "DELETE FROM @cells USING TIMESTAMP ? WHERE installation = ?",
        delete_below: "DELETE FROM @inbox USING TIMESTAMP ? WHERE installation = ? AND day = ? AND time_us < ?",
        device: "SELECT generation, born, floor FROM @cells WHERE installation = ? LIMIT 1",
        devices: "SELECT DISTINCT installation FROM @cells",
        cursors: "SELECT conversation, tail, acked, first FROM @cells WHERE installation = ?",
        cursors_of: "SELECT conversation, tail, acked, first FROM @cells WHERE installation = ? AND conversation IN ?",
        put_tail: "UPDATE @cells USING TIMESTAMP ? SET tail = ? WHERE installation = ? AND conversation = ?",
        put_acked: "UPDATE @cells USING TIMESTAMP ? SET acked = ? WHERE installation = ? AND conversation = ?",
        put_first: "UPDATE @cells USING TIMESTAMP ? SET first = ? WHERE installation = ? AND conversation = ?",
        put_generation: "UPDATE @cells USING TIMESTAMP ? SET generation = ? WHERE installation = ?",
        put_born: "UPDATE @cells USING TIMESTAMP ? SET born = ? WHERE installation = ?",
        put_floor: "UPDATE @cells USING TIMESTAMP ? SET floor = ? WHERE installation = ?",
        resolve: "SELECT user FROM @handles WHERE handle = ?",
        account_version: "SELECT version FROM @accounts WHERE user = ?",
        account: "SELECT handle, list FROM @accounts WHERE user = ?",
        account_handles: "SELECT handle FROM @accounts",
        list_version: "SELECT list FROM @lists WHERE user = ? AND version = ?",
        list_versions: "SELECT list FROM @lists WHERE user = ?",
        put_list_version: "INSERT INTO @lists (user, version, list) VALUES (?, ?, ?) USING TIMESTAMP 1",
        put_revocation: "INSERT INTO @revocations (day, at, user) VALUES (?, ?, ?) USING TIMESTAMP 1 AND TTL 34646400",
        revocations: "SELECT at, user FROM @revocations WHERE day = ? AND at >= ?",
        revocation_days: "SELECT DISTINCT day FROM @revocations",
        contact: "SELECT accepted, blocked FROM @contacts WHERE owner = ? AND other = ?",
        contacts: "SELECT other, accepted, blocked, version FROM @contacts WHERE owner = ?",
        contacts_head: "SELECT version, pairs FROM @contacts WHERE owner = ? LIMIT 1",
        import_contact: "INSERT INTO @contacts (owner, other, accepted, blocked) VALUES (?, ?, ?, ?) USING TIMESTAMP 1",
        import_contacts_head: "UPDATE @contacts USING TIMESTAMP 1 SET version = ?, pairs = ? WHERE owner = ?",
        owner: "SELECT user FROM @owners WHERE installation = ?",
        ids_of: "SELECT id, seq FROM @ids WHERE conversation = ? AND sender = ? AND minute = ?",
        prekeys: "SELECT id, data FROM @devices WHERE installation = ?",
        import_account: "INSERT INTO @accounts (user, handle, version, list) VALUES (?, ?, ?, ?) USING TIMESTAMP 1",
        import_deleted: "INSERT INTO @accounts (user, version) VALUES (?, -1) USING TIMESTAMP 1",
        import_handle: "INSERT INTO @handles (handle, user) VALUES (?, ?) USING TIMESTAMP 1",
        import_owner: "INSERT INTO @owners (installation, user) VALUES (?, ?) USING TIMESTAMP 1",
        import_prekey: "INSERT INTO @devices (installation, id, data) VALUES (?, ?, ?) USING TIMESTAMP 1",
        import_bundle: "UPDATE @devices USING TIMESTAMP 1 SET signed = ?, signature = ?, through = ? WHERE installation = ?",
        import_incarnation: "UPDATE @devices USING TIMESTAMP 1 SET incarnation = ?, nonce = ?, at_ms = ? WHERE installation = ?",
        keys: "SELECT signed, signature, through, incarnation, nonce, at_ms FROM @devices WHERE installation = ? LIMIT 1",
        stock: "SELECT incarnation, through, id FROM @devices WHERE installation = ?",
        prekey_ids: "SELECT id FROM @devices WHERE installation = ?",
        first_prekey: "SELECT signed, signature, id, data FROM @devices WHERE installation = ? LIMIT 1",
    }
    Conditional {
        first_log: "INSERT INTO @meta (one, generation, log, partitions, opened) VALUES ('log', ?, ?, ?, ?) IF NOT EXISTS",
        next_log: "UPDATE @meta SET generation = ?, log = ?, partitions = ?, opened = ? WHERE one = 'log' IF generation = ?",
        end_import: "UPDATE @meta SET version = ? WHERE one = 'life' IF version = ?",
        open_log: "UPDATE @meta SET opened = true WHERE one = 'log' IF generation = ?",
        take_handle: "INSERT INTO @handles (handle, user) VALUES (?, ?) IF NOT EXISTS",
        open_account: "INSERT INTO @accounts (user, handle, version, list) VALUES (?, ?, ?, ?) IF NOT EXISTS",
        put_list: "UPDATE @accounts SET version = ?, list = ? WHERE user = ? IF version = ?",
        take_owner: "INSERT INTO @owners (installation, user) VALUES (?, ?) IF NOT EXISTS",
        delete_account: "UPDATE @accounts SET handle = null, list = null, version = -1 WHERE user = ? IF EXISTS",
        free_handle: "DELETE FROM @handles WHERE handle = ? IF user = ?",
        erase_bundle: "UPDATE @devices SET signed = null, signature = null, through = null WHERE installation = ? IF incarnation = ? AND through = ?",
        erase_keys: "UPDATE @devices SET incarnation = null, nonce = null, at_ms = null, signed = null, signature = null, through = null WHERE installation = ? IF incarnation = ? AND through = ?",
        drop_contact: "DELETE FROM @contacts WHERE owner = ? AND other = ?",
        drop_contacts_head: "UPDATE @contacts SET version = null, pairs = null WHERE owner = ? IF version = ?",
        put_contact: "INSERT INTO @contacts (owner, other, accepted, blocked) VALUES (?, ?, ?, ?)",
        put_contacts_head: "UPDATE @contacts SET version = ?, pairs = ? WHERE owner = ? IF version = ?",
        take_prekey: "DELETE FROM @devices WHERE installation = ? AND id = ? IF EXISTS",
        put_prekey: "INSERT INTO @devices (installation, id, data) VALUES (?, ?, ?)",
        drop_prekey: "DELETE FROM @devices WHERE installation = ? AND id = ?",
        put_bundle: "UPDATE @devices SET signed = ?, signature = ?, through = ? WHERE installation = ? IF through = ? AND incarnation = ?",
        put_incarnation: "UPDATE @devices SET incarnation = ?, nonce = ?, at_ms = ?, signed = null, signature = null, through = null WHERE installation = ? IF incarnation = ?",
    }
}

async fn prepare(session: &Session, cql: &str, kind: Kind) -> Result<PreparedStatement> {
    let mut statement = Statement::new(cql);
    statement.set_is_idempotent(kind == Kind::Repeatable);
    let missing = |e| {
        Error::new(ErrorKind::Invalid, "Cassandra lacks the schema: run `chat-server-ref migrate`")
            .caused_by(e)
    };
    session.prepare(statement).await.map_err(missing)
}
