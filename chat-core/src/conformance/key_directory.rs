use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use futures_util::future::join_all;

use super::{Case, Outcome, decided, equal, failed, list_cases};
use crate::backend::{AccountKey, BundleParts, KeyDirectory, Reincarnation};
use crate::model::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use crate::model::error::ErrorKind;
use crate::model::id::{DeviceId, Handle, InstallationId, UserId};
use crate::model::limits::{MAX_NUMBER, STORED_PREKEYS};
use crate::model::prekeys::{OneTimePrekey, PrekeyUpload};
use crate::model::suite::SuiteKey;

type Keys = Arc<dyn KeyDirectory>;

/// Returns the conformance cases of [`KeyDirectory`].
pub fn key_directory() -> Vec<Case<dyn KeyDirectory>> {
    list_cases![
        a_handle_is_taken_once,
        registering_again_is_the_same,
        concurrent_registrations_have_one_winner,
        lists_follow_each_other,
        earlier_lists_stay_readable,
        concurrent_lists_have_one_winner,
        an_account_is_replaced_by_name_only,
        an_installation_has_one_user,
        an_upload_repeated_changes_nothing,
        first_prekeys_are_stored_once,
        an_upload_can_replace,
        too_many_prekeys_are_refused,
        a_prekey_is_claimed_once,
        concurrent_claims_get_distinct_prekeys,
        a_bundle_without_one_time_prekey,
        a_claim_of_the_signed_part_takes_no_prekey,
        incarnations_rise,
        a_removed_device_has_no_prekeys,
        a_new_incarnation_has_no_prekeys,
        prekey_ids_have_53_bits,
        revocations_are_listed_by_time,
        a_later_revocation_keeps_the_earlier,
        a_deleted_account_is_gone,
        a_deleted_user_is_never_used_again,
        deleting_again_is_the_same,
        an_unknown_user_is_empty,
    ]
}

fn entry(key: u8) -> Result<DeviceEntry, String> {
    let device = DeviceId::new(u32::from(key % 100) + 1).map_err(failed)?;
    Ok(DeviceEntry::new(device, [key; 32], SuiteKey::signal(vec![key; 33])))
}

fn sign(list: &DeviceList, key: u8) -> Result<SignedDeviceList, String> {
    let key = SigningKey::from_bytes(&[key; 32]);
    let encoded = list.encode();
    let signature = key.sign(&DeviceList::transcript(&encoded)).to_bytes().to_vec();
    SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature.into()).map_err(failed)
}

fn first(user: u8, device: u8) -> Result<SignedDeviceList, String> {
    sign(&DeviceList::first(UserId::from_bytes([user; 16]), 1, vec![entry(device)?]), user)
}

fn handle(name: &str) -> Result<Handle, String> {
    Handle::new(name).map_err(failed)
}

