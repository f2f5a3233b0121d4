//! The simulated world: time, network, crashes and users.

mod channels;
mod cluster;
mod devices;
mod groups;
mod network;
mod server;
mod server_restore;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use self::cluster::{Cluster, SERVERS};
use self::server_restore::ServerCopy;
use super::accounts::ACCOUNTS;
use super::cluster::SHARDS;
use super::device::Device;
use super::oracle::{KeyUse, Oracle, Violation};
use super::registry::SimRegistry;
use super::server::{Server, Task, WokenTasks, ready};
use super::store::{FIRST_EPOCH, Redo, StoreFaults};
use super::{Options, Report};
use crate::backend::{AccountKey, Deliveries, GatewayId, KeyDirectory, MessageStore};
use crate::memory::{
    ManualClock, ManualRuntime, MemoryContacts, MemoryKeys, MemoryPresence, MemoryRouter, Tables,
};
use crate::model::contact::ContactChange;
use crate::model::id::{ConversationId, MessageId, StoreEpoch, UserId};
use crate::model::rng::Rng;
use crate::model::time::{Instant, WallClock};
use crate::replica::Input;
use crate::wire::{ClientFrame, ServerFrame};

/// Time in milliseconds when the faults end. From then on the world must come to rest.
const HEAL_MS: u64 = 60_000;
/// Time in milliseconds when the world must be at rest.
const END_MS: u64 = HEAL_MS + 400_000;

#[derive(Debug)]
enum Event {
    /// A user sends a message.
    Send(usize),
    /// A user reads all received messages.
    Read(usize),
    DeviceTimer(usize, u64),
    StartDevice(usize),
    CrashDevice(usize),
    /// A device is added to the list of its user.
    Link(usize),
    Unlink(usize),
    ChangeContact(usize, ContactChange),
    /// A user founds the group, if there is none.
    FoundGroup(usize),
    /// A user changes the roster of the group.
    ChangeGroup(usize),
    Snapshot(usize),
    Restore(usize),
    /// Retention removes rows older than this many milliseconds.
    Sweep(u64),
    /// The server erases messages whose lifetime has ended.
    SweepMessages,
    /// The data of the server is copied.
    CopyServer,
    /// The server ends, and its data is replaced by the copy; `true`: with a new store epoch.
    RestoreServer(bool),
    StartServer(usize),
    CrashServer(usize),
    /// A process is paused for this many milliseconds.
    Stop(usize, u64),
    /// A shard moves to another process.
    Move(usize),
    /// A process learns that it owns a shard.
    Assigned(usize, usize),
    /// A process learns that it no longer owns a shard.
    Revoked(usize, usize),
    /// Shards without a running owner move to other processes.
    Rebalance,
    /// The registry loses all routes.
    Forget,
    /// Deliveries from another gateway arrive.
    NodeDelivery(GatewayId, Deliveries),
    /// A task that was woken goes on.
    Poll(Task),
    /// A server process drains, and ends a while later.
    Drain(usize),
    /// A user types.
    Typing(usize),
    /// A user watches the presence of the other.
    Watch(usize),
    Dialled(usize, u64, u64),
    ToServer(u64, Bytes),
    ToDevice(u64, Bytes),
    Broken(u64),
}

/// The network faults of this schedule. Loss and duplication in percent, delay in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Network {
    /// Frames keep their order, as over TCP.
    fifo: bool,
    loss: u64,
    duplication: u64,
    delay: u64,
}

#[derive(Debug)]
struct Pipe {
    device: usize,
    server: usize,
    /// Arrival time of the last frame, by direction.
    last: [u64; 2],
}

