//! Fuzzes the offer of a device that waits to be linked, and the answer to it: as a server that changed them sends them, and
//! as a person that has the code encrypts them.
//!
//! The first byte chooses raw bytes, a changed offer, or a changed answer. A change is three bytes: two for the place, one to
//! combine with.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, changes)) = data.split_first() else { return };
    let [offer, answer] = chat_client::payloads().expect("the constants are valid");
    let mut payload = match kind % 3 {
        0 => changes.to_vec(),
        1 => offer,
        _ => answer,
    };
    if kind % 3 > 0 {
        for change in changes.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % payload.len();
            payload[at] ^= change[2];
        }
    }
    let _ = chat_client::open_any(&payload);
});