fn kind<T>(result: crate::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

const DEVICE: InstallationId = InstallationId::from_bytes([5; 16]);

fn upload(ids: std::ops::RangeInclusive<u64>, replace: bool) -> PrekeyUpload {
    PrekeyUpload {
        signed: Bytes::from_static(b"signed"),
        signature: Bytes::from_static(b"signature"),
        uploaded_through: *ids.end(),
        one_time: ids.map(|id| OneTimePrekey { id, data: id.to_be_bytes().to_vec().into() }).collect(),
        replace,
    }
}

async fn a_handle_is_taken_once(keys: Keys) -> Outcome {
    keys.register(&handle("alice")?, &first(1, 1)?).await.map_err(failed)?;
    equal(
        kind(keys.register(&handle("alice")?, &first(2, 2)?).await),
        Some(ErrorKind::Conflict),
        "the second registration",
    )?;
    let user = keys.resolve(&handle("alice")?).await.map_err(failed)?;
    equal(user, Some(UserId::from_bytes([1; 16])), "the user")?;
    equal(keys.list(UserId::from_bytes([2; 16])).await.map_err(failed)?, None, "the list of the refused user")
}

async fn registering_again_is_the_same(keys: Keys) -> Outcome {
    let list = first(1, 1)?;
    keys.register(&handle("alice")?, &list).await.map_err(failed)?;
    keys.register(&handle("alice")?, &list).await.map_err(failed)?;
    equal(keys.list(list.list().user).await.map_err(failed)?, Some(list.clone()), "the list")?;
    let name = keys.handle_of(list.list().user).await.map_err(failed)?;
    equal(name, Some(handle("alice")?), "the handle")
}

/// Checks that one of several concurrent writes succeeded and that the others were refused. Returns its index.
fn one_winner(outcomes: Vec<crate::Result<()>>) -> Result<usize, String> {
    let won = outcomes.iter().position(Result::is_ok).ok_or("no concurrent write succeeded")?;
    for (at, outcome) in outcomes.into_iter().enumerate().filter(|(at, _)| *at != won) {
        equal(
            kind(outcome),
            Some(ErrorKind::Conflict),
            &format!("concurrent write {at} beside write {won}"),
        )?;
    }
    Ok(won)
}

async fn concurrent_registrations_have_one_winner(keys: Keys) -> Outcome {
    let (name, lists) = (handle("alice")?, [first(1, 1)?, first(2, 2)?, first(3, 3)?]);
    let outcomes = join_all(lists.iter().map(|list| decided(|| keys.register(&name, list)))).await;
    let won = one_winner(outcomes)?;
    let user = keys.resolve(&name).await.map_err(failed)?;
    equal(user, Some(lists[won].list().user), "the user of the handle")?;
    let stored = keys.list(lists[won].list().user).await.map_err(failed)?;
    equal(stored.as_ref(), Some(&lists[won]), "the list of the handle's user")
}

async fn lists_follow_each_other(keys: Keys) -> Outcome {
    let v1 = first(1, 1)?;
    equal(
        kind(keys.put_list(&v1, AccountKey::Same).await),
        Some(ErrorKind::NotFound),
        "a list without an account",
    )?;
    keys.register(&handle("alice")?, &v1).await.map_err(failed)?;
    let v2 = sign(&DeviceList::next(&v1, 2, vec![entry(1)?, entry(2)?]), 1)?;
    let v3 = sign(&DeviceList::next(&v2, 3, vec![entry(1)?]), 1)?;
    equal(kind(keys.put_list(&v3, AccountKey::Same).await), Some(ErrorKind::Conflict), "a skipped version")?;
    keys.put_list(&v2, AccountKey::Same).await.map_err(failed)?;
    keys.put_list(&v2, AccountKey::Same).await.map_err(failed)?;
    let other = sign(&DeviceList::next(&v1, 9, vec![entry(1)?]), 1)?;
    equal(
        kind(keys.put_list(&other, AccountKey::Same).await),
        Some(ErrorKind::Conflict),
        "another second version",
    )?;
    keys.put_list(&v3, AccountKey::Same).await.map_err(failed)?;
    equal(keys.list(v1.list().user).await.map_err(failed)?, Some(v3), "the list")
}

async fn earlier_lists_stay_readable(keys: Keys) -> Outcome {
    let v1 = first(1, 1)?;
    let user = v1.list().user;
    keys.register(&handle("alice")?, &v1).await.map_err(failed)?;
    let v2 = sign(&DeviceList::next(&v1, 2, vec![entry(1)?, entry(2)?]), 1)?;
    let v3 = sign(&DeviceList::next(&v2, 3, vec![entry(1)?]), 1)?;
    for list in [&v2, &v3] {
        keys.put_list(list, AccountKey::Same).await.map_err(failed)?;
    }
    for (version, expected) in [(0, None), (1, Some(v1)), (2, Some(v2)), (3, Some(v3)), (4, None)] {
        let list = keys.list_version(user, version).await.map_err(failed)?;
        equal(list, expected, &format!("version {version}"))?;
    }
    let stranger = keys.list_version(UserId::from_bytes([9; 16]), 1).await.map_err(failed)?;
    equal(stranger, None, "a list of an unknown user")
}

async fn concurrent_lists_have_one_winner(keys: Keys) -> Outcome {
    let v1 = first(1, 1)?;
    keys.register(&handle("alice")?, &v1).await.map_err(failed)?;
    let next = |device| sign(&DeviceList::next(&v1, 2, vec![entry(1)?, entry(device)?]), 1);
    let lists = [next(2)?, next(3)?, next(4)?];
    let writes = lists.iter().map(|list| decided(|| keys.put_list(list, AccountKey::Same)));
    let won = one_winner(join_all(writes).await)?;
    equal(keys.list(v1.list().user).await.map_err(failed)?.as_ref(), Some(&lists[won]), "the list")
}

async fn an_account_is_replaced_by_name_only(keys: Keys) -> Outcome {
    let v1 = first(1, 1)?;
    keys.register(&handle("alice")?, &v1).await.map_err(failed)?;
    let replaced = sign(&DeviceList::next(&v1, 2, vec![entry(2)?]), 9)?;
    let unasked = keys.put_list(&replaced, AccountKey::Same).await;
    equal(kind(unasked), Some(ErrorKind::Conflict), "another account key with `AccountKey::Same`")?;
    let same = sign(&DeviceList::next(&v1, 2, vec![entry(3)?]), 1)?;
    let same = keys.put_list(&same, AccountKey::New).await;
    equal(kind(same), Some(ErrorKind::Conflict), "the same account key with `AccountKey::New`")?;
    keys.put_list(&replaced, AccountKey::New).await.map_err(failed)?;
    keys.put_list(&replaced, AccountKey::New).await.map_err(failed)?;
    equal(keys.list(v1.list().user).await.map_err(failed)?, Some(replaced), "the list")
}

async fn an_installation_has_one_user(keys: Keys) -> Outcome {
    keys.register(&handle("alice")?, &first(1, 1)?).await.map_err(failed)?;
    let stolen = keys.register(&handle("mallory")?, &first(2, 1)?).await;
    equal(kind(stolen), Some(ErrorKind::Conflict), "a list with another user's device")
}

async fn an_upload_repeated_changes_nothing(keys: Keys) -> Outcome {
    equal(keys.upload(DEVICE, &upload(1..=5, false)).await.map_err(failed)?, 5, "prekeys")?;
    keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?;
    equal(keys.upload(DEVICE, &upload(1..=5, false)).await.map_err(failed)?, 4, "prekeys after a repeat")?;
    equal(keys.upload(DEVICE, &upload(6..=7, false)).await.map_err(failed)?, 6, "prekeys after the next")
}

async fn an_upload_can_replace(keys: Keys) -> Outcome {
    keys.upload(DEVICE, &upload(1..=5, false)).await.map_err(failed)?;
    equal(keys.upload(DEVICE, &upload(100..=101, true)).await.map_err(failed)?, 2, "prekeys")?;
    let bundle =
        keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?.ok_or("no bundle")?;
    equal(bundle.one_time.to_vec(), 100_u64.to_be_bytes().to_vec(), "the claimed one-time prekey")
}

async fn too_many_prekeys_are_refused(keys: Keys) -> Outcome {
    for n in 0..STORED_PREKEYS as u64 / 100 {
        keys.upload(DEVICE, &upload(n * 100 + 1..=n * 100 + 100, false)).await.map_err(failed)?;
    }
    let more = keys.upload(DEVICE, &upload(1001..=1001, false)).await;
    equal(kind(more), Some(ErrorKind::Throttled), "one prekey above the limit")
}

async fn a_prekey_is_claimed_once(keys: Keys) -> Outcome {
    keys.upload(DEVICE, &upload(1..=50, false)).await.map_err(failed)?;
    let mut given = BTreeSet::new();
    for _ in 0..50 {
        let bundle =
            keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?.ok_or("no bundle")?;
        equal(bundle.signed.as_ref(), b"signed", "the signed part")?;
        if !given.insert(bundle.one_time) {
            return Err("a one-time prekey was claimed twice".into());
        }
    }
    equal(given.len(), 50, "distinct one-time prekeys")
}

async fn concurrent_claims_get_distinct_prekeys(keys: Keys) -> Outcome {
    keys.upload(DEVICE, &upload(1..=20, false)).await.map_err(failed)?;
    let (mut given, mut unknown) = (BTreeSet::new(), 0);
    for _ in 0..5 {
        for bundle in join_all((0..4).map(|_| keys.claim(DEVICE, BundleParts::WithOneTimePrekey))).await {
            // A claim whose outcome is unknown may have used up a prekey.
            if bundle.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
                unknown += 1;
                continue;
            }
            let one_time = bundle.map_err(failed)?.ok_or("no bundle")?.one_time;
            if one_time.is_empty() || !given.insert(one_time) {
                return Err("concurrent claims did not get distinct one-time prekeys".into());
            }
        }
    }
    let left = keys.device(DEVICE).await.map_err(failed)?.prekeys;
    equal(left <= unknown, true, "only prekeys of unknown claims are left")
}

