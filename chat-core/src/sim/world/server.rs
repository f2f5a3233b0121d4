//! The server's process in the world.

use std::sync::Arc;

use super::super::accounts::ACCOUNTS;
use super::super::gateway::{Effect, Gateway, ready};
use super::super::store::SimStore;
use super::{Event, World};
use crate::backend::{AccountKey, KeyDirectory, Router};
use crate::memory::MemoryRouter;
use crate::wire::ClientFrame;

impl World {
    pub(super) fn link(&mut self, device: usize) {
        let user = self.devices[device].address().user;
        let Some(account) = ACCOUNTS.iter().find(|a| a.lists[1].list().user == user) else {
            return;
        };
        let _ = ready(self.keys.put_list(&account.lists[1], AccountKey::Same));
        if let Some(gateway) = &self.gateway {
            gateway.forget_lists();
        }
    }

    pub(super) fn start_server(&mut self) {
        if self.gateway.is_some() {
            return;
        }
        let seed = self.rng.next_u64();
        let store = Arc::new(SimStore::new(self.tables.clone(), self.keys_used.clone(), seed, self.faults));
        let (keys, clock) = (self.keys.clone(), self.clock.clone());
        if !self.options.split {
            // One process: the log dies with it, and commits are atomic.
            self.router = Arc::new(MemoryRouter::new(1, clock.clone()));
        }
        // Else the log outlives the process, and what was not committed comes again: that is what lets a
        // store apply commits in pieces.
        let router = self.router.clone();
        let _ = ready(router.rewind(0));
        self.gateway =
            Some(Gateway::start(store, keys, router, clock, self.session_queue, self.options.mutants));
        self.soon(30, Event::Work);
    }

    pub(super) fn deliver_to_server(&mut self, id: u64, frame: ClientFrame) {
        let now = self.time();
        self.with_gateway(id, |gateway, effects| gateway.frame(id, now, frame, effects));
    }

    pub(super) fn with_gateway(&mut self, id: u64, act: impl FnOnce(&mut Gateway, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        let Some(gateway) = &mut self.gateway else { return };
        if !gateway.connections.contains_key(&id) {
            return;
        }
        act(gateway, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.transmit(id, 1, Event::ToDevice(id, frame)),
                Effect::Work => self.soon(20, Event::Work),
                Effect::Close => self.soon(100, Event::Broken(id)),
            }
        }
        self.arm_gateway(id);
    }

    pub(super) fn arm_gateway(&mut self, id: u64) {
        if let Some(at) = self.gateway.as_ref().and_then(|gateway| gateway.deadline(id)) {
            self.at(at.as_millis().max(self.now + 1), Event::GatewayTimer(id));
        }
    }
}
