//! The task that owns a profile: it opens or creates the account, runs the driver, and releases the profile while the
//! client is suspended.

use std::collections::HashMap;

use chat_core::{ConversationId, DeviceAddress, Error, Handle, Result, UserId};
use tokio::sync::{oneshot, watch};

use super::suite_call::{Rejected, SuiteInput};
use super::{Channels, Control, Driver, Ended, Waiters};
use crate::account::Registrar;
use crate::config::ClientConfig;
use crate::linking::LinkCode;
use crate::store::LocalStore;

/// The way in which a client starts.
#[derive(Debug)]
pub(crate) enum Start {
    Open,
    Register(Handle),
    RegisterIfNew(Handle),
    Replace(Handle),
    /// Links the profile; sends the code once the server has the offer.
    Link(oneshot::Sender<LinkCode>),
}

/// The account of an open profile.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) device: DeviceAddress,
    pub(crate) handle: Handle,
    pub(crate) account_key: [u8; 32],
    /// The number of the last durable event.
    pub(crate) last_event: u64,
}

/// The owner of a profile.
pub(crate) struct Owner {
    pub(super) config: ClientConfig,
    pub(super) channels: Channels,
    pub(super) waiters: Waiters,
    /// The users of presence events.
    pub(super) watched: Vec<UserId>,
    /// The conversation that the user looks at.
    pub(super) open_conversation: Option<ConversationId>,
    /// The inputs on which the suite panicked: it does not get them again.
    pub(super) rejected: HashMap<SuiteInput, Rejected>,
    /// The suite has just panicked on this input.
    pub(super) panicked_on: Option<SuiteInput>,
}

impl Owner {
    pub(crate) fn new(config: ClientConfig, channels: Channels) -> Self {
        Self {
            config,
            channels,
            waiters: Waiters::default(),
            watched: Vec::new(),
            open_conversation: None,
            rejected: HashMap::new(),
            panicked_on: None,
        }
    }

    /// Runs until the client is closed. Sends the outcome of opening to `opened`. Drops `ended` once the profile is
    /// released.
    pub(crate) async fn run(
        mut self: Box<Self>,
        start: Start,
        mut opened: oneshot::Sender<Result<Opened>>,
        ended: watch::Sender<Option<Error>>,
    ) {
        let store = tokio::select! {
            store = self.start(start) => store,
            // The caller gave up, for example on a link.
            () = opened.closed() => return,
        };
        let driver = match store.and_then(|store| Driver::new(self, store).map_err(|(_, error)| error)) {
            Ok(driver) => driver,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        if opened.send(Ok(driver.opened())).is_err() {
            return;
        }
        if let Err(error) = drive(driver).await {
            tracing::error!(%error, "the local store failed: the client stops; open the profile again");
        }
        drop(ended);
    }

    /// Loads the durable state again.
    async fn reloaded(mut self: Box<Self>) -> Result<Driver> {
        let store = self.mount().await;
        let failure = self.channels.failure.clone();
        let driver = store.and_then(|store| Driver::new(self, store).map_err(|(_, error)| error));
        driver.inspect(Driver::forget_problems).inspect_err(|error| {
            failure.send_replace(Some(error.clone()));
        })
    }

    /// Waits until the client is resumed. Returns `None` if it is closed instead.
    async fn resumed(mut self: Box<Self>) -> Option<Driver> {
        loop {
            match self.channels.control.recv().await {
                Some(Control::Resume(reply)) => {
                    let opened = match self.mount().await {
                        Ok(store) => Driver::new(self, store),
                        Err(error) => Err((self, error)),
                    };
                    match opened {
                        Ok(driver) => {
                            driver.forget_problems();
                            let _ = reply.send(Ok(()));
                            return Some(driver);
                        }
                        Err((owner, error)) => {
                            let _ = reply.send(Err(error));
                            self = owner;
                        }
                    }
                }
                Some(Control::Suspend(reply)) => {
                    let _ = reply.send(Ok(()));
                }
                Some(Control::Stop) | None => return None,
            }
        }
    }

    async fn start(&mut self, start: Start) -> Result<LocalStore> {
        let mut store = self.mount().await?;
        let token = self.config.token.clone().unwrap_or_default();
        let registration = Registrar {
            platform: self.config.platform.as_ref(),
            dialer: self.config.dialer.as_ref(),
            suite: self.config.suite.as_mut(),
            token: &token,
        };
        match start {
            Start::Open => {}
            Start::Register(handle) => registration.register(&mut store, &handle, false).await?,
            Start::RegisterIfNew(handle) => registration.register(&mut store, &handle, true).await?,
            Start::Replace(handle) => registration.replace(&mut store, &handle).await?,
            Start::Link(code) => registration.link(&mut store, code).await?,
        }
        if let Some(token) = &self.config.token {
            store.set_meta("token", token.as_bytes())?;
            store.commit_open()?;
        }
        Ok(store)
    }

    /// Opens the local store. The suite forgets what it remembers of a store that was open before.
    async fn mount(&mut self) -> Result<LocalStore> {
        self.config.suite.clear_cache();
        let mounted = self.config.storage.mount(&self.config.profile.name).await?;
        LocalStore::open(mounted, &self.config.profile, self.config.platform.clone())
    }
}

/// Runs a driver until the client is closed, or until its local store fails.
async fn drive(mut driver: Driver) -> Result<()> {
    loop {
        match driver.run().await? {
            Ended::Stopped => return Ok(()),
            // The driver is dropped, and with it the store: the profile is released.
            Ended::Suspended(owner, reply) => {
                let _ = reply.send(Ok(()));
                match owner.resumed().await {
                    Some(resumed) => driver = resumed,
                    None => return Ok(()),
                }
            }
            Ended::Panicked(owner) => driver = owner.reloaded().await?,
        }
    }
}
