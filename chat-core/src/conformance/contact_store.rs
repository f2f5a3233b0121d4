use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::{Case, Outcome, decided, equal, failed, list_cases};
use crate::backend::ContactStore;
use crate::model::contact::{Contact, ContactChange, Contacts};
use crate::model::error::ErrorKind;
use crate::model::id::UserId;
use crate::model::presence::PresenceAudience;

type Store = Arc<dyn ContactStore>;

/// Returns the conformance cases of [`ContactStore`].
pub fn contact_store() -> Vec<Case<dyn ContactStore>> {
    list_cases![
        an_unknown_pair_is_a_stranger,
        a_change_holds_for_its_owner,
        accepted_and_blocked_are_independent,
        versions_are_dense,
        a_repeated_change_changes_nothing,
        contacts_has_every_entry,
        concurrent_changes_are_all_stored,
        the_limit_is_for_new_pairs,
        each_owner_has_an_audience,
        an_audience_is_a_change_and_no_pair,
        an_erased_owner_has_no_contacts,
    ]
}

const ALICE: UserId = UserId::from_bytes([1; 16]);
const BOB: UserId = UserId::from_bytes([2; 16]);
/// A limit that no case but one reaches.
const MANY: usize = 1000;

const fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

const fn contact(accepted: bool, blocked: bool) -> Contact {
    Contact { accepted, blocked }
}

async fn change(store: &Store, owner: UserId, other: UserId, change: ContactChange) -> Result<u64, String> {
    decided(|| store.change(owner, other, change, MANY)).await.map_err(failed)
}

async fn read(store: &Store, owner: UserId, other: UserId) -> Result<Contact, String> {
    store.contact(owner, other).await.map_err(failed)
}

async fn all(store: &Store, owner: UserId) -> Result<(u64, BTreeMap<UserId, Contact>), String> {
    let Contacts { version, entries, .. } = store.contacts(owner).await.map_err(failed)?;
    let count = entries.len();
    let entries: BTreeMap<_, _> = entries.into_iter().collect();
    equal(entries.len(), count, "the number of users, and of entries")?;
    Ok((version, entries))
}

async fn set_audience(store: &Store, owner: UserId, audience: PresenceAudience) -> Result<u64, String> {
    decided(|| store.set_audience(owner, audience)).await.map_err(failed)
}

/// Checks the audience of an owner, read alone and with the contacts.
async fn has_audience(store: &Store, owner: UserId, expected: PresenceAudience) -> Outcome {
    equal(store.audience(owner).await.map_err(failed)?, expected, "the audience")?;
    equal(store.contacts(owner).await.map_err(failed)?.audience, expected, "the audience of the contacts")
}

async fn each_owner_has_an_audience(store: Store) -> Outcome {
    has_audience(&store, ALICE, PresenceAudience::Contacts).await?;
    for audience in [PresenceAudience::Nobody, PresenceAudience::All, PresenceAudience::Contacts] {
        set_audience(&store, ALICE, audience).await?;
        has_audience(&store, ALICE, audience).await?;
        has_audience(&store, BOB, PresenceAudience::Contacts).await?;
    }
    set_audience(&store, ALICE, PresenceAudience::All).await?;
    set_audience(&store, BOB, PresenceAudience::Nobody).await?;
    has_audience(&store, ALICE, PresenceAudience::All).await
}

