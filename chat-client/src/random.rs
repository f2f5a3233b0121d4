use chat_core::{Error, ErrorKind, Result};

/// Returns random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Unavailable, "failed to read system randomness"))?;
    Ok(bytes)
}