async fn a_bundle_without_one_time_prekey(keys: Keys) -> Outcome {
    equal(
        keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?,
        None,
        "before any upload",
    )?;
    keys.upload(DEVICE, &upload(1..=1, false)).await.map_err(failed)?;
    keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?;
    let bundle =
        keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?.ok_or("no bundle")?;
    equal(bundle.one_time.len(), 0, "the one-time prekey")
}

async fn a_claim_of_the_signed_part_takes_no_prekey(keys: Keys) -> Outcome {
    let claim = async |parts| keys.claim(DEVICE, parts).await.map_err(failed);
    equal(claim(BundleParts::SignedOnly).await?, None, "before any upload")?;
    keys.upload(DEVICE, &upload(1..=2, false)).await.map_err(failed)?;
    for _ in 0..3 {
        let bundle = claim(BundleParts::SignedOnly).await?.ok_or("no bundle")?;
        equal((bundle.signed.as_ref(), bundle.one_time.len()), (&b"signed"[..], 0), "the signed part alone")?;
    }
    equal(keys.device(DEVICE).await.map_err(failed)?.prekeys, 2, "prekeys")?;
    let bundle = claim(BundleParts::WithOneTimePrekey).await?.ok_or("no bundle")?;
    equal(bundle.one_time.to_vec(), 1_u64.to_be_bytes().to_vec(), "the first one-time prekey")
}

