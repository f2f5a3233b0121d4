//! Fuzzes the start of a session by the Signal suite with a bundle of the server. It must be refused or accepted, and a
//! message must be sealed without a panic.
//!
//! The first byte chooses raw bytes or a changed bundle. A change is three bytes: two for the place, one to combine with.
#![no_main]

mod signal_world;

use chat_client::suite::Suite;
use chat_client::suite::PrekeyBundle;
use chat_signal::Signal;
use libfuzzer_sys::fuzz_target;
use signal_world::WORLD;

fuzz_target!(|data: &[u8]| {
    let Some((kind, changes)) = data.split_first() else { return };
    WORLD.with(|world| {
        let mut bundle = if kind % 2 == 0 {
            let (signed, one_time) = changes.split_at(changes.len() / 2);
            PrekeyBundle { signed: signed.to_vec().into(), one_time: one_time.to_vec().into() }
        } else {
            world.bundle.clone()
        };
        if kind % 2 > 0 {
            let mut parts = [bundle.signed.to_vec(), bundle.one_time.to_vec()];
            for change in changes.chunks_exact(3) {
                let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
                let part = &mut parts[place % 2];
                let at = place / 2 % part.len();
                part[at] ^= change[2];
            }
            let [signed, one_time] = parts;
            bundle = PrekeyBundle { signed: signed.into(), one_time: one_time.into() };
        }
        let (mut suite, mut tables) = (Signal::new(), world.carol.clone());
        if suite.start_session(&mut tables, &world.bob, &bundle).is_ok() {
            let _ = suite.seal(&mut tables, &world.bob, b"hello");
        }
    });
});
