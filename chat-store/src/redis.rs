//! Who is connected where, and who was heard of lately, in Redis: a single server or a Cluster.
//!
//! Both are hints. Lose all of Redis and only delay follows: routes come back with the next heartbeat of
//! each device, and presence with it.
//!
//! | key | value | lives |
//! |---|---|---|
//! | `chat:{user}:routes` | hash, installation to `device:gateway:epoch` | a day after the last change |
//! | `chat:{user}:presence` | hash, installation to milliseconds of the last beat | 76 s |
//! | `chat:gateway:{id}` | the lease of a gateway, with its address: without it its routes are not found | 75 s |
//!
//! Everything of a user lies in one slot of a Cluster, so each script touches one node.

mod cluster;
mod connection;
mod presence;
mod registry;
mod single;

pub use connection::RedisLink;
pub use presence::RedisPresence;
pub use registry::RedisRegistry;
