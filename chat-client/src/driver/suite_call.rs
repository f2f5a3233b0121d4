//! Calls of the encryption suite. A suite reads bytes that a peer or the server chose, so each call is contained.
//!
//! A call that panics may leave the suite and the open transaction half changed. The driver then ends without a commit:
//! its owner loads the last durable state, the suite forgets what it remembers, and the input of the call is not given
//! to the suite again. Where a panic ends the process, as in a browser, the next start finds a row by the mark in
//! the store: see [`LocalStore::mark_opening`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use chat_core::replica::Unreadable;
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, MessageId, Result, Seq};
use sha2::{Digest, Sha256};

use super::Driver;
use crate::store::LocalStore;
use crate::suite::{PrekeyBundle, Suite};

/// The input of a call to the suite.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum SuiteInput {
    /// A row of the inbox that is opened.
    Row(ConversationId, Seq),
    /// A draft that is sealed.
    Draft(MessageId),
    /// A prekey bundle of a device, by its digest.
    Bundle(InstallationId, [u8; 32]),
    /// No input from outside this device.
    Own,
}

impl SuiteInput {
    pub(super) fn bundle(installation: InstallationId, bundle: &PrekeyBundle) -> Self {
        let digest = Sha256::new()
            .chain_update((bundle.signed.len() as u64).to_be_bytes())
            .chain_update(&bundle.signed)
            .chain_update(&bundle.one_time);
        Self::Bundle(installation, digest.finalize().into())
    }

    /// Encodes a row for the mark in the store; other inputs have no mark.
    pub(super) fn to_mark(self) -> Vec<u8> {
        match self {
            Self::Row(conversation, seq) => [&conversation.as_bytes()[..], &seq.to_be_bytes()].concat(),
            _ => Vec::new(),
        }
    }

    /// Returns the row that a mark names. A mark without a row says that rows were being opened.
    pub(super) fn from_mark(mark: &[u8]) -> Option<Self> {
        let (conversation, seq) = mark.split_at_checked(mark.len().checked_sub(8)?)?;
        let conversation = ConversationId::parse(conversation).ok()?;
        Some(Self::Row(conversation, u64::from_be_bytes(seq.try_into().ok()?)))
    }
}

/// The reason why the suite does not get an input again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rejected {
    /// The suite panicked on it.
    Panicked,
    /// The process ended while the suite had it. That may be a coincidence.
    EndedProcess,
}

impl Rejected {
    /// Returns the reason for a row. A row that ended the process is requested again from its sender.
    pub(super) const fn as_unreadable(self) -> Unreadable {
        match self {
            Self::Panicked => Unreadable::Malformed,
            Self::EndedProcess => Unreadable::NoSession,
        }
    }
}

impl Driver {
    /// Calls the suite, unless it panicked on this input before.
    ///
    /// # Errors
    /// The errors of the call. `Unavailable` if it panics: then [`Owner::panicked_on`](super::Owner) is set.
    pub(super) fn call_suite<T>(
        &mut self,
        input: SuiteInput,
        call: impl FnOnce(&mut dyn Suite, &mut LocalStore) -> Result<T>,
    ) -> Result<Result<T, Rejected>> {
        if let Some(rejected) = self.owner.rejected.get(&input) {
            return Ok(Err(*rejected));
        }
        let (suite, store) = (self.owner.config.suite.as_mut(), &mut self.store);
        // A panic drops the transaction and the caches of the suite, so no broken state is seen.
        match catch_unwind(AssertUnwindSafe(|| call(suite, store))) {
            Ok(outcome) => outcome.map(Ok),
            Err(_) => {
                self.owner.panicked_on = Some(input);
                Err(Error::new(ErrorKind::Unavailable, "the encryption suite panicked"))
            }
        }
    }

    /// Calls the suite without input from outside this device.
    ///
    /// # Errors
    /// The errors of the call. `Unavailable` if it panics: then the client stops.
    pub(super) fn call_suite_alone<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Suite, &mut LocalStore) -> Result<T>,
    ) -> Result<T> {
        let failed = || Error::new(ErrorKind::Corrupt, "the encryption suite panicked on its own state");
        self.call_suite(SuiteInput::Own, call)?.map_err(|_| failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat_core::UserId;

    #[test]
    fn mark_names_its_row() {
        let row = SuiteInput::Row(ConversationId::own(UserId::from_bytes([3; 16])), 77);
        assert_eq!(SuiteInput::from_mark(&row.to_mark()), Some(row));
        for mark in [&[][..], &[1; 7], &[1; 20], &row.to_mark()[1..]] {
            assert_eq!(SuiteInput::from_mark(mark), None);
        }
    }
}
