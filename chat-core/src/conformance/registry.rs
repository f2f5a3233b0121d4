use std::sync::Arc;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::{GatewayId, Registry, Route};
use crate::model::error::ErrorKind;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, UserId};

type Routes = Arc<dyn Registry>;

/// Returns the conformance cases of [`Registry`].
pub fn registry() -> Vec<Case<dyn Registry>> {
    list_cases![
        a_bound_device_is_found,
        the_last_bind_wins,
        unbind_compares,
        renew_compares,
        renew_brings_a_forgotten_route_back,
        an_unknown_user_has_no_route,
        an_announced_gateway_has_an_address,
        a_feed_has_the_gateways_that_follow_it,
    ]
}

const HERE: GatewayId = GatewayId(1);
const THERE: GatewayId = GatewayId(2);

fn device(user: u8, n: u8) -> Result<DeviceAddress, String> {
    Ok(DeviceAddress {
        user: UserId::from_bytes([user; 16]),
        device: DeviceId::new(u32::from(n)).map_err(failed)?,
        installation: InstallationId::from_bytes([16 * user + n; 16]),
    })
}

async fn bound(routes: &Routes, device: DeviceAddress, gateway: GatewayId) -> Result<Route, String> {
    let epoch = routes.bind(device, gateway).await.map_err(failed)?;
    Ok(Route { device, gateway, epoch })
}

async fn found(routes: &Routes, users: &[u8]) -> Result<Vec<Route>, String> {
    let users: Vec<UserId> = users.iter().map(|user| UserId::from_bytes([*user; 16])).collect();
    let mut found = routes.lookup(&users).await.map_err(failed)?;
    found.sort_by_key(|route| route.device);
    Ok(found)
}

async fn a_bound_device_is_found(routes: Routes) -> Outcome {
    let all = [
        bound(&routes, device(1, 1)?, HERE).await?,
        bound(&routes, device(1, 2)?, THERE).await?,
        bound(&routes, device(2, 1)?, HERE).await?,
    ];
    equal(found(&routes, &[1, 2]).await?, all.to_vec(), "the routes of both users")?;
    equal(found(&routes, &[2]).await?, all[2..].to_vec(), "the routes of one user")
}

async fn the_last_bind_wins(routes: Routes) -> Outcome {
    let first = bound(&routes, device(1, 1)?, HERE).await?;
    let second = bound(&routes, device(1, 1)?, THERE).await?;
    equal(second.epoch > first.epoch, true, "a later connection has the larger epoch")?;
    equal(found(&routes, &[1]).await?, vec![second], "the route")
}

async fn unbind_compares(routes: Routes) -> Outcome {
    let first = bound(&routes, device(1, 1)?, HERE).await?;
    let second = bound(&routes, device(1, 1)?, HERE).await?;
    routes.unbind(first).await.map_err(failed)?;
    equal(found(&routes, &[1]).await?, vec![second], "after the old route was unbound")?;
    routes.unbind(second).await.map_err(failed)?;
    routes.unbind(second).await.map_err(failed)?;
    equal(found(&routes, &[1]).await?, vec![], "after the current route was unbound")
}

async fn renew_compares(routes: Routes) -> Outcome {
    let first = bound(&routes, device(1, 1)?, HERE).await?;
    let second = bound(&routes, device(1, 1)?, THERE).await?;
    let late = routes.renew(first).await.err().map(|error| error.kind());
    equal(late, Some(ErrorKind::Conflict), "renewing the old route")?;
    routes.renew(second).await.map_err(failed)?;
    equal(found(&routes, &[1]).await?, vec![second], "the route")
}

async fn renew_brings_a_forgotten_route_back(routes: Routes) -> Outcome {
    // After a registry lost its data, gateways restore the routes of connected devices by renewing them.
    let route = Route { device: device(1, 1)?, gateway: HERE, epoch: 1 };
    routes.renew(route).await.map_err(failed)?;
    equal(found(&routes, &[1]).await?, vec![route], "the route")?;
    let next = bound(&routes, device(1, 1)?, THERE).await?;
    equal(next.epoch > route.epoch, true, "the next connection's epoch is larger")
}

async fn an_announced_gateway_has_an_address(routes: Routes) -> Outcome {
    equal(routes.address(THERE).await.map_err(failed)?, None, "before the gateway is announced")?;
    for address in ["127.0.0.1:1", "127.0.0.1:2"] {
        routes.announce(THERE, address).await.map_err(failed)?;
        equal(routes.address(THERE).await.map_err(failed)?, Some(address.to_owned()), "its address")?;
    }
    let route = bound(&routes, device(1, 1)?, THERE).await?;
    equal(found(&routes, &[1]).await?, vec![route], "a route to the gateway")?;
    equal(routes.address(THERE).await.map_err(failed)?.is_some(), true, "the address survives a bind")
}

async fn an_unknown_user_has_no_route(routes: Routes) -> Outcome {
    equal(found(&routes, &[9]).await?, vec![], "the routes of an unknown user")?;
    equal(found(&routes, &[]).await?, vec![], "the routes of no users")
}

async fn a_feed_has_the_gateways_that_follow_it(routes: Routes) -> Outcome {
    let feed = |n| ConversationId::from_bytes([n; 17]);
    equal(routes.followers(feed(0x41)).await, Ok(Vec::new()), "a feed without readers")?;
    // Only a gateway with a lease is found: a device that is bound to it holds one.
    for (n, gateway) in [(1, HERE), (2, THERE)] {
        bound(&routes, device(n, 1)?, gateway).await?;
    }
    for gateway in [HERE, THERE, HERE] {
        routes.follow(feed(0x41), gateway).await.map_err(failed)?;
    }
    routes.follow(feed(0x42), THERE).await.map_err(failed)?;
    let mut found = routes.followers(feed(0x41)).await.map_err(failed)?;
    found.sort_unstable();
    equal(found, vec![HERE, THERE], "each gateway is found once")?;
    equal(routes.followers(feed(0x42)).await, Ok(vec![THERE]), "the followers of another feed")
}
