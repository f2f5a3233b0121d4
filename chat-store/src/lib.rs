//! What remembers: durable backends of the traits in [`chat_core::backend`].
//!
//! | feature | type | what |
//! |---|---|---|
//! | `fjall` (default) | [`EmbeddedStore`] | messages, inboxes, accounts and prekeys in one directory; one `fdatasync` a wake-up |
//! | `sqlite` | [`SqliteStore`] | messages and inboxes in one SQLite file |
//! | `cassandra` | `cassandra::CassandraStore` | messages, inboxes, accounts and prekeys, shared by the nodes of a cluster |
//! | `redis` | [`redis::RedisRegistry`], [`redis::RedisPresence`] | who is connected where, and who was heard of lately |
//!
//! `copy` moves a data set from the embedded store to Cassandra.

#[cfg(any(feature = "fjall", feature = "cassandra"))]
mod audit;
#[cfg(feature = "cassandra")]
pub mod cassandra;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
mod copy;
#[cfg(feature = "fjall")]
mod embedded;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(any(feature = "fjall", feature = "cassandra"))]
pub use audit::Audit;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
pub use copy::{Copied, copy};
#[cfg(feature = "fjall")]
pub use embedded::EmbeddedStore;
#[cfg(all(feature = "cassandra", feature = "fjall"))]
pub use embedded::SealedStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
