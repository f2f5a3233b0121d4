//! Devices that wait to be linked: their offers, and the answers to them.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Engine;
use crate::backend::{GatewayId, Route};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceAddress, DeviceId, InstallationId, UserId};

/// Handle of a pending link offer, held by the connection of the new device.
#[derive(Debug)]
pub struct Linking {
    /// Receives the sealed answer.
    pub answers: tokio::sync::mpsc::Receiver<Bytes>,
    /// Registry route under which other gateways find the offer; `None` if the registry failed.
    route: Option<Route>,
}

/// A device that waits to be linked.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) offer: Bytes,
    pub(super) made_ms: u64,
    pub(super) answer: tokio::sync::mpsc::Sender<Bytes>,
    /// The answer that was passed to the device. The same answer again is accepted.
    pub(super) answered: Option<Bytes>,
}

/// Lifetime of a link offer, in milliseconds.
pub(super) const OFFER_MS: u64 = 10 * 60 * 1000;
/// Maximum number of pending link offers.
const OFFERS: usize = 10_000;

impl Engine {
    /// Publishes the link offer of a device and returns the handle that receives its answer. Other gateways
    /// find the offer through the registry, under the hash of its rendezvous, until it is
    /// [withdrawn](Self::withdraw).
    ///
    /// # Errors
    /// `Throttled` if too many offers are pending, `Conflict` if the rendezvous is taken.
    pub async fn offer(&self, rendezvous: Bytes, offer: Bytes) -> Result<Linking> {
        let (device, gateway) = (rendezvous_place(&rendezvous), self.settings.gateway);
        let answers = self.put_up(rendezvous, offer)?;
        // If the registry fails, the offer is still found on this gateway.
        let epoch = self.backends.registry.bind(device, gateway).await.ok();
        Ok(Linking { answers, route: epoch.map(|epoch| Route { device, gateway, epoch }) })
    }

    /// Withdraws an offer that was answered, or whose device disconnected.
    pub async fn withdraw(&self, linking: Linking) {
        drop(linking.answers);
        if let Some(route) = linking.route {
            let _ = self.backends.registry.unbind(route).await;
        }
    }

    fn put_up(&self, rendezvous: Bytes, offer: Bytes) -> Result<tokio::sync::mpsc::Receiver<Bytes>> {
        let now = self.now_ms();
        self.offers.retain(|_, offer| {
            let waits = offer.answered.is_some() || !offer.answer.is_closed();
            now < offer.made_ms + OFFER_MS && waits
        });
        if self.offers.len() >= OFFERS {
            return Err(Error::new(ErrorKind::Throttled, "too many devices wait to be linked"));
        }
        let (answer, answers) = tokio::sync::mpsc::channel(1);
        match self.offers.entry(rendezvous) {
            dashmap::Entry::Occupied(_) => Err(Error::new(ErrorKind::Conflict, "the rendezvous is taken")),
            dashmap::Entry::Vacant(free) => {
                free.insert(Offer { offer, made_ms: now, answer, answered: None });
                Ok(answers)
            }
        }
    }

    /// Returns the offer of a device that waits at this gateway.
    ///
    /// # Errors
    /// `NotFound` if no device waits here under this rendezvous.
    pub fn offer_here(&self, rendezvous: &Bytes) -> Result<Bytes> {
        let now = self.now_ms();
        let waits = |offer: &Offer| now < offer.made_ms + OFFER_MS && !offer.answer.is_closed();
        let offer = self.offers.get(rendezvous).filter(|offer| waits(offer));
        offer.map(|o| o.offer.clone()).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such offer"))
    }

    /// Passes the answer to a device that waits at this gateway. Repeating the same answer succeeds.
    ///
    /// # Errors
    /// `NotFound` if no device waits here for it, or if the device got another answer.
    pub fn answer_offer_here(&self, rendezvous: &Bytes, sealed: Bytes) -> Result<()> {
        let unknown = || Error::new(ErrorKind::NotFound, "no device is waiting for this link code");
        let mut offer = self.offers.get_mut(rendezvous).ok_or_else(unknown)?;
        match &offer.answered {
            Some(known) if *known == sealed => {}
            Some(_) => return Err(unknown()),
            None => {
                offer.answer.try_send(sealed.clone()).map_err(|_| unknown())?;
                offer.answered = Some(sealed);
            }
        }
        Ok(())
    }

    /// Returns the other gateway at which a device waits to be linked.
    async fn waits_at(&self, rendezvous: &[u8]) -> Result<GatewayId> {
        let routes = self.backends.registry.lookup(&[rendezvous_place(rendezvous).user]).await?;
        let newest = routes.into_iter().max_by_key(|route| route.epoch).map(|route| route.gateway);
        newest
            .filter(|gateway| *gateway != self.settings.gateway)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such offer"))
    }

    pub(super) async fn find_offer(&self, rendezvous: Bytes) -> Result<Bytes> {
        match self.offer_here(&rendezvous) {
            Ok(offer) => Ok(offer),
            Err(_) => self.backends.node_link.offer(self.waits_at(&rendezvous).await?, rendezvous).await,
        }
    }

    pub(super) async fn pass_link_answer(&self, rendezvous: Bytes, sealed: Bytes) -> Result<()> {
        if self.offers.contains_key(&rendezvous) {
            return self.answer_offer_here(&rendezvous, sealed);
        }
        let gateway = self.waits_at(&rendezvous).await?;
        self.backends.node_link.answer_offer(gateway, rendezvous, sealed).await
    }
}

/// Returns the registry address of an offer: a hash, so that only a client that has the rendezvous can find
/// it.
pub(super) fn rendezvous_place(rendezvous: &[u8]) -> DeviceAddress {
    let hash: [u8; 32] =
        Sha256::new().chain_update(b"chat/v1/rendezvous").chain_update(rendezvous).finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    DeviceAddress {
        user: UserId::from_bytes(id),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes(id),
    }
}
