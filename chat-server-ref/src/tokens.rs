//! Tokens: JWTs, signed with this server's secret (HS256) or with a key whose public part is in a JWKS file
//! (EdDSA). A token names a user. The device proves its identity with its own signature.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use chat_core::backend::{Authenticated, Authenticator};
use chat_core::{Error, ErrorKind, Handle};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::settings::Settings;

/// Seconds for which a token is accepted after its expiry, because clocks differ.
const LEEWAY: u64 = 30;

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    iat: u64,
}

/// Authenticates users by tokens.
pub(crate) struct Tokens {
    /// `None` in a cluster whose nodes share no secret.
    secret: Option<DecodingKey>,
    keys: Option<JwkSet>,
    open: bool,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Creates the authenticator that the settings describe.
    ///
    /// # Errors
    /// If the secret is unreadable or weak, or the JWKS file is unreadable.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let secret = if has_secret(settings) { Some(secret(settings)?) } else { None };
        let keys = jwks(settings)?;
        let secret = secret.map(|secret| DecodingKey::from_secret(&secret));
        Ok(Self { secret, keys, open: settings.is_open() })
    }

    /// Describes the available keys for operators, without creating any.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn describe(settings: &Settings) -> Result<String, String> {
        jwks(settings)?;
        let path = secret_path(settings);
        if has_secret(settings) && settings.secret_file.is_none() && !path.exists() {
            return Ok(format!("no secret yet: the first start creates {}", path.display()));
        }
        let tokens = Self::new(settings)?;
        let named = |there: bool, what| there.then_some(what);
        let kinds = [
            named(tokens.secret.is_some(), "signed with the secret"),
            named(tokens.keys.is_some(), "signed with a key of the JWKS file"),
            named(tokens.open, "none needed on this machine"),
        ];
        Ok(kinds.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let header = decode_header(token).ok()?;
        let validation = |algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.leeway = LEEWAY;
            validation.set_required_spec_claims(&["exp", "sub"]);
            validation.validate_aud = false;
            validation
        };
        // The key determines the algorithm, never the token.
        if let Some(key) = header.kid.as_deref().and_then(|kid| self.keys.as_ref()?.find(kid)) {
            if !matches!(key.algorithm, AlgorithmParameters::OctetKeyPair(_)) {
                return None;
            }
            let key = DecodingKey::from_jwk(key).ok()?;
            return decode(token, &key, &validation(Algorithm::EdDSA)).ok().map(|data| data.claims);
        }
        let secret = self.secret.as_ref()?;
        decode(token, secret, &validation(Algorithm::HS256)).ok().map(|data| data.claims)
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> chat_core::Result<Authenticated> {
        if token.is_empty() && self.open {
            return Ok(Authenticated::open());
        }
        let denied = || Error::new(ErrorKind::Denied, "the token is not valid");
        let claims = self.claims(token).ok_or_else(denied)?;
        let user = Authenticated::user(Handle::new(&claims.sub).map_err(|_| denied())?);
        // A time that `SystemTime` cannot hold is never reached.
        match UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp.saturating_add(LEEWAY))) {
            Some(time) if time <= SystemTime::now() => Err(denied()),
            Some(time) => Ok(user.expires_at(time)),
            None => Ok(user),
        }
    }
}

fn jwks(settings: &Settings) -> Result<Option<JwkSet>, String> {
    let Some(path) = &settings.jwks_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map(Some).map_err(|e| format!("{}: {e}", path.display()))
}

/// Returns whether there is a secret. The nodes of a cluster must share one by `secret_file`: otherwise each
/// would create its own, and a gateway keeps nothing on its disk.
fn has_secret(settings: &Settings) -> bool {
    settings.secret_file.is_some() || !settings.is_cluster()
}

fn secret_path(settings: &Settings) -> PathBuf {
    settings.secret_file.clone().unwrap_or_else(|| settings.data.join("secret"))
}

/// Reads the secret. Creates the one in the data directory if it does not exist.
fn secret(settings: &Settings) -> Result<Zeroizing<Vec<u8>>, String> {
    let path = secret_path(settings);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && settings.secret_file.is_none() => {
            make(&path)?
        }
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    match hex::decode(text.trim()) {
        Ok(bytes) if bytes.len() >= 32 && bytes.iter().any(|byte| *byte != bytes[0]) => {
            Ok(Zeroizing::new(bytes))
        }
        _ => Err(format!("{}: a secret must have at least 32 random bytes in hexadecimal", path.display())),
    }
}

fn make(path: &Path) -> Result<Zeroizing<String>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).map_err(|e| e.to_string())?;
    let text = Zeroizing::new(hex::encode(&bytes[..]));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(text)
}