async fn an_audience_is_a_change_and_no_pair(store: Store) -> Outcome {
    equal(set_audience(&store, ALICE, PresenceAudience::Contacts).await?, 0, "the version, nothing changed")?;
    equal(set_audience(&store, ALICE, PresenceAudience::Nobody).await?, 1, "the version")?;
    equal(set_audience(&store, ALICE, PresenceAudience::Nobody).await?, 1, "the version after a repeat")?;
    equal(all(&store, ALICE).await?, (1, BTreeMap::new()), "the entries")?;
    equal(store.change(ALICE, BOB, ContactChange::Accept, 1).await.map_err(failed)?, 2, "the version")?;
    has_audience(&store, ALICE, PresenceAudience::Nobody).await?;
    equal(set_audience(&store, ALICE, PresenceAudience::All).await?, 3, "the version at the limit of pairs")?;
    equal(read(&store, ALICE, BOB).await?, contact(true, false), "the pair")?;
    let changes = (10..14).map(|n| change(&store, ALICE, user(n), ContactChange::Block));
    let (audience, changes) =
        futures_util::join!(set_audience(&store, ALICE, PresenceAudience::Nobody), join_all(changes));
    changes.into_iter().collect::<Result<Vec<_>, String>>()?;
    audience?;
    equal(all(&store, ALICE).await?.0, 8, "the version after concurrent changes")?;
    has_audience(&store, ALICE, PresenceAudience::Nobody).await
}

async fn an_unknown_pair_is_a_stranger(store: Store) -> Outcome {
    equal(read(&store, ALICE, BOB).await?, Contact::default(), "an unknown pair")?;
    equal(all(&store, ALICE).await?, (0, BTreeMap::new()), "the contacts of an unknown user")?;
    equal(store.version(ALICE).await.map_err(failed)?, 0, "the version of an unknown user")
}

async fn a_change_holds_for_its_owner(store: Store) -> Outcome {
    change(&store, ALICE, BOB, ContactChange::Block).await?;
    equal(read(&store, ALICE, BOB).await?, contact(false, true), "the changed pair")?;
    equal(read(&store, BOB, ALICE).await?, Contact::default(), "the other direction")?;
    equal(read(&store, ALICE, user(3)).await?, Contact::default(), "another user")?;
    equal(read(&store, user(3), BOB).await?, Contact::default(), "another owner")?;
    equal(store.version(BOB).await.map_err(failed)?, 0, "the version of the other user")?;
    equal(all(&store, BOB).await?, (0, BTreeMap::new()), "the contacts of the other user")
}

async fn accepted_and_blocked_are_independent(store: Store) -> Outcome {
    let steps = [
        (ContactChange::Block, contact(false, true)),
        (ContactChange::Accept, contact(true, true)),
        (ContactChange::Unblock, contact(true, false)),
        (ContactChange::Block, contact(true, true)),
    ];
    for (step, expected) in steps {
        change(&store, ALICE, BOB, step).await?;
        equal(read(&store, ALICE, BOB).await?, expected, "the contact after a change")?;
    }
    Ok(())
}

async fn versions_are_dense(store: Store) -> Outcome {
    for (version, other) in [(1, BOB), (2, user(3)), (3, user(4))] {
        equal(change(&store, ALICE, other, ContactChange::Accept).await?, version, "the version")?;
        equal(store.version(ALICE).await.map_err(failed)?, version, "the version read afterwards")?;
    }
    equal(change(&store, ALICE, BOB, ContactChange::Block).await?, 4, "after a further change of a pair")?;
    equal(change(&store, BOB, ALICE, ContactChange::Block).await?, 1, "the version of another owner")
}

async fn a_repeated_change_changes_nothing(store: Store) -> Outcome {
    for step in [ContactChange::Accept, ContactChange::Block] {
        let version = change(&store, ALICE, BOB, step).await?;
        equal(change(&store, ALICE, BOB, step).await?, version, "the version after a repeat")?;
    }
    equal(store.version(ALICE).await.map_err(failed)?, 2, "the version")?;
    let version = change(&store, ALICE, user(3), ContactChange::Unblock).await?;
    equal(version, 2, "the version after the end of a block that was none")?;
    equal(
        all(&store, ALICE).await?.1.get(&user(3)).copied().unwrap_or_default(),
        Contact::default(),
        "its entry",
    )
}

