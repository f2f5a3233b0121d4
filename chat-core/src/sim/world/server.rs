//! The server processes of the simulated world.

use std::sync::Arc;

use super::super::accounts::ACCOUNTS;
use super::super::cluster::{SimLink, SimRouter};
use super::super::registry::SimRegistry;
use super::super::server::{Server, Start, ready};
use super::super::store::SimStore;
use super::{Event, World};
use crate::backend::{AccountKey, GatewayId, KeyDirectory, NodeLink, Router, Rules};
use crate::memory::{MemoryRouter, NoLink};
use crate::replica::Input;

impl World {
    pub(super) fn link(&mut self, device: usize) {
        let user = self.devices[device].address().user;
        let Some(account) = ACCOUNTS.iter().find(|a| a.lists[1].list().user == user) else {
            return;
        };
        let _ = ready(self.keys.put_list(&account.lists[1], AccountKey::Same));
        for server in self.servers.iter().flatten() {
            server.invalidate_caches();
        }
        self.tell_primary(device, 1);
    }

    /// In the world with groups, the primary device made the list and knows it.
    fn tell_primary(&mut self, device: usize, version: usize) {
        let primary = device - device % 2;
        let list = &ACCOUNTS[primary / 2].lists[version];
        if self.options.groups && self.devices[primary].replica.is_some() {
            self.device_step(primary, Input::OwnList(list.clone()));
        }
    }

    /// A user unlinks a second device, if that is linked. The device loses its connection.
    pub(super) fn unlink(&mut self, device: usize) {
        let user = self.devices[device].address().user;
        let Some(account) = ACCOUNTS.iter().find(|a| a.lists[1].list().user == user) else {
            return;
        };
        if ready(self.keys.put_list(&account.lists[2], AccountKey::Same)).is_err() {
            return;
        }
        self.oracle.unlinked = Some(self.devices[device].address().installation);
        for server in self.servers.iter().flatten() {
            server.invalidate_caches();
        }
        let connection = self.devices[device].connection;
        self.break_pipe_later(connection);
        self.tell_primary(device, 2);
    }

    pub(super) fn start_server(&mut self, server: usize) {
        if self.servers[server].is_some() {
            return;
        }
        let seed = self.rng.next_u64();
        self.lives += 1;
        let (tables, redo, keys) = (self.tables.clone(), self.redo.clone(), self.keys_used.clone());
        let store = Arc::new(SimStore::new(tables, redo, keys, seed, self.faults).with_epoch(self.epoch));
        let (router, node_link) = self.carriers(server);
        self.servers[server] = Some(Server::start(Start {
            server,
            gateway: GatewayId(self.lives * self.servers.len() as u64 + server as u64),
            store,
            keys: self.keys.clone(),
            contacts: self.contacts.clone(),
            router,
            registry: self.registry.clone(),
            node_link,
            presence: self.presence.clone(),
            clock: self.clock.clone(),
            runtime: self.runtime.clone(),
            woken: self.woken.clone(),
            session_queue: self.session_queue,
            rules: match (self.options.channels, self.options.groups || self.options.erasure) {
                (true, _) => Rules::CHANNELS,
                (false, true) => Rules::GROUPS,
                (false, false) => Rules::OPTIONS,
            },
            feed_devices: self.feed_devices,
        }));
    }

    /// The router and the node link of a server process that starts.
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
            // The log dies with the one process, and commits are atomic.
            self.router = Arc::new(MemoryRouter::new(1, self.clock.clone()));
        }
        // With `split`, the log survives the process and replays the uncommitted records. This lets a store
        // apply commits in pieces.
        let router = self.router.clone();
        let _ = ready(router.rewind(0));
        (router, Arc::new(NoLink))
    }

    /// Lets the driver of a connection go on, and carries what it sent.
    pub(super) fn poll_connection(&mut self, id: u64) {
        let Some(server) = self.pipes.get(&id).map(|pipe| pipe.server) else { return self.poll_broken(id) };
        let Some(process) = &mut self.servers[server] else { return };
        let polled = process.poll_connection(id);
        for frame in polled.frames {
            self.transmit(id, 1, Event::ToDevice(id, frame));
        }
        if polled.closed {
            self.soon(100, Event::Broken(id));
        }
        self.carry();
    }

    /// The pipe is gone, and the driver has yet to notice.
    fn poll_broken(&mut self, id: u64) {
        for server in self.servers.iter_mut().flatten() {
            server.poll_connection(id);
        }
        self.carry();
    }
}
