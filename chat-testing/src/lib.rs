#![doc = include_str!("../README.md")]

mod in_process;
mod test_server;
mod unencrypted;

pub use test_server::TestServer;
pub use unencrypted::Unencrypted;
