//! Broken backends: each breaks one sentence of a contract, and the suite must find every one of them.
//!
//! An integrator who extends a suite adds a mutant here first, and sees that the suite misses it.

mod contacts;
mod directory;
mod store;
mod store_fault;

pub use contacts::{ContactFault, FaultyContacts};
pub use directory::{DirectoryFault, FaultyDirectory};
pub use store::FaultyStore;
pub use store_fault::StoreFault;

use std::sync::Arc;

use super::model::{self, Calls, Owners};
use super::{Outcome, cases};
use crate::backend::{ContactStore, KeyDirectory, MessageStore};

/// Seeds of the model-based test that a mutant is run with.
const SEEDS: u64 = 40;

/// Runs the named cases of a store with this fault. Returns the first case that fails.
pub async fn killed_by_a_case(fault: StoreFault) -> Option<&'static str> {
    for case in cases::message_store().into_iter().chain(cases::shared_message_store()) {
        if (case.run)(Arc::new(FaultyStore::new(Some(fault)))).await.is_err() {
            return Some(case.name);
        }
    }
    None
}

/// Runs the model-based test on a store with this fault. Returns the first seed that fails.
pub async fn killed_by_the_model(fault: StoreFault) -> Option<u64> {
    for seed in 0..SEEDS {
        let fresh = || async { Arc::new(FaultyStore::new(Some(fault))) as Arc<dyn MessageStore> };
        if model::fails(seed, Calls::of(Owners::Several), fresh).await {
            return Some(seed);
        }
    }
    None
}

/// Runs the model-based test with injected faults on a store with this fault. Returns the first seed that fails.
pub async fn killed_by_injected_faults(fault: StoreFault) -> Option<u64> {
    for seed in 0..SEEDS {
        let fresh = || async { Arc::new(FaultyStore::new(Some(fault))) as Arc<dyn MessageStore> };
        if model::fails(seed, Calls::unreliable(Owners::Several), fresh).await {
            return Some(seed);
        }
    }
    None
}

/// Runs the model-based test on the same store without a fault, without and with injected faults.
///
/// # Errors
/// The test found a difference from the reference.
pub async fn faultless_store_passes() -> Outcome {
    for calls in [Calls::of(Owners::Several), Calls::unreliable(Owners::Several)] {
        for seed in 0..SEEDS {
            let fresh = || async { Arc::new(FaultyStore::new(None)) as Arc<dyn MessageStore> };
            model::check(seed, calls, fresh).await?;
        }
    }
    Ok(())
}

/// Runs the named cases of a directory with this fault. Returns the first case that fails.
pub async fn directory_killed_by_a_case(fault: DirectoryFault) -> Option<&'static str> {
    for case in cases::key_directory() {
        let directory: Arc<dyn KeyDirectory> = Arc::new(FaultyDirectory::new(Some(fault)));
        if (case.run)(directory).await.is_err() {
            return Some(case.name);
        }
    }
    None
}

/// Runs the named cases of a directory without a fault.
///
/// # Errors
/// A case failed.
pub async fn faultless_directory_passes() -> Outcome {
    for case in cases::key_directory() {
        let outcome = (case.run)(Arc::new(FaultyDirectory::new(None))).await;
        outcome.map_err(|error| format!("{}: {error}", case.name))?;
    }
    Ok(())
}

/// Runs the named cases of a contact store with this fault. Returns the first case that fails.
pub async fn contacts_killed_by_a_case(fault: ContactFault) -> Option<&'static str> {
    for case in cases::contact_store() {
        let contacts: Arc<dyn ContactStore> = Arc::new(FaultyContacts::new(Some(fault)));
        if (case.run)(contacts).await.is_err() {
            return Some(case.name);
        }
    }
    None
}

/// Runs the named cases of a contact store without a fault.
///
/// # Errors
/// A case failed.
pub async fn faultless_contacts_pass() -> Outcome {
    for case in cases::contact_store() {
        let outcome = (case.run)(Arc::new(FaultyContacts::new(None))).await;
        outcome.map_err(|error| format!("{}: {error}", case.name))?;
    }
    Ok(())
}
