//! Devices that are listed but have not connected.

use chat_core::signing::HelloClaims;
use chat_core::wire::{CloseReason, Hello};

use super::*;

#[test]
fn half_linked_device_expires_and_never_blocks() {
    let (engine, clock) = engine(Rates::OFF);
    let [alice, mut bob, _] = talkers(&engine);
    let key = SigningKey::from_bytes(&[77; 32]);
    let mut tablet = DeviceEntry::new(
        DeviceId::new(2).unwrap(),
        key.verifying_key().to_bytes(),
        SuiteKey::signal(vec![77; 33]),
    );
    tablet.activate_by = START_US / 1000 + 60_000;
    let (before, phone) = (bob.list.clone(), bob.device());
    let devices = [before.list().devices.clone(), vec![tablet.clone()]].concat();
    bob.list = sign(&bob.account, &DeviceList::next(&before, 1, devices));
    let put = |prekeys| ready(engine.respond(phone, Request::PutList(bob.list.clone(), prekeys)));
    assert_eq!(put(Vec::new()), Err(Refusal::Invalid), "a device without keys");
    let forged = FirstPrekeys { installation: tablet.installation(), ..first_prekeys(&bob.key) };
    assert_eq!(put(vec![forged]), Err(Refusal::Denied), "the device did not agree");
    assert!(put(vec![first_prekeys(&key)]).is_ok());
    let claim = || {
        let wanted = Request::Claim(phone.user, vec![tablet.installation()]);
        ready(engine.respond(alice.device(), wanted)).unwrap().bundles
    };
    let inactive = || ready(engine.respond(phone, Request::Lists(vec![phone.user]))).unwrap().inactive;
    let hello = |device| {
        let nonce = Bytes::from_static(&[7; 32]);
        let claims = HelloClaims {
            authority: "localhost:1".into(),
            nonce,
            version: 1,
            token: String::new(),
            user: phone.user,
            device,
            incarnation: 0,
            generation: 0,
        };
        let signature = Bytes::copy_from_slice(&key.sign(&claims.transcript()).to_bytes());
        ready(engine.authenticate(&Hello { claims, store_epoch: None, signature }))
            .map(|greeting| greeting.device)
    };
    assert_eq!((claim().len(), inactive()), (1, vec![tablet.installation()]), "it has its first prekeys");
    assert!(hello(tablet.device).is_ok());
    clock.set_us(START_US + 61_000_000);
    assert_eq!((claim().len(), inactive()), (0, vec![tablet.installation()]));
    assert_eq!(hello(tablet.device), Err(CloseReason::Unauthorized));
    // A device that connected in time stays.
    let (signed, one_time) =
        (first_prekeys(&key), vec![OneTimePrekey { id: 1, data: Bytes::from_static(b"one") }]);
    let upload = PrekeyUpload {
        signed: signed.signed,
        signature: signed.signature,
        one_time,
        uploaded_through: 1,
        replace: false,
    };
    let device = bob.list.list().addresses().nth(1).unwrap();
    assert_eq!(ready(engine.respond(device, Request::Upload(upload))).unwrap().prekeys, 1);
    assert_eq!((claim().len(), inactive()), (1, vec![]));
    assert!(hello(tablet.device).is_ok());
}

#[test]
fn unlinked_device_leaves_no_inbox_and_no_keys() {
    let (engine, _clock, store) = engine_and_store(Rates::OFF);
    let (mut alice, mut bob) = (User::new(1, "alice"), User::new(2, "bob"));
    let key = SigningKey::from_bytes(&[77; 32]);
    let tablet = DeviceEntry::new(
        DeviceId::new(2).unwrap(),
        key.verifying_key().to_bytes(),
        SuiteKey::signal(vec![77; 33]),
    );
    let (phone, entry) = (bob.device(), bob.list.list().devices[0].clone());
    let both = vec![entry.clone(), tablet.clone()];
    bob.list = sign(&bob.account, &DeviceList::first(phone.user, 0, both));
    alice.register(&engine);
    bob.register(&engine);
    let upload = |key| {
        let FirstPrekeys { signed, signature, .. } = first_prekeys(key);
        PrekeyUpload { signed, signature, one_time: Vec::new(), uploaded_through: 1, replace: false }
    };
    for (device, key) in bob.list.list().addresses().zip([&bob.key, &key]) {
        assert!(ready(engine.respond(device, Request::Upload(upload(key)))).is_ok());
    }
    let mut publish = alice.next(&bob, 10);
    publish.boxes.push(DeviceBox { installation: tablet.installation(), data: Bytes::from_static(b"box") });
    assert_eq!(alice.send(&engine, publish), None);
    work(&engine);
    let stored = |device| {
        let record = ready(store.device(device, CursorFilter::All)).unwrap();
        (record.waiting_rows, record.cursors.len())
    };
    let claimed = |device| {
        ready(engine.respond(alice.device(), Request::Claim(phone.user, vec![device]))).unwrap().bundles.len()
    };
    let (phone_id, tablet_id) = (phone.installation, tablet.installation());
    assert_eq!([phone_id, tablet_id].map(stored), [(1, 1); 2]);
    assert_eq!([phone_id, tablet_id].map(claimed), [1; 2]);
    bob.list = sign(&bob.account, &DeviceList::next(&bob.list, 1, vec![entry]));
    assert!(ready(engine.respond(phone, Request::PutList(bob.list.clone(), Vec::new()))).is_ok());
    assert_eq!([phone_id, tablet_id].map(stored), [(1, 1), (0, 0)]);
    assert_eq!([phone_id, tablet_id].map(claimed), [1, 0]);
}
