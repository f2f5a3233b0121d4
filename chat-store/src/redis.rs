//! Registry and presence in Redis: a single server or a Cluster.
//!
//! Both are hints: losing all data in Redis causes only delay. The next heartbeat of each device restores its
//! route and its presence.
//!
//! | key | value | expires after |
//! |---|---|---|
//! | `chat:{user}:routes` | hash, installation to `device:gateway:epoch` | a day, which heartbeats extend |
//! | `chat:{user}:presence` | hash, installation to milliseconds of the last beat | 76 s |
//! | `chat:gateway:{id}` | lease of a gateway, with its address; routes without one are not found | 75 s |
//!
//! All keys of a user are in one slot of a Cluster, so each script runs on one node.

mod cluster;
mod connection;
mod presence;
mod registry;
mod single;

pub use connection::RedisLink;
pub use presence::RedisPresence;
pub use registry::RedisRegistry;