async fn first_prekeys_are_stored_once(keys: Keys) -> Outcome {
    let first = |signed: &'static [u8]| PrekeyUpload {
        signed: Bytes::from_static(signed),
        one_time: Vec::new(),
        ..upload(0..=0, false)
    };
    let signed = async || {
        let bundle = keys.claim(DEVICE, BundleParts::SignedOnly).await.map_err(failed)?;
        Ok::<_, String>(bundle.map(|bundle| bundle.signed.to_vec()))
    };
    let through = async || Ok::<_, String>(keys.device(DEVICE).await.map_err(failed)?.uploaded_through);
    equal(keys.upload(DEVICE, &first(b"first")).await.map_err(failed)?, 0, "prekeys")?;
    equal(signed().await?, Some(b"first".to_vec()), "the first prekeys")?;
    equal(through().await?, 0, "the highest id of the first prekeys")?;
    keys.upload(DEVICE, &first(b"other")).await.map_err(failed)?;
    equal(signed().await?, Some(b"first".to_vec()), "the first prekeys after others")?;
    keys.upload(DEVICE, &upload(1..=5, false)).await.map_err(failed)?;
    keys.upload(DEVICE, &first(b"other")).await.map_err(failed)?;
    equal(signed().await?, Some(b"signed".to_vec()), "the prekeys that the device uploaded")?;
    equal(through().await?, 5, "the highest id")
}

async fn incarnations_rise(keys: Keys) -> Outcome {
    equal(keys.device(DEVICE).await.map_err(failed)?.incarnation, 0, "the initial incarnation")?;
    let wish = |nonce: u8, asked, now_ms| Reincarnation { nonce: [nonce; 16], asked, from: 0, now_ms };
    equal(keys.reincarnate(DEVICE, wish(1, false, 0)).await.map_err(failed)?, 1, "the first incarnation")?;
    equal(keys.reincarnate(DEVICE, wish(1, false, 5)).await.map_err(failed)?, 1, "the same nonce")?;
    let soon = keys.reincarnate(DEVICE, wish(2, false, 1000)).await;
    equal(kind(soon), Some(ErrorKind::Throttled), "a second incarnation on the same day")?;
    equal(keys.reincarnate(DEVICE, wish(3, true, 1000)).await.map_err(failed)?, 2, "on the user's request")?;
    let day = 24 * 3600 * 1000;
    equal(keys.reincarnate(DEVICE, wish(4, false, 2000 + day)).await.map_err(failed)?, 3, "a day later")?;
    equal(keys.device(DEVICE).await.map_err(failed)?.incarnation, 3, "the stored incarnation")?;
    let ahead = Reincarnation { from: 9, ..wish(5, true, 3000 + day) };
    equal(keys.reincarnate(DEVICE, ahead).await.map_err(failed)?, 10, "above the one that it replaces")
}

async fn a_new_incarnation_has_no_prekeys(keys: Keys) -> Outcome {
    keys.upload(DEVICE, &upload(1..=5, false)).await.map_err(failed)?;
    let wish = Reincarnation { nonce: [1; 16], asked: false, from: 0, now_ms: 0 };
    keys.reincarnate(DEVICE, wish).await.map_err(failed)?;
    equal(
        keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?,
        None,
        "a bundle of the former incarnation",
    )?;
    equal(keys.upload(DEVICE, &upload(100..=104, true)).await.map_err(failed)?, 5, "prekeys of the new one")?;
    keys.reincarnate(DEVICE, wish).await.map_err(failed)?;
    equal(keys.device(DEVICE).await.map_err(failed)?.prekeys, 5, "prekeys after the repeated request")
}

