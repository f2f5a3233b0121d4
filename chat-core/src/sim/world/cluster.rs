//! Events of a cluster of several server processes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::super::cluster::{Carried, SHARDS, SimLog, SimRouter};
use super::super::server::ready;
use super::{Event, HEAL_MS, World};
use crate::backend::{Deliveries, GatewayId, Registry};

/// Server processes of a cluster.
pub(super) const SERVERS: usize = 3;

/// State that the processes of a cluster share, and the world's view of the processes.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub log: Arc<Mutex<SimLog>>,
    pub routers: Vec<Option<Arc<SimRouter>>>,
    pub carried: Carried,
    /// End of the pause of each process, in milliseconds; 0 if it was never paused.
    pub stopped: Vec<u64>,
    /// Arrival time of the last delivery to each process: links keep their order.
    pub last_delivery: Vec<u64>,
}

impl World {
    /// Draws the events of a cluster.
    pub(super) fn plan_cluster(&mut self) {
        for shard in 0..SHARDS {
            self.at(1, Event::Move(shard));
            for _ in 0..self.rng.below(6) {
                let at = self.rng.below(HEAL_MS);
                self.at(at, Event::Move(shard));
            }
        }
        for _ in 0..self.rng.below(4) {
            let (at, server) = (self.rng.below(HEAL_MS), self.rng.below(SERVERS as u64) as usize);
            let length = [200, 3000, 15_000][self.rng.below(3) as usize];
            let length = self.rng.below(length);
            self.at(at, Event::Stop(server, length));
        }
        for _ in 0..self.rng.below(3) {
            let at = self.rng.below(HEAL_MS);
            self.at(at, Event::Forget);
        }
        self.at(2000, Event::Rebalance);
    }

    /// Returns the time when a process resumes, if it is paused.
    pub(super) fn stopped_until(&self, server: usize) -> Option<u64> {
        self.cluster.stopped.get(server).copied().filter(|until| *until > self.now)
    }

    pub(super) fn stop_server(&mut self, server: usize, length: u64) {
        if !self.healed {
            self.cluster.stopped[server] = self.now + length;
        }
    }

    /// Moves a shard to another process. The previous owner learns of it later, and continues until then.
    pub(super) fn move_shard(&mut self, shard: usize) {
        let running: Vec<usize> = (0..SERVERS).filter(|server| self.servers[*server].is_some()).collect();
        if running.is_empty() {
            return;
        }
        let owner = running[self.rng.below(running.len() as u64) as usize];
        let before = self.cluster.log.lock().owner(shard);
        self.cluster.log.lock().set_owner(shard, owner);
        self.report.moves += 1;
        self.soon(200, Event::Assigned(owner, shard));
        if let Some(before) = before.filter(|before| *before != owner) {
            let late = [50, 1000, 10_000][self.rng.below(3) as usize];
            self.soon(late, Event::Revoked(before, shard));
        }
    }

    pub(super) fn assigned(&mut self, server: usize, shard: usize) {
        if self.cluster.log.lock().owner(shard) == Some(server)
            && let Some(router) = &self.cluster.routers[server]
            && !router.owns(shard)
        {
            router.assign(shard);
        }
    }

    pub(super) fn revoked(&mut self, server: usize, shard: usize) {
        if self.cluster.log.lock().owner(shard) != Some(server)
            && let Some(router) = &self.cluster.routers[server]
        {
            router.revoke(shard);
        }
    }

    /// Acts as a coordinator every few seconds: moves shards away from crashed and paused processes.
    pub(super) fn rebalance(&mut self) {
        for shard in 0..SHARDS {
            let owner = self.cluster.log.lock().owner(shard);
            let well = owner.is_some_and(|owner| {
                self.servers[owner].is_some()
                    && self.stopped_until(owner).is_none()
                    && self.cluster.routers[owner].as_ref().is_some_and(|router| router.owns(shard))
            });
            if !well {
                self.move_shard(shard);
            }
        }
        self.soon(3000, Event::Rebalance);
    }

    /// Transports the deliveries between gateways.
    pub(super) fn carry(&mut self) {
        loop {
            let Some((gateway, deliveries)) = self.cluster.carried.lock().pop_front() else { return };
            if self.rng.chance(self.network.loss) {
                continue;
            }
            let server = gateway.0 as usize % SERVERS;
            let at = (self.now + self.rng.below(30)).max(self.cluster.last_delivery[server]);
            self.cluster.last_delivery[server] = at;
            self.at(at, Event::NodeDelivery(gateway, deliveries));
        }
    }

    pub(super) fn node_delivers(&mut self, gateway: GatewayId, deliveries: Deliveries) {
        let server = gateway.0 as usize % SERVERS;
        let stale = match &self.servers[server] {
            Some(here) if here.id == gateway => here.deliver_local(deliveries),
            _ => deliveries.sessions.into_iter().map(|(route, _)| route).collect(),
        };
        for route in stale {
            let _ = ready(self.registry.unbind(route));
        }
    }
}
