use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use ::redis::{Script, cmd};
use async_trait::async_trait;
use chat_core::backend::{GatewayId, Registry, Route};
use chat_core::{ConversationId, DeviceAddress, DeviceId, Error, ErrorKind, InstallationId, Result, UserId};
use dashmap::DashMap;
use futures_util::future::join_all;

use super::connection::RedisLink;

/// Seconds after which a gateway's lease expires unless it is renewed.
const LEASE_SECS: u64 = 75;
/// Minimum interval between renewals of a gateway's lease by the heartbeats of its devices.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Time for which a gateway counts as alive after a lookup found its lease.
const SEEN_FOR: Duration = Duration::from_secs(1);
/// Seconds after which a user's routes expire unless a heartbeat extends them.
const ROUTES_SECS: u64 = 24 * 3600;

/// Seconds for which a gateway that followed a feed counts as a follower. It repeats that every 20 s.
const FOLLOW_SECS: u64 = 75;

/// Adds a gateway to the followers of a feed, and removes those that did not repeat it in time.
const FOLLOW: &str = r"
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
";

/// Returns the gateways that followed a feed in time.
const FOLLOWERS: &str = r"
local now = tonumber(redis.call('TIME')[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf')
";

/// Registers a route with an epoch above the stored one and not below the server's clock in microseconds, so
/// that it is also above epochs that Redis lost.
const BIND: &str = r"
local now = redis.call('TIME')
local epoch = now[1] * 1000000 + now[2]
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  local other = tonumber(string.match(known, '(%d+)$'))
  if other >= epoch then epoch = other + 1 end
end
epoch = string.format('%.0f', epoch)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. epoch)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return epoch
";

/// Restores a lost route. While the route is stored, it only extends the expiry, about twice a day.
const RENEW: &str = r"
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known == ARGV[2] then
  if redis.call('TTL', KEYS[1]) < ARGV[4] / 2 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
  return 1
end
if known and tonumber(string.match(known, '(%d+)$')) > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
";

/// Removes a route if the stored one is still equal to it.
const UNBIND: &str = r"
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
";

/// A [`Registry`] in Redis. Each change of a route is one script in the slot of the user.
///
/// Each gateway has a lease, which also holds its address. A heartbeat of a device renews the lease of its
/// gateway, at most every ten seconds, and does not rewrite the device's route. The next heartbeat restores a
/// route that Redis lost.
pub struct RedisRegistry {
    connection: RedisLink,
    /// Time of the last renewal, and address, of each gateway of this process.
    leases: DashMap<GatewayId, (Instant, String)>,
    /// Time at which a lookup last found the lease of each gateway.
    seen: DashMap<GatewayId, Instant>,
    bind: Script,
    renew: Script,
    unbind: Script,
    follow: Script,
    followers: Script,
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRegistry").field("connection", &self.connection).finish_non_exhaustive()
    }
}

fn key(user: UserId) -> String {
    format!("chat:{{{}}}:routes", user.to_hex())
}

fn followers_key(feed: ConversationId) -> String {
    format!("chat:{{{}}}:followers", feed.to_hex())
}

fn lease(gateway: GatewayId) -> String {
    format!("chat:gateway:{}", gateway.0)
}

fn value(route: &Route) -> String {
    format!("{}:{}:{}", route.device.device.get(), route.gateway.0, route.epoch)
}

fn read(user: UserId, installation: &str, value: &str) -> Option<Route> {
    let mut parts = value.split(':');
    let device = DeviceAddress {
        user,
        device: DeviceId::new(parts.next()?.parse().ok()?).ok()?,
        installation: InstallationId::from_hex(installation).ok()?,
    };
    let gateway = GatewayId(parts.next()?.parse().ok()?);
    Some(Route { device, gateway, epoch: parts.next()?.parse().ok()? })
}

impl RedisRegistry {
    /// Returns a registry on this connection.
    pub fn new(connection: RedisLink) -> Self {
        Self {
            connection,
            leases: DashMap::new(),
            seen: DashMap::new(),
            bind: Script::new(BIND),
            renew: Script::new(RENEW),
            unbind: Script::new(UNBIND),
            follow: Script::new(FOLLOW),
            followers: Script::new(FOLLOWERS),
        }
    }

    async fn hold_lease(&self, gateway: GatewayId) -> Result<()> {
        let known = self.leases.get(&gateway).map(|lease| lease.clone());
        if known.as_ref().is_some_and(|(at, _)| at.elapsed() < RENEW_EVERY) {
            return Ok(());
        }
        self.take_lease(gateway, known.map(|(_, address)| address).unwrap_or_default()).await
    }