async fn a_removed_device_has_no_prekeys(keys: Keys) -> Outcome {
    let [list, next] = two_versions(&keys).await?;
    let [stays, removed] = [0, 1].map(|n| next.list().devices[n].installation());
    let wish = Reincarnation { nonce: [2; 16], asked: true, from: 0, now_ms: 1 };
    keys.reincarnate(removed, wish).await.map_err(failed)?;
    keys.upload(removed, &upload(1..=3, false)).await.map_err(failed)?;
    let last = sign(&DeviceList::next(&next, 3, vec![entry(1)?]), 1)?;
    keys.put_list(&last, AccountKey::Same).await.map_err(failed)?;
    let bundle = keys.claim(removed, BundleParts::SignedOnly).await.map_err(failed)?;
    equal(bundle, None, "the bundle of the removed device")?;
    let stored = keys.device(removed).await.map_err(failed)?;
    equal((stored.prekeys, stored.uploaded_through), (0, 0), "the prekeys of the removed device")?;
    equal(stored.incarnation, 1, "the incarnation of the removed device")?;
    keys.put_list(&last, AccountKey::Same).await.map_err(failed)?;
    let stored = keys.device(stays).await.map_err(failed)?;
    equal((stored.prekeys, stored.incarnation), (3, 1), "the keys of the device that stays")?;
    equal(
        keys.list_version(list.list().user, 2).await.map_err(failed)?,
        Some(next),
        "the version that named it",
    )
}

async fn prekey_ids_have_53_bits(keys: Keys) -> Outcome {
    let ids = MAX_NUMBER - 2..=MAX_NUMBER;
    equal(keys.upload(DEVICE, &upload(ids.clone(), false)).await.map_err(failed)?, 3, "prekeys")?;
    equal(
        keys.upload(DEVICE, &upload(ids.clone(), false)).await.map_err(failed)?,
        3,
        "prekeys after a repeat",
    )?;
    for id in ids {
        let bundle =
            keys.claim(DEVICE, BundleParts::WithOneTimePrekey).await.map_err(failed)?.ok_or("no bundle")?;
        equal(bundle.one_time.to_vec(), id.to_be_bytes().to_vec(), "the prekey with the lowest id")?;
    }
    Ok(())
}

async fn an_unknown_user_is_empty(keys: Keys) -> Outcome {
    equal(keys.resolve(&handle("stranger")?).await.map_err(failed)?, None, "the user")?;
    equal(keys.list(UserId::from_bytes([9; 16])).await.map_err(failed)?, None, "the list")?;
    equal(keys.handle_of(UserId::from_bytes([9; 16])).await.map_err(failed)?, None, "the handle")
}

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 3600 * 1000;

async fn revocations(keys: &Keys, since_ms: u64) -> Result<BTreeSet<(UserId, u64)>, String> {
    Ok(keys.revocations(since_ms).await.map_err(failed)?.into_iter().collect())
}

async fn revocations_are_listed_by_time(keys: Keys) -> Outcome {
    let now = 1_700_000_000_000;
    let (alice, bob) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
    equal(revocations(&keys, 0).await?, BTreeSet::new(), "before the first")?;
    let all = [(alice, now - 3 * DAY_MS), (bob, now - 1), (alice, now), (bob, now)];
    for (user, at) in all {
        keys.revoke(user, at).await.map_err(failed)?;
        keys.revoke(user, at).await.map_err(failed)?;
    }
    equal(revocations(&keys, now - 5 * DAY_MS).await?, BTreeSet::from(all), "all")?;
    equal(revocations(&keys, now - 1).await?, BTreeSet::from([all[1], all[2], all[3]]), "the later ones")?;
    equal(revocations(&keys, now).await?, BTreeSet::from([all[2], all[3]]), "the last ones")?;
    equal(revocations(&keys, now + 1).await?, BTreeSet::new(), "later than all")
}

async fn a_later_revocation_keeps_the_earlier(keys: Keys) -> Outcome {
    let now = 1_700_000_000_000;
    let user = UserId::from_bytes([1; 16]);
    keys.revoke(user, now).await.map_err(failed)?;
    keys.revoke(user, now - DAY_MS).await.map_err(failed)?;
    equal(revocations(&keys, now).await?, BTreeSet::from([(user, now)]), "the later one")?;
    keys.revoke(user, now + DAY_MS).await.map_err(failed)?;
    equal(revocations(&keys, now).await?.len(), 2, "the number of revocations")
}