/// Issues a token for a user, valid for `ttl` seconds and signed with the server's secret.
///
/// # Errors
/// If the handle is invalid, or there is no usable secret.
pub(crate) fn issue(settings: &Settings, user: &str, ttl: u64) -> Result<String, String> {
    if !has_secret(settings) {
        return Err("secret_file is not set: the nodes of a cluster must share it".into());
    }
    let handle = Handle::new(user).map_err(|e| e.to_string())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?.as_secs();
    let claims = Claims { sub: handle.as_str().to_owned(), exp: now.saturating_add(ttl), iat: now };
    let key = EncodingKey::from_secret(&secret(settings)?);
    encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(open: bool) -> (Settings, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Settings { data: dir.path().into(), open_registration: Some(open), ..Settings::default() }, dir)
    }

    #[tokio::test]
    async fn only_a_valid_token_authenticates_its_user() {
        let (settings, _dir) = settings(false);
        let tokens = Tokens::new(&settings).unwrap();
        let token = issue(&settings, "alice", 60).unwrap();
        let now = SystemTime::now();
        let named = tokens.authenticate(&token).await.unwrap();
        assert_eq!(named.handle, Some(Handle::new("alice").unwrap()));
        let valid = named.expires_at.unwrap().duration_since(now).unwrap();
        assert!((85..=90).contains(&valid.as_secs()), "60 s, and the leeway: {valid:?}");
        assert!(tokens.authenticate("").await.is_err(), "no token");
        assert!(tokens.authenticate(&token[..token.len() - 2]).await.is_err(), "the signature is wrong");
        let none = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
        assert!(tokens.authenticate(&none).await.is_err(), "no signature");
        let key = EncodingKey::from_secret(&secret(&settings).unwrap());
        let until = |exp| {
            let claims = Claims { sub: "alice".into(), exp, iat: 1 };
            encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        };
        assert!(tokens.authenticate(&until(1000)).await.is_err(), "expired");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(
            tokens.authenticate(&until(now - LEEWAY - 1)).await.is_err(),
            "expired, and the leeway passed"
        );
        assert!(tokens.authenticate(&until(now - LEEWAY + 10)).await.is_ok(), "clocks differ");
        assert_eq!(tokens.authenticate(&until(u64::MAX)).await.unwrap().expires_at, None, "never");
    }

    #[tokio::test]
    async fn tokens_pass_the_suite() {
        use chat_core::conformance::AuthenticatorFixture;
        use chat_core::conformance::cases::authenticator;
        for open in [false, true] {
            let (settings, _dir) = settings(open);
            let good = ["alice", "bob"]
                .map(|name| (issue(&settings, name, 60).unwrap(), Handle::new(name).unwrap()));
            for case in authenticator() {
                let authenticator = std::sync::Arc::new(Tokens::new(&settings).unwrap());
                let door = AuthenticatorFixture { authenticator, good: good.to_vec(), open };
                assert_eq!((case.run)(std::sync::Arc::new(door)).await, Ok(()), "{}", case.name);
            }
        }
    }

    #[tokio::test]
    async fn jwks_key_is_valid_only_with_its_own_algorithm() {
        use base64::Engine as _;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let (mut settings, dir) = settings(false);
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = pair.public_key_raw().to_vec();
        let jwks = serde_json::json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "one", "alg": "EdDSA", "use": "sig", "x": base64(&public) },
            { "kty": "oct", "kid": "weak", "k": base64(b"a shared secret that a file should not hold") },
        ]});
        let file = dir.path().join("jwks.json");
        std::fs::write(&file, jwks.to_string()).unwrap();
        settings.jwks_file = Some(file.clone());
        let tokens = Tokens::new(&settings).unwrap();
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
        let claims = || Claims { sub: "alice".into(), exp, iat: 1 };
        let with = |algorithm, kid: &str| Header { kid: Some(kid.into()), ..Header::new(algorithm) };
        let signed = |header: Header, key: &EncodingKey| encode(&header, &claims(), key).unwrap();
        let key = EncodingKey::from_ed_der(&pair.serialize_der());

        let good = signed(with(Algorithm::EdDSA, "one"), &key);
        assert_eq!(tokens.authenticate(&good).await.unwrap().handle, Some(Handle::new("alice").unwrap()));
        let unknown = signed(with(Algorithm::EdDSA, "two"), &key);
        assert!(tokens.authenticate(&unknown).await.is_err(), "a key that is not in the file");
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let forged = signed(with(Algorithm::EdDSA, "one"), &EncodingKey::from_ed_der(&other.serialize_der()));
        assert!(tokens.authenticate(&forged).await.is_err(), "another key with the same id");
        // Algorithm confusion: the public key as the secret of HS256.
        let confused = signed(with(Algorithm::HS256, "one"), &EncodingKey::from_secret(&public));
        assert!(tokens.authenticate(&confused).await.is_err(), "another algorithm");
        let weak = EncodingKey::from_secret(b"a shared secret that a file should not hold");
        assert!(tokens.authenticate(&signed(with(Algorithm::HS256, "weak"), &weak)).await.is_err());
        std::fs::write(&file, "{}").unwrap();
        assert!(Tokens::new(&settings).unwrap_err().contains("jwks.json"), "the error names the file");
    }

    #[test]
    fn secret_file_is_readable_only_by_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let (settings, dir) = settings(true);
        issue(&settings, "alice", 60).unwrap();
        let mode = std::fs::metadata(dir.path().join("secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join("secret"), "00".repeat(32)).unwrap();
        assert!(issue(&settings, "alice", 60).is_err(), "a secret of equal bytes is rejected");
    }
}
