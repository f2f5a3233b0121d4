//! Storage backends of the traits in [`chat_core::backend`].
//!
//! | feature | type | stores |
//! |---|---|---|
//! | `fjall` (default) | [`EmbeddedStore`] | messages, inboxes, accounts and prekeys, in one directory |
//! | `sqlite` | [`SqliteStore`] | messages and inboxes in one SQLite file |
//! | `cassandra` | `cassandra::CassandraStore` | messages, inboxes, accounts and prekeys, shared by the nodes of a cluster |
//! | `redis` | [`redis::RedisRegistry`], [`redis::RedisPresence`] | routes of devices, gateways, presence |
//!
//! The embedded store issues one `fdatasync` per wake-up of its writer. `migrate_data` copies a data set from
//! the embedded store to Cassandra.

#[cfg(feature = "cassandra")]
pub mod cassandra;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
mod data_migration;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
mod data_set;
#[cfg(feature = "fjall")]
mod embedded;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "fjall", feature = "cassandra"))]
mod verify;

#[cfg(all(feature = "cassandra", feature = "fjall"))]
pub use data_migration::{MigratedData, migrate_data};
#[cfg(feature = "fjall")]
pub use embedded::EmbeddedStore;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
pub use embedded::SealedStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
#[cfg(any(feature = "fjall", feature = "cassandra"))]
pub use verify::Verification;