/// Registers Alice with one device, adds a second device in list version 2, and uploads prekeys of the first one.
async fn two_versions(keys: &Keys) -> Result<[SignedDeviceList; 2], String> {
    let list = first(1, 1)?;
    keys.register(&handle("alice")?, &list).await.map_err(failed)?;
    let next = sign(&DeviceList::next(&list, 2, vec![entry(1)?, entry(2)?]), 1)?;
    keys.put_list(&next, AccountKey::Same).await.map_err(failed)?;
    let device = list.list().devices[0].installation();
    keys.upload(device, &upload(1..=3, false)).await.map_err(failed)?;
    let wish = Reincarnation { nonce: [1; 16], asked: true, from: 0, now_ms: 1 };
    keys.reincarnate(device, wish).await.map_err(failed)?;
    keys.upload(device, &upload(4..=6, false)).await.map_err(failed)?;
    Ok([list, next])
}

async fn a_deleted_account_is_gone(keys: Keys) -> Outcome {
    let [list, next] = two_versions(&keys).await?;
    keys.register(&handle("bob")?, &first(2, 9)?).await.map_err(failed)?;
    let user = list.list().user;
    let mut devices = keys.delete(user).await.map_err(failed)?;
    devices.sort_unstable();
    let mut expected: Vec<_> = next.list().addresses().map(|device| device.installation).collect();
    expected.sort_unstable();
    equal(devices, expected, "the installations")?;
    equal(keys.list(user).await.map_err(failed)?, None, "the list")?;
    equal(keys.resolve(&handle("alice")?).await.map_err(failed)?, None, "the user of the handle")?;
    equal(keys.handle_of(user).await.map_err(failed)?, None, "the handle")?;
    let device = list.list().devices[0].installation();
    let bundle = keys.claim(device, BundleParts::WithOneTimePrekey).await.map_err(failed)?;
    equal(bundle.map(|bundle| bundle.installation), None, "the bundle")?;
    let stored = keys.device(device).await.map_err(failed)?;
    equal((stored.prekeys, stored.incarnation), (0, 0), "the prekeys and the incarnation")?;
    equal(keys.list_version(user, 1).await.map_err(failed)?, Some(list), "version 1")?;
    equal(keys.list_version(user, 2).await.map_err(failed)?, Some(next), "version 2")?;
    let bob = keys.resolve(&handle("bob")?).await.map_err(failed)?;
    equal(bob, Some(UserId::from_bytes([2; 16])), "another account")
}

async fn a_deleted_user_is_never_used_again(keys: Keys) -> Outcome {
    let [list, next] = two_versions(&keys).await?;
    keys.delete(list.list().user).await.map_err(failed)?;
    let conflict = Some(ErrorKind::Conflict);
    equal(kind(keys.register(&handle("alice")?, &list).await), conflict, "the same account again")?;
    let other = sign(&DeviceList::first(list.list().user, 5, vec![entry(7)?]), 7)?;
    equal(kind(keys.register(&handle("alice")?, &other).await), conflict, "the same user with other keys")?;
    let later = sign(&DeviceList::next(&next, 3, vec![entry(1)?]), 1)?;
    equal(kind(keys.put_list(&later, AccountKey::Same).await), Some(ErrorKind::NotFound), "a later list")?;
    equal(kind(keys.register(&handle("carol")?, &first(3, 2)?).await), conflict, "an installation of it")?;
    keys.register(&handle("alice")?, &first(4, 4)?).await.map_err(failed)?;
    equal(
        keys.resolve(&handle("alice")?).await.map_err(failed)?,
        Some(UserId::from_bytes([4; 16])),
        "the new user of the handle",
    )
}

async fn deleting_again_is_the_same(keys: Keys) -> Outcome {
    let [list, _] = two_versions(&keys).await?;
    let user = list.list().user;
    let mut first_time = keys.delete(user).await.map_err(failed)?;
    keys.register(&handle("alice")?, &first(4, 4)?).await.map_err(failed)?;
    let mut again = keys.delete(user).await.map_err(failed)?;
    first_time.sort_unstable();
    again.sort_unstable();
    equal(again, first_time, "the installations")?;
    equal(
        keys.resolve(&handle("alice")?).await.map_err(failed)?,
        Some(UserId::from_bytes([4; 16])),
        "the new user of the handle",
    )?;
    let unknown = keys.delete(UserId::from_bytes([9; 16])).await;
    equal(unknown.err().map(|error| error.kind()), Some(ErrorKind::NotFound), "an unknown account")
}
