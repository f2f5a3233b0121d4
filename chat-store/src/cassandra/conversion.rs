//! Conversion of a data set of the schema's previous version, which kept a whole state in one row.

use chat_core::backend::{Commit, StoreIdentity};
use chat_core::codec::state;
use chat_core::envelope::Durability;
use chat_core::{ConversationId, Result, StoreEpoch};
use futures_util::TryStreamExt as _;

use super::connection::{Connection, unknown};
use super::{CassandraStore, corrupt};

/// Conversations that are converted concurrently.
const CONCURRENCY: usize = 16;

/// A row of the previous table: conversation, state, redo data.
type Whole = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Writes the state of every conversation in parts. The redo data stays as it is: it lacks the changed parts of the
/// state, which are written here.
pub(super) async fn convert_states(connection: Connection) -> Result<()> {
    let select = format!("SELECT conversation, state, redo FROM {}.state", connection.settings.keyspace);
    let all = connection.session.query_iter(select, ()).await.map_err(unknown)?;
    let rows = all.rows_stream::<Whole>().map_err(|_| corrupt())?.map_err(unknown);
    let identity = StoreIdentity { epoch: StoreEpoch::from_bytes([0; 16]), durability: Durability::Fsync };
    let store = &CassandraStore::new(connection, identity);
    let convert = |(conversation, whole, redo): Whole| async move {
        let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
        let commit = Commit::of(conversation, state::decode_format_1(&whole)?.into());
        store.write_state(&commit, redo.unwrap_or_default()).await
    };
    rows.try_for_each_concurrent(CONCURRENCY, convert).await
}
