//! Devices that are listed but have not connected.

use chat_core::signing::HelloClaims;
use chat_core::wire::{CloseReason, Hello};

use super::*;

#[test]
fn half_linked_device_expires_and_never_blocks() {
    let (engine, clock) = engine(Rates::OFF);
    let [alice, mut bob, _] = talkers(&engine);
    let key = SigningKey::from_bytes(&[77; 32]);
    let mut tablet =
        DeviceEntry::new(DeviceId::new(2).unwrap(), key.verifying_key().to_bytes(), vec![77; 33].into());
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
