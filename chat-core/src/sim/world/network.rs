//! The simulated network.

use super::{Event, Pipe, World};
use crate::replica::Input;
use crate::wire::ClientFrame;

impl World {
    pub(super) fn partitioned(&self) -> bool {
        self.partition.is_some_and(|(from, to)| (from..to).contains(&self.now))
    }

    pub(super) fn dialled(&mut self, device: usize, boot: u64, id: u64) {
        if self.devices[device].boot != boot {
            return;
        }
        let server = self.rng.below(self.servers.len() as u64) as usize;
        let accepts = self.servers[server].as_ref().is_some_and(|server| !server.is_draining);
        if self.partitioned() || !accepts {
            return self.device_step(device, Input::Disconnected);
        }
        self.pipes.insert(id, Pipe { device, server, last: [self.now; 2] });
        self.devices[device].connection = Some(id);
        if let Some(server) = &mut self.servers[server] {
            server.accept(id);
        }
        self.device_step(device, Input::Connected);
    }

    /// Sends a frame through a pipe, in direction 0 (to the server) or 1 (to the device).
    pub(super) fn transmit(&mut self, id: u64, direction: usize, event: Event) {
        if self.partitioned() || self.rng.chance(self.network.loss) {
            if self.network.fifo {
                // TCP does not lose frames: the connection breaks.
                self.soon(500, Event::Broken(id));
            }
            return;
        }
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        let mut at = self.now + self.rng.below(self.network.delay + 1);
        if self.network.fifo {
            at = at.max(pipe.last[direction]);
            pipe.last[direction] = at;
        }
        if !self.network.fifo && self.rng.chance(self.network.duplication) {
            let copy = match &event {
                Event::ToServer(id, frame) => Event::ToServer(*id, frame.clone()),
                Event::ToDevice(id, frame) => Event::ToDevice(*id, frame.clone()),
                _ => return,
            };
            let later = at + self.rng.below(self.network.delay * 3 + 1);
            self.at(later, copy);
        }
        self.at(at, event);
    }

    pub(super) fn send_to_server(&mut self, device: usize, frame: ClientFrame) {
        if let Some(id) = self.devices[device].connection {
            self.transmit(id, 0, Event::ToServer(id, frame.encode()));
        }
    }

    /// Breaks a pipe after a delay, so that frames in flight can still arrive.
    pub(super) fn break_pipe_later(&mut self, id: Option<u64>) {
        if let Some(id) = id {
            self.soon(self.network.delay + 200, Event::Broken(id));
        }
    }

    pub(super) fn break_pipe(&mut self, id: Option<u64>) {
        let Some((id, pipe)) = id.and_then(|id| self.pipes.remove(&id).map(|pipe| (id, pipe))) else {
            return;
        };
        if let Some(server) = &self.servers[pipe.server] {
            server.break_connection(id);
        }
        if self.devices[pipe.device].connection == Some(id) {
            self.devices[pipe.device].connection = None;
            self.device_step(pipe.device, Input::Disconnected);
        }
    }
}