pub(super) struct World {
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free: Vec<usize>,
    rng: Rng,
    feed_devices: u32,
    options: Options,
    network: Network,
    partition: Option<(u64, u64)>,
    devices: Vec<Device>,
    servers: Vec<Option<Server>>,
    woken: WokenTasks,
    runtime: Arc<ManualRuntime>,
    presence: Arc<MemoryPresence>,
    /// Server processes started so far.
    lives: u64,
    cluster: Cluster,
    registry: Arc<SimRegistry>,
    tables: Arc<Mutex<Tables>>,
    redo: Redo,
    keys: Arc<MemoryKeys>,
    contacts: Arc<MemoryContacts>,
    epoch: StoreEpoch,
    copy: Option<ServerCopy>,
    clock: Arc<ManualClock>,
    router: Arc<MemoryRouter>,
    pipes: BTreeMap<u64, Pipe>,
    last_pipe: u64,
    faults: StoreFaults,
    session_queue: usize,
    /// The index of a second device that is linked during the schedule.
    linked_later: Option<usize>,
    /// The group, once it was founded.
    group: Option<ConversationId>,
    /// The messages that users may delete: user, conversation and id.
    written: Vec<(UserId, ConversationId, MessageId)>,
    device_crash: u64,
    healed: bool,
    oracle: Oracle,
    keys_used: Arc<Mutex<KeyUse>>,
    report: Report,
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let cluster = options.cluster
            || options.erasure && rng.chance(40)
            || (options.feeds || options.channels) && rng.chance(30);
        let split = options.split || cluster || (options.groups || options.erasure) && rng.chance(50);
        let options = Options { split, cluster, ..options };
        let accounts = &ACCOUNTS[..if options.groups { 4 } else { 2 }];
        let clock = Arc::new(ManualClock::default());
        let keys = Arc::new(MemoryKeys::default());
        // Devices have the indices 0 to 3, or 7: two for each account.
        // A list that the server forgets cannot be put again.
        let linked_later = (!options.restored_server)
            .then_some(())
            .and_then(|()| rng.chance(40).then(|| [1, 3, 5, 7][rng.below(accounts.len() as u64) as usize]));
        for (n, account) in accounts.iter().enumerate() {
            let _ = ready(keys.register(&account.handle, &account.lists[0]));
            if linked_later != Some(2 * n + 1) {
                let _ = ready(keys.put_list(&account.lists[1], AccountKey::Same));
            }
        }
        let devices: Vec<Device> = accounts
            .iter()
            .flat_map(|account| account.lists[1].list().addresses())
            .map(Device::new)
            .collect();
        let stormy = rng.chance(60);
        let network = Network {
            fifo: rng.chance(60),
            loss: if stormy { rng.below(12) } else { 0 },
            duplication: if stormy { rng.below(12) } else { 0 },
            delay: [5, 50, 400, 3000][rng.below(4) as usize],
        };
        let faulty_store = rng.chance(40);
        let faults = StoreFaults {
            split: options.split,
            durable_first: options.cluster,
            error_before: if faulty_store { rng.below(15) } else { 0 },
            error_after: if faulty_store { rng.below(15) } else { 0 },
        };
        // Without a cluster, the one process has its own registry, which does not fail.
        let faulty_registry = options.cluster && rng.chance(40);
        let registry_errors = if faulty_registry { (rng.below(30), rng.below(30)) } else { (0, 0) };
        let registry = Arc::new(SimRegistry::new(rng.next_u64(), registry_errors));
        let start = rng.below(HEAL_MS / 2);
        let partition = rng.chance(40).then(|| (start, start + rng.below(HEAL_MS / 2)));
        let device_crash = if rng.chance(50) { rng.below(30) } else { 0 };
        let servers = if options.cluster { SERVERS } else { 1 };
        let runtime = Arc::new(ManualRuntime::new(rng.next_u64()));
        let session_queue = [1, 2, 64][rng.below(3) as usize];
        Self {
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            rng,
            options,
            feed_devices: if options.feeds { 3 + 2 * (seed % 2) as u32 } else { 0 },
            network,
            partition,
            devices,
            servers: (0..servers).map(|_| None).collect(),
            woken: WokenTasks::default(),
            runtime,
            presence: Arc::default(),
            lives: 0,
            cluster: Cluster {
                routers: (0..servers).map(|_| None).collect(),
                stopped: vec![0; servers],
                last_delivery: vec![0; servers],
                ..Cluster::default()
            },
            registry,
            tables: Arc::default(),
            redo: Redo::default(),
            keys,
            contacts: Arc::default(),
            epoch: FIRST_EPOCH,
            copy: None,
            router: Arc::new(MemoryRouter::new(1, clock.clone())),
            clock,
            pipes: BTreeMap::new(),
            last_pipe: 0,
            faults,
            session_queue,
            linked_later,
            group: None,
            written: Vec::new(),
            device_crash,
            healed: false,
            oracle: Oracle::default(),
            keys_used: Arc::default(),
            report: Report::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<Report, Violation> {
        self.plan();
        while let Some(Reverse((at, _, slot))) = self.next_event() {
            if at > END_MS {
                break;
            }
            if at >= HEAL_MS && !self.healed {
                self.heal();
            }
            self.advance_to(at);
            self.report.events += 1;
            if self.report.events > 400_000 {
                self.oracle.broken("stuck", "the schedule does not come to rest".to_owned());
                break;
            }
            self.free.push(slot);
            if let Some(event) = self.slots[slot].take() {
                if self.options.trace {
                    trace(at, &event);
                }
                self.digest(at, &event);
                self.handle_event(event);
            }
            self.schedule_woken();
            if self.healed && self.at_rest() {
                break;
            }
        }
        let report = self.report;
        let tables = self.tables.lock().clone();
        self.oracle.ended_us = self.clock.now_us();
        self.keys_used.lock().check(&mut self.oracle);
        self.oracle.check(&self.devices, &tables).map(|()| report)
    }

    /// Takes the next event, after the timers that ring before it.
    fn next_event(&mut self) -> Option<Reverse<(u64, u64, usize)>> {
        loop {
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            let timer = self.runtime.next_timer().map(|at| at.as_millis() as u64);
            match timer {
                Some(timer) if timer <= END_MS && next.is_none_or(|next| timer <= next) => {
                    self.advance_to(timer.max(self.now));
                    self.schedule_woken();
                }
                _ => return self.events.pop(),
            }
        }
    }

    fn advance_to(&mut self, at: u64) {
        self.now = at;
        self.clock.set_us(1_700_000_000_000_000 + at * 1000);
        self.runtime.advance_to(Duration::from_millis(at));
    }

    /// Lets the tasks that were woken go on soon, in any order.
    fn schedule_woken(&mut self) {
        for task in self.woken.take() {
            let within = if matches!(task, Task::Shard(..)) { 20 } else { 10 };
            self.soon(within, Event::Poll(task));
        }
    }

    /// Adds an event to the hash of everything that happened.
    fn digest(&mut self, at: u64, event: &Event) {
        let (kind, who) = match event {
            Event::Poll(Task::Connection(id)) => (1, *id),
            Event::Poll(Task::Shard(server, shard)) => (2, (*server * SHARDS + *shard) as u64),
            Event::ToServer(id, frame) => (3, id ^ (frame.len() as u64) << 32),
            Event::ToDevice(id, frame) => (4, id ^ (frame.len() as u64) << 32),
            Event::DeviceTimer(device, _) => (5, *device as u64),
            _ => (6, 0),
        };
        for number in [at, kind, who] {
            self.report.digest = (self.report.digest ^ number).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Draws the events of the schedule.
    fn plan(&mut self) {
        for server in 0..self.servers.len() {
            self.at(0, Event::StartServer(server));
        }
        if self.options.cluster {
            self.plan_cluster();
        }
        let mut bursts = Vec::new();
        for device in 0..self.devices.len() {
            let mut start = self.rng.below(HEAL_MS / 4);
            if self.linked_later == Some(device) {
                start += self.rng.below(HEAL_MS / 2);
                self.at(start, Event::Link(device));
                start += self.rng.below(1000);
            }
            self.at(start, Event::StartDevice(device));
            // Bursts, so that several messages are in flight at once.
            for _ in 0..self.rng.below(4) {
                let at = self.rng.below(HEAL_MS * 3 / 4);
                bursts.push((device, at));
                for _ in 0..=self.rng.below(5) {
                    self.at(at + self.rng.clone().below(20), Event::Send(device));
                }
            }
            if self.rng.chance(30) {
                let at = self.rng.below(HEAL_MS);
                self.at(at, Event::Read(device));
            }
            if self.rng.chance(15) {
                let (typing, watch) = (self.rng.below(HEAL_MS), self.rng.below(HEAL_MS));
                self.at(typing, Event::Typing(device));
                self.at(watch, Event::Watch(device));
            }
            for _ in 0..self.rng.below(3) {
                let at = self.rng.below(HEAL_MS);
                self.at(at, Event::CrashDevice(device));
            }
        }
        if self.options.groups {
            self.plan_group();
        }
        if self.options.erasure {
            for _ in 0..8 {
                let at = self.rng.below(HEAL_MS);
                self.at(at, Event::SweepMessages);
            }
        }
        if self.options.restored_server {
            return self.plan_server_restore();
        }
        if self.rng.chance(20) {
            let device = [1, 3, 5, 7][self.rng.below(self.devices.len() as u64 / 2) as usize];
            let unlink = HEAL_MS / 4 + self.rng.below(HEAL_MS * 3 / 4);
            self.at(unlink, Event::Unlink(device));
        }
        if self.rng.chance(20) {
            let device = self.rng.below(self.devices.len() as u64) as usize;
            let block = self.rng.below(HEAL_MS);
            self.at(block, Event::ChangeContact(device, ContactChange::Block));
            if self.rng.chance(70) {
                let unblock = block + self.rng.below(HEAL_MS - block);
                self.at(unblock, Event::ChangeContact(device, ContactChange::Unblock));
            }
        }
        for _ in 0..self.rng.below(5) {
            let at = self.rng.below(HEAL_MS);
            let server = self.rng.below(self.servers.len() as u64) as usize;
            self.at(at, Event::CrashServer(server));
        }
        if self.rng.chance(20) {
            let at = self.rng.below(HEAL_MS);
            let server = self.rng.below(self.servers.len() as u64) as usize;
            self.at(at, Event::Drain(server));
        }
        if self.rng.chance(15) {
            let (at, age) = (self.rng.below(HEAL_MS), self.rng.below(HEAL_MS / 4));
            self.at(at, Event::Sweep(age));
        }
        if self.rng.chance(40) {
            let mut device = self.rng.below(self.devices.len() as u64) as usize;
            let mut snapshot = self.rng.below(HEAL_MS * 2 / 3);
            let mut within = HEAL_MS - snapshot;
            if self.rng.chance(60) && !bursts.is_empty() {
                // During a burst: its messages may still be in flight when the restored copy connects.
                (device, snapshot) = bursts[self.rng.below(bursts.len() as u64) as usize];
                snapshot += self.rng.below(500);
                within = 3000;
            }
            let restore = snapshot + self.rng.below(within);
            self.at(snapshot, Event::Snapshot(device));
            self.at(restore, Event::Restore(device));
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.partition = None;
        self.network = Network { fifo: true, loss: 0, duplication: 0, delay: 20 };
        (self.faults.error_before, self.faults.error_after, self.device_crash) = (0, 0, 0);
        self.cluster.stopped.fill(0);
        self.registry.heal();
        self.cluster.routers.iter().flatten().for_each(|router| router.heal());
        for server in 0..self.servers.len() {
            match &self.servers[server] {
                Some(server) => server.store.heal(),
                None => self.at(HEAL_MS, Event::StartServer(server)),
            }
        }
        for device in 0..self.devices.len() {
            if self.devices[device].replica.is_none() {
                self.at(HEAL_MS, Event::StartDevice(device));
            }
        }
    }

    /// Whether only heartbeats are left.
    fn at_rest(&self) -> bool {
        let quiet = self.servers.iter().all(Option::is_some) && self.cluster.log.lock().is_applied();
        quiet
            && self.devices.iter().filter(|device| !self.oracle.is_unlinked(device)).all(|device| {
                let live = device
                    .replica
                    .as_ref()
                    .is_some_and(|r| r.is_live() && r.has_looked_back() && r.outbox_len() == 0);
                let served = device.connection.is_some_and(|id| {
                    let server = self.pipes.get(&id).and_then(|pipe| self.servers[pipe.server].as_ref());
                    server.is_some_and(|server| server.serves(id) && !server.is_draining)
                });
                let (tables, own) = (self.tables.lock(), device.address().installation);
                let record = tables.device(own, crate::backend::CursorFilter::No);
                live && served && record.waiting_rows == 0 && !tables.is_behind_feed(own)
            })
    }

    fn at(&mut self, at: u64, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.order += 1;
        self.events.push(Reverse((at, self.order, slot)));
    }

    fn soon(&mut self, within: u64, event: Event) {
        let at = self.now + self.rng.below(within + 1);
        self.at(at, event);
    }

    fn time(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    /// Returns the process that handles an event, if one does.
    fn server_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Poll(Task::Shard(server, _))
            | Event::Assigned(server, _)
            | Event::Revoked(server, _)
            | Event::Drain(server) => Some(*server),
            Event::NodeDelivery(gateway, _) => Some(gateway.0 as usize % SERVERS),
            Event::Poll(Task::Connection(id)) | Event::ToServer(id, _) => {
                self.pipes.get(id).map(|pipe| pipe.server)
            }
            _ => None,
        }
    }

    fn handle_event(&mut self, event: Event) {
        if let Some(until) = self.server_of(&event).and_then(|server| self.stopped_until(server)) {
            return self.at(until, event);
        }
        match event {
            Event::Send(device) => self.user_sends(device),
            Event::Read(device) => self.user_reads(device),
            Event::DeviceTimer(device, boot) => {
                if self.devices[device].boot == boot {
                    self.device_step(device, Input::Tick);
                }
            }
            Event::StartDevice(device) => {
                let user = self.devices[device].address().user;
                let list = ready(self.keys.list(user)).ok().flatten();
                let address = self.devices[device].address();
                let listed = list.is_some_and(|list| list.list().addresses().any(|a| a == address));
                if listed && self.devices[device].replica.is_none() {
                    let seed = self.rng.next_u64();
                    let now = self.time();
                    self.devices[device].start(now, seed);
                    self.device_step(device, Input::Flush);
                }
            }
            Event::CrashDevice(device) => self.crash_device(device),
            Event::Link(device) => self.link(device),
            Event::Unlink(device) => self.unlink(device),
            Event::FoundGroup(device) => self.found_group(device),
            Event::ChangeGroup(device) => self.change_group(device),
            Event::ChangeContact(device, change) => self.change_contact(device, change),
            Event::Snapshot(device) => {
                self.devices[device].snapshot = Some(self.devices[device].store.clone());
            }
            Event::Restore(device) => {
                let connection = self.devices[device].connection;
                if self.devices[device].restore() {
                    self.report.restores += 1;
                    self.break_pipe_later(connection);
                    let pause = [100, 3000][self.rng.below(2) as usize];
                    self.soon(pause, Event::StartDevice(device));
                }
            }
            Event::Sweep(age) => {
                let before_us = self.clock.now_us().saturating_sub(age * 1000);
                if let Some(server) = self.servers.iter().flatten().next() {
                    let _ = ready(server.store.expire(before_us, usize::MAX));
                    self.oracle.swept_us = self.oracle.swept_us.max(before_us);
                }
            }
            Event::SweepMessages => {
                let now_us = self.clock.now_us();
                if let Some(server) = self.servers.iter().flatten().next() {
                    let _ = ready(server.store.expire_messages(now_us, usize::MAX));
                }
            }
            Event::CopyServer => self.copy_server(),
            Event::RestoreServer(announced) => self.restore_server(announced),
            Event::StartServer(server) => self.start_server(server),
            Event::Stop(server, length) => self.stop_server(server, length),
            Event::Move(shard) => self.move_shard(shard),
            Event::Assigned(server, shard) => self.assigned(server, shard),
            Event::Revoked(server, shard) => self.revoked(server, shard),
            Event::Rebalance => self.rebalance(),
            Event::Forget => self.registry.forget(),
            Event::NodeDelivery(gateway, deliveries) => self.node_delivers(gateway, deliveries),
            Event::CrashServer(server) => {
                if self.servers[server].take().is_some() {
                    self.report.server_crashes += 1;
                    let pipes = self.pipes.iter().filter(|(_, pipe)| pipe.server == server);
                    let pipes: Vec<u64> = pipes.map(|(id, _)| *id).collect();
                    for pipe in pipes {
                        self.soon(200, Event::Broken(pipe));
                    }
                    self.cluster.routers[server] = None;
                    self.soon(5000, Event::StartServer(server));
                }
            }
            Event::Poll(Task::Shard(server, shard)) => {
                if let Some(server) = &mut self.servers[server] {
                    server.poll_shard(shard);
                    self.carry();
                }
            }
            Event::Poll(Task::Connection(id)) => self.poll_connection(id),
            Event::Drain(server) => {
                if let Some(process) = &mut self.servers[server]
                    && !self.healed
                {
                    process.drain(3000);
                    self.report.drains += 1;
                    self.at(self.now + 6000, Event::CrashServer(server));
                }
            }
            Event::Typing(device) => {
                let conversation = self.direct_conversation(device);
                self.device_step(device, Input::Typing(conversation));
            }
            Event::Watch(device) => {
                let other = self.other_user(device);
                self.device_step(device, Input::Watch(vec![other]));
            }
            Event::Dialled(device, boot, id) => self.dialled(device, boot, id),
            Event::ToServer(id, frame) => {
                if let Some(server) = self.pipes.get(&id).and_then(|pipe| self.servers[pipe.server].as_ref())
                {
                    server.receive(id, frame);
                }
            }
            Event::ToDevice(id, frame) => {
                if let Some(device) = self.pipes.get(&id).map(|pipe| pipe.device)
                    && self.devices[device].connection == Some(id)
                {
                    match ServerFrame::parse(frame) {
                        Ok(frame) => {
                            let hint = matches!(frame, ServerFrame::Typing(..) | ServerFrame::Presence(..));
                            self.report.hints += u64::from(hint);
                            self.device_step(device, Input::Frame(frame));
                        }
                        Err(error) => self.oracle.broken("wire", format!("the server sent {error:?}")),
                    }
                }
            }
            Event::Broken(id) => self.break_pipe(Some(id)),
        }
    }
}

#[allow(clippy::print_stdout)] // requested with `Options::trace`
fn trace(at: u64, event: &Event) {
    let text = match event {
        Event::Poll(_) | Event::DeviceTimer(..) => return,
        Event::ToServer(id, frame) => {
            format!("ToServer({id}, {:?})", ClientFrame::parse(frame.clone(), &Bytes::new()))
        }
        Event::ToDevice(id, frame) => format!("ToDevice({id}, {:?})", ServerFrame::parse(frame.clone())),
        event => format!("{event:?}"),
    };
    let text: String = text.chars().take(700).collect();
    println!("{at:>7} {text}");
}