async fn contacts_has_every_entry(store: Store) -> Outcome {
    let mut expected = BTreeMap::new();
    for n in 2..30 {
        let step = if n % 2 == 0 { ContactChange::Accept } else { ContactChange::Block };
        change(&store, ALICE, user(n), step).await?;
        expected.insert(user(n), step.apply(Contact::default()));
    }
    change(&store, BOB, ALICE, ContactChange::Accept).await?;
    change(&store, ALICE, user(3), ContactChange::Unblock).await?;
    change(&store, ALICE, user(5), ContactChange::Accept).await?;
    expected.insert(user(5), contact(true, true));
    let (version, mut entries) = all(&store, ALICE).await?;
    // An entry that is neither accepted nor blocked may be absent.
    entries.retain(|_, contact| *contact != Contact::default());
    expected.remove(&user(3));
    equal(version, 30, "the version")?;
    equal(entries, expected, "the entries")
}

async fn concurrent_changes_are_all_stored(store: Store) -> Outcome {
    let calls = AtomicUsize::new(0);
    let counted = |n| {
        calls.fetch_add(1, Ordering::Relaxed);
        store.change(ALICE, user(n), ContactChange::Accept, MANY)
    };
    let changes = (2..10).map(|n| decided(move || counted(n)));
    let versions =
        join_all(changes).await.into_iter().collect::<crate::Result<BTreeSet<_>>>().map_err(failed)?;
    equal(store.version(ALICE).await.map_err(failed)?, 8, "the version after concurrent changes")?;
    // A repeat finds its change stored, and returns the newest version.
    if calls.into_inner() == 8 {
        equal(versions, (1..=8).collect(), "the versions of concurrent changes")?;
    }
    for n in 2..10 {
        equal(read(&store, ALICE, user(n)).await?, contact(true, false), "a contact")?;
    }
    let changes = [ContactChange::Accept, ContactChange::Block].map(|step| change(&store, BOB, ALICE, step));
    join_all(changes).await.into_iter().collect::<Result<Vec<_>, String>>()?;
    equal(read(&store, BOB, ALICE).await?, contact(true, true), "a pair with two concurrent changes")
}

async fn the_limit_is_for_new_pairs(store: Store) -> Outcome {
    for n in 2..5 {
        store.change(ALICE, user(n), ContactChange::Block, 3).await.map_err(failed)?;
    }
    let refused = store.change(ALICE, user(5), ContactChange::Block, 3).await;
    equal(refused.err().map(|error| error.kind()), Some(ErrorKind::Throttled), "a pair above the limit")?;
    equal(read(&store, ALICE, user(5)).await?, Contact::default(), "the refused pair")?;
    equal(store.version(ALICE).await.map_err(failed)?, 3, "the version")?;
    store.change(ALICE, user(2), ContactChange::Accept, 3).await.map_err(failed)?;
    equal(read(&store, ALICE, user(2)).await?, contact(true, true), "a known pair at the limit")?;
    store.change(BOB, ALICE, ContactChange::Block, 3).await.map_err(failed)?;
    equal(read(&store, BOB, ALICE).await?, contact(false, true), "a pair of another owner")
}

async fn an_erased_owner_has_no_contacts(store: Store) -> Outcome {
    change(&store, ALICE, BOB, ContactChange::Block).await?;
    // A store may erase many contacts piece by piece.
    for n in 3..=60 {
        change(&store, ALICE, user(n), ContactChange::Accept).await?;
    }
    change(&store, BOB, ALICE, ContactChange::Accept).await?;
    set_audience(&store, ALICE, PresenceAudience::All).await?;
    set_audience(&store, BOB, PresenceAudience::Nobody).await?;
    decided(|| store.erase(ALICE)).await.map_err(failed)?;
    decided(|| store.erase(ALICE)).await.map_err(failed)?;
    equal(read(&store, ALICE, BOB).await?, Contact::default(), "an erased pair")?;
    equal(all(&store, ALICE).await?, (0, BTreeMap::new()), "the contacts of the erased owner")?;
    equal(all(&store, BOB).await?.0, 2, "the version of the other owner")?;
    has_audience(&store, ALICE, PresenceAudience::Contacts).await?;
    has_audience(&store, BOB, PresenceAudience::Nobody).await?;
    equal(read(&store, BOB, ALICE).await?, contact(true, false), "a pair of the other owner")
}
