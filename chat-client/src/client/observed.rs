//! Lists that follow the local store.

use chat_core::{ErrorKind, Result};
use tokio::sync::{oneshot, watch};

use super::Client;
use crate::diff::Diff;
use crate::driver::Command;

/// A part of the store that the driver brings up to date.
pub(super) trait View: Clone {
    type Item: Clone;

    /// Whether the store has changes that the view may not show.
    fn is_behind(&self, event: u64, revision: u64) -> bool;

    /// Returns the command that brings the view up to date.
    fn follow(self, reply: ViewReply<Self>) -> Command;
}

pub(super) type ViewReply<V> = oneshot::Sender<Result<(V, Vec<Diff<<V as View>::Item>>)>>;

/// A view, and the items that it shows.
#[derive(Debug)]
pub(super) struct Observed<V: View> {
    pub(super) view: V,
    pub(super) items: Vec<V::Item>,
    client: Client,
    last: watch::Receiver<u64>,
    revision: watch::Receiver<u64>,
}

impl<V: View> Observed<V> {
    pub(super) fn new(client: &Client, view: V) -> Self {
        let (last, revision) = (client.last.clone(), client.revision.clone());
        Self { view, items: Vec::new(), client: client.clone(), last, revision }
    }

    /// Waits for changes and applies them. `None` once the client is closed.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Diff<V::Item>>>> {
        loop {
            let (event, revision) = (*self.last.borrow_and_update(), *self.revision.borrow_and_update());
            if self.view.is_behind(event, revision) {
                match self.step(V::follow).await {
                    Ok(diffs) if diffs.is_empty() => {}
                    Err(error) if error.kind() == ErrorKind::Closed => return Ok(None),
                    diffs => return diffs.map(Some),
                }
            }
            let changed = tokio::select! {
                changed = self.last.changed() => changed,
                changed = self.revision.changed() => changed,
            };
            if changed.is_err() {
                return Ok(None);
            }
        }
    }

    /// Sends a command that changes the view. If the future is dropped, the view stays as it was and catches up later.
    pub(super) async fn step(
        &mut self,
        command: impl FnOnce(V, ViewReply<V>) -> Command,
    ) -> Result<Vec<Diff<V::Item>>> {
        let view = self.view.clone();
        let (view, diffs) = self.client.request(|reply| command(view, reply)).await?;
        self.view = view;
        diffs.iter().cloned().for_each(|diff| diff.apply(&mut self.items));
        Ok(diffs)
    }
}
