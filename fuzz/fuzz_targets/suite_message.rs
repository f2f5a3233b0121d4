//! Fuzzes the opening of a message by the Signal suite. A message of a stranger, or one that the server changed, must be
//! refused or opened, and never panic.
//!
//! The first byte chooses raw bytes, a changed first message, or a changed later message. A change is three bytes: two
//! for the place, one to combine with.
#![no_main]

mod signal_world;

use chat_client::suite::Suite;
use chat_signal::Signal;
use libfuzzer_sys::fuzz_target;
use signal_world::WORLD;

fuzz_target!(|data: &[u8]| {
    let Some((kind, changes)) = data.split_first() else { return };
    WORLD.with(|world| {
        let mut sealed = match kind % 3 {
            0 => changes.to_vec(),
            1 => world.first_message.clone(),
            _ => world.later_message.clone(),
        };
        if kind % 3 > 0 {
            for change in changes.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % sealed.len();
                sealed[at] ^= change[2];
            }
        }
        let tables = if kind % 3 == 1 { &world.bob_before } else { &world.bob_after };
        let _ = Signal::new().open(&mut tables.clone(), &world.alice, &sealed);
    });
});