    async fn take_lease(&self, gateway: GatewayId, address: String) -> Result<()> {
        let (key, mut set) = (lease(gateway), cmd("SET"));
        set.arg(&key).arg(&address).arg("EX").arg(LEASE_SECS);
        self.connection.run::<()>(&key, &set).await?;
        self.leases.insert(gateway, (Instant::now(), address));
        Ok(())
    }

    async fn routes_of(&self, user: UserId) -> Result<Vec<Route>> {
        let (key, mut all) = (key(user), cmd("HGETALL"));
        all.arg(&key);
        let known: HashMap<String, String> = self.connection.run(&key, &all).await?;
        Ok(known.iter().filter_map(|(installation, value)| read(user, installation, value)).collect())
    }

    /// Returns those of the gateways that hold their lease.
    async fn alive(&self, mut gateways: Vec<GatewayId>) -> Vec<GatewayId> {
        gateways.sort_unstable();
        gateways.dedup();
        let now = Instant::now();
        let fresh =
            |gateway: &GatewayId| self.seen.get(gateway).is_some_and(|at| now.duration_since(*at) < SEEN_FOR);
        let (mut alive, gateways): (Vec<_>, Vec<_>) = gateways.into_iter().partition(fresh);
        let held = join_all(gateways.iter().map(|gateway| async {
            let (key, mut exists) = (lease(*gateway), cmd("EXISTS"));
            exists.arg(&key);
            self.connection.run::<bool>(&key, &exists).await
        }))
        .await;
        for (gateway, held) in gateways.into_iter().zip(held) {
            if matches!(held, Ok(true)) {
                if self.seen.len() > 1000 {
                    self.seen.clear();
                }
                self.seen.insert(gateway, now);
            }
            // If the lookup of the lease fails, the gateway counts as alive: deliveries to a dead one get no
            // answer.
            if held.unwrap_or(true) {
                alive.push(gateway);
            }
        }
        alive
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        self.hold_lease(gateway).await?;
        let key = key(device.user);
        let epoch: String = self
            .connection
            .script(
                &key,
                self.bind
                    .key(&key)
                    .arg(device.installation.to_hex())
                    .arg(format!("{}:{}", device.device.get(), gateway.0))
                    .arg(ROUTES_SECS),
            )
            .await?;
        epoch.parse().map_err(|_| Error::new(ErrorKind::Unavailable, "Redis returned an invalid epoch"))
    }

    async fn renew(&self, route: Route) -> Result<()> {
        self.hold_lease(route.gateway).await?;
        let key = key(route.device.user);
        let renewed: bool = self
            .connection
            .script(
                &key,
                self.renew
                    .key(&key)
                    .arg(route.device.installation.to_hex())
                    .arg(value(&route))
                    .arg(route.epoch)
                    .arg(ROUTES_SECS),
            )
            .await?;
        if renewed {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Conflict, "a newer connection is registered"))
        }
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        let (key, installation) = (key(route.device.user), route.device.installation.to_hex());
        self.connection.script::<()>(&key, self.unbind.key(&key).arg(installation).arg(value(&route))).await
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        self.take_lease(gateway, address.to_owned()).await
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        let (key, mut get) = (lease(gateway), cmd("GET"));
        get.arg(&key);
        let address: Option<String> = self.connection.run(&key, &get).await?;
        Ok(address.filter(|address| !address.is_empty()))
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        let found = join_all(users.iter().map(|user| self.routes_of(*user))).await;
        // Part of a Cluster may be unreachable: users on the other nodes are found.
        if let (true, Some(Err(error))) = (found.iter().all(Result::is_err), found.first()) {
            return Err(error.clone());
        }
        let routes: Vec<Route> = found.into_iter().flatten().flatten().collect();
        let alive = self.alive(routes.iter().map(|route| route.gateway).collect()).await;
        Ok(routes.into_iter().filter(|route| alive.contains(&route.gateway)).collect())
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        let key = followers_key(feed);
        self.connection.script::<()>(&key, self.follow.key(&key).arg(gateway.0).arg(FOLLOW_SECS)).await
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        let key = followers_key(feed);
        let known: Vec<u64> = self.connection.script(&key, self.followers.key(&key).arg(FOLLOW_SECS)).await?;
        Ok(self.alive(known.into_iter().map(GatewayId).collect()).await)
    }
}
