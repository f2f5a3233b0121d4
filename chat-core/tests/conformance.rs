//! Runs the conformance suites on the memory backends.
#![cfg(feature = "conformance")]
#![allow(missing_docs)]

use std::sync::Arc;

use async_trait::async_trait;
use chat_core::backend::{GatewayId, Registry, Route};
use chat_core::conformance::{self, Case};
use chat_core::memory::{
    ManualClock, MemoryContacts, MemoryKeys, MemoryPresence, MemoryPush, MemoryRegistry, MemoryRouter,
    MemoryStore, OpenRegistration,
};
use chat_core::{ConversationId, DeviceAddress, Result, UserId};

fn check<B: ?Sized>(cases: Vec<Case<B>>, fresh: impl Fn() -> Arc<B>) {
    for case in cases {
        let outcome = futures_util::FutureExt::now_or_never((case.run)(fresh()));
        assert_eq!(outcome, Some(Ok(())), "{}", case.name);
    }
}

#[test]
fn memory_store() {
    check(conformance::cases::message_store(), || Arc::new(MemoryStore::new()));
    check(conformance::cases::shared_message_store(), || Arc::new(MemoryStore::new()));
}

#[test]
fn memory_keys() {
    check(conformance::cases::key_directory(), || Arc::new(MemoryKeys::default()));
}

#[test]
fn memory_contacts() {
    check(conformance::cases::contact_store(), || Arc::new(MemoryContacts::default()));
}

#[test]
fn memory_registry() {
    check(conformance::cases::registry(), || Arc::new(MemoryRegistry::default()));
}

/// A registry that breaks a rule.
#[derive(Debug)]
struct Broken(Rule, MemoryRegistry);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    EpochsRise,
    UnbindCompares,
    RenewCompares,
    RenewBringsBack,
    BindingKeepsTheAddress,
    EachFollowerIsFound,
    FollowersOfOneFeed,
}

#[async_trait]
impl Registry for Broken {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        if self.0 == Rule::BindingKeepsTheAddress {
            self.1.announce(gateway, "").await?;
        }
        let epoch = self.1.bind(device, gateway).await?;
        Ok(if self.0 == Rule::EpochsRise { 1 } else { epoch })
    }

    async fn renew(&self, route: Route) -> Result<()> {
        match self.0 {
            Rule::RenewBringsBack => Ok(()),
            Rule::RenewCompares => {
                let known = self.1.lookup(&[route.device.user]).await?;
                for newer in known {
                    self.1.unbind(newer).await?;
                }
                self.1.renew(route).await
            }
            _ => self.1.renew(route).await,
        }
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        if self.0 == Rule::UnbindCompares {
            for other in self.1.lookup(&[route.device.user]).await? {
                self.1.unbind(other).await?;
            }
        }
        self.1.unbind(route).await
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        self.1.announce(gateway, address).await
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        Ok(self.1.address(gateway).await?.filter(|address| !address.is_empty()))
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        self.1.lookup(users).await
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        let feed =
            if self.0 == Rule::FollowersOfOneFeed { ConversationId::from_bytes([0x41; 17]) } else { feed };
        self.1.follow(feed, gateway).await
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        let mut found = self.1.followers(feed).await?;
        if self.0 == Rule::EachFollowerIsFound {
            found.truncate(1);
        }
        Ok(found)
    }
}

/// The suite detects a registry that breaks a rule of the contract.
#[test]
fn suite_detects_a_registry_that_breaks_a_rule() {
    for (rule, case) in [
        (Rule::EpochsRise, "the_last_bind_wins"),
        (Rule::UnbindCompares, "unbind_compares"),
        (Rule::RenewCompares, "renew_compares"),
        (Rule::RenewBringsBack, "renew_brings_a_forgotten_route_back"),
        (Rule::BindingKeepsTheAddress, "an_announced_gateway_has_an_address"),
        (Rule::EachFollowerIsFound, "a_feed_has_the_gateways_that_follow_it"),
        (Rule::FollowersOfOneFeed, "a_feed_has_the_gateways_that_follow_it"),
    ] {
        let cases = conformance::cases::registry().into_iter();
        let fails = cases.filter(|case| {
            let broken = Arc::new(Broken(rule, MemoryRegistry::default()));
            !matches!(futures_util::FutureExt::now_or_never((case.run)(broken)), Some(Ok(())))
        });
        let names: Vec<_> = fails.map(|case| case.name).collect();
        assert!(names.contains(&case), "{rule:?}: {names:?}");
    }
}

#[test]
fn memory_presence() {
    check(conformance::cases::presence(), || Arc::new(MemoryPresence::default()));
}

#[test]
fn memory_push() {
    check(conformance::cases::push_sink(), || Arc::new(MemoryPush::default()));
}

#[test]
fn open_registration() {
    let fixture = || conformance::AuthenticatorFixture {
        authenticator: Arc::new(OpenRegistration),
        good: Vec::new(),
        open: true,
    };
    check(conformance::cases::authenticator(), || Arc::new(fixture()));
}

#[test]
fn memory_router() {
    check(conformance::cases::router(), || Arc::new(MemoryRouter::new(4, Arc::new(ManualClock::default()))));
}
