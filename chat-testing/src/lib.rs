#![doc = include_str!("../README.md")]

mod in_process;
mod network;
mod suite_tables;
mod test_server;
mod unencrypted;

pub use network::Network;
pub use suite_tables::SuiteTables;
pub use test_server::TestServer;
pub use unencrypted::Unencrypted;
