//! The registry is a hint: sessions work if it fails, is late, or has a newer route.

use async_trait::async_trait;
use chat_core::backend::{GatewayId, Registry, Route};
use chat_core::delivery::{EventBatch, SessionEvent};
use chat_core::wire::CloseReason;
use chat_core::{ConversationId, Error, ErrorKind, Result, UserId};

use super::*;

/// An unreachable registry.
#[derive(Debug)]
struct Away;

fn away<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unavailable, "the registry is unreachable"))
}

#[async_trait]
impl Registry for Away {
    async fn bind(&self, _: DeviceAddress, _: GatewayId) -> Result<u64> {
        away()
    }

    async fn renew(&self, _: Route) -> Result<()> {
        away()
    }

    async fn unbind(&self, _: Route) -> Result<()> {
        away()
    }

    async fn announce(&self, _: GatewayId, _: &str) -> Result<()> {
        away()
    }

    async fn address(&self, _: GatewayId) -> Result<Option<String>> {
        away()
    }

    async fn lookup(&self, _: &[UserId]) -> Result<Vec<Route>> {
        away()
    }

    async fn follow(&self, _: ConversationId, _: GatewayId) -> Result<()> {
        away()
    }

    async fn followers(&self, _: ConversationId) -> Result<Vec<GatewayId>> {
        away()
    }
}

fn engine_with(registry: Arc<dyn Registry>) -> (Engine, User, User) {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let router = Arc::new(MemoryRouter::new(4, clock.clone()));
    let backends = Backends { router, registry, ..Backends::memory() };
    let engine = Engine::new(backends, EngineSettings::default(), clock);
    let (alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    (engine, alice, bob)
}

#[test]
fn sessions_of_this_process_need_no_registry() {
    let (engine, mut alice, bob) = engine_with(Arc::new(Away));
    let mut first = ready(engine.bind(bob.device())).unwrap();
    let mut second = ready(engine.bind(bob.device())).unwrap();
    assert!(first.route.epoch < second.route.epoch);
    let replaced = EventBatch::Own(vec![SessionEvent::Closed(CloseReason::Replaced)]);
    assert_eq!(first.events.try_recv().unwrap(), replaced);
    ready(engine.beat(&second));
    assert_eq!(alice.publish(&engine, &bob, 10), None);
    work(&engine);
    assert!(matches!(second.events.try_recv().unwrap().into_iter().as_slice(), [SessionEvent::Row(_)]));
}

/// A registry that reports `bind` as failed, but carries it out.
#[derive(Debug, Default)]
struct Late(MemoryRegistry);

#[async_trait]
impl Registry for Late {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        self.0.bind(device, gateway).await?;
        away()
    }

    async fn renew(&self, route: Route) -> Result<()> {
        self.0.renew(Route { epoch: 0, ..route }).await
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        self.0.unbind(route).await
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        self.0.announce(gateway, address).await
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        self.0.address(gateway).await
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        // Later than the clock of the gateway whose call failed.
        let routes = self.0.lookup(users).await?;
        Ok(routes.into_iter().map(|route| Route { epoch: u64::MAX, ..route }).collect())
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        self.0.follow(feed, gateway).await
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        self.0.followers(feed).await
    }
}

#[test]
fn late_route_does_not_close_a_session_of_its_own_gateway() {
    let (engine, _, bob) = engine_with(Arc::new(Late::default()));
    let mut here = ready(engine.bind(bob.device())).unwrap();
    ready(engine.beat(&here));
    assert!(here.events.try_recv().is_err());
    assert!(engine.is_current(&here));
}

#[test]
fn a_session_ends_when_its_device_is_connected_elsewhere() {
    let registry = Arc::new(MemoryRegistry::default());
    let (engine, _, bob) = engine_with(registry.clone());
    let mut here = ready(engine.bind(bob.device())).unwrap();
    ready(engine.beat(&here));
    assert!(here.events.try_recv().is_err(), "it is the only session");
    ready(registry.bind(bob.device(), GatewayId(9))).unwrap();
    ready(engine.beat(&here));
    let replaced = EventBatch::Own(vec![SessionEvent::Closed(CloseReason::Replaced)]);
    assert_eq!(here.events.try_recv().unwrap(), replaced);
    ready(engine.unbind(&here));
    let routes = ready(registry.lookup(&[bob.device().user])).unwrap();
    assert_eq!(routes.iter().map(|route| route.gateway).collect::<Vec<_>>(), [GatewayId(9)]);
}
