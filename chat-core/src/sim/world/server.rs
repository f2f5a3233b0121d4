//! The server's process in the world.

use std::sync::Arc;

use super::super::accounts::ACCOUNTS;
use super::super::cluster::{SimLink, SimRouter};
use super::super::gateway::{Effect, Gateway, Start, ready};
use super::super::registry::SimRegistry;
use super::super::store::SimStore;
use super::{Event, World};
use crate::backend::{AccountKey, GatewayId, KeyDirectory, NodeLink, Router};
use crate::memory::{MemoryRouter, NoLink};
use crate::wire::ClientFrame;

impl World {
    pub(super) fn link(&mut self, device: usize) {
        let user = self.devices[device].address().user;
        let Some(account) = ACCOUNTS.iter().find(|a| a.lists[1].list().user == user) else {
            return;
        };
        let _ = ready(self.keys.put_list(&account.lists[1], AccountKey::Same));
        for gateway in self.servers.iter().flatten() {
            gateway.invalidate_device_lists();
        }
    }

    pub(super) fn start_server(&mut self, server: usize) {
        if self.servers[server].is_some() {
            return;
        }
        let seed = self.rng.next_u64();
        self.lives += 1;
        let (tables, redo, keys) = (self.tables.clone(), self.redo.clone(), self.keys_used.clone());
        let store = Arc::new(SimStore::new(tables, redo, keys, seed, self.faults));
        let (router, node_link) = self.carriers(server);
        self.servers[server] = Some(Gateway::start(Start {
            gateway: GatewayId(self.lives * self.servers.len() as u64 + server as u64),
            store,
            keys: self.keys.clone(),
            router,
            registry: self.registry.clone(),
            node_link,
            clock: self.clock.clone(),
            session_queue: self.session_queue,
            mutants: self.options.mutants,
        }));
        self.soon(30, Event::Work(server));
    }

    /// The router and the node_link that a life of a server process begins with.
    fn carriers(&mut self, server: usize) -> (Arc<dyn Router>, Arc<dyn NodeLink>) {
        if self.options.cluster {
            let (log, clock, seed) = (self.cluster.log.clone(), self.clock.clone(), self.rng.next_u64());
            let errors = (self.faults.error_before, self.faults.error_after);
            let router = Arc::new(SimRouter::new(log, clock, seed, errors));
            self.cluster.routers[server] = Some(router.clone());
            return (router, Arc::new(SimLink(self.cluster.carried.clone())));
        }
        self.registry = Arc::new(SimRegistry::new(0, (0, 0)));
        if !self.options.split {
            // One process: the log dies with it, and commits are atomic.
            self.router = Arc::new(MemoryRouter::new(1, self.clock.clone()));
        }
        // Else the log outlives the process, and what was not committed comes again: that is what lets a
        // store apply commits in pieces.
        let router = self.router.clone();
        let _ = ready(router.rewind(0));
        (router, Arc::new(NoLink))
    }

    pub(super) fn deliver_to_server(&mut self, id: u64, frame: ClientFrame) {
        let now = self.time();
        self.with_gateway(id, |gateway, effects| gateway.frame(id, now, frame, effects));
    }

    pub(super) fn with_gateway(&mut self, id: u64, act: impl FnOnce(&mut Gateway, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        let Some(server) = self.pipes.get(&id).map(|pipe| pipe.server) else { return };
        let Some(gateway) = &mut self.servers[server] else { return };
        if !gateway.connections.contains_key(&id) {
            return;
        }
        act(gateway, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.transmit(id, 1, Event::ToDevice(id, frame)),
                // Whoever owns the shard.
                Effect::Work => (0..self.servers.len()).for_each(|one| self.soon(20, Event::Work(one))),
                Effect::Close => self.soon(100, Event::Broken(id)),
            }
        }
        self.carry();
        self.arm_gateway(id);
    }

    pub(super) fn arm_gateway(&mut self, id: u64) {
        let server = self.pipes.get(&id).and_then(|pipe| self.servers[pipe.server].as_ref());
        if let Some(at) = server.and_then(|gateway| gateway.deadline(id)) {
            self.at(at.as_millis().max(self.now + 1), Event::GatewayTimer(id));
        }
    }
}
