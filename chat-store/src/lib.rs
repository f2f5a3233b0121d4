#![doc = include_str!("../README.md")]

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
