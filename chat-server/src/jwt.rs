//! Login by JSON Web Tokens: an authenticator, and the secret that signs tokens.
//!
//! ```
//! use std::time::Duration;
//!
//! use chat_core::Handle;
//! use chat_server::Server;
//! use chat_server::jwt::{JwtAuthenticator, JwtSecret};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("secret");
//! let secret = JwtSecret::read_or_create(&path)?;
//! let token = secret.issue(&Handle::new("alice")?, Duration::from_secs(3600))?;
//! let server = Server::builder()
//!     .in_memory()
//!     .authenticator(JwtAuthenticator::new().secret(&secret))
//!     .listen("127.0.0.1:0")
//!     .start()
//!     .await?;
//! println!("alice connects to {} with {token}", server.url().unwrap());
//! # Ok(()) }
//! ```

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use chat_core::backend::{Authenticated, Authenticator};
use chat_core::{Error, ErrorKind, Handle};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::ServerError;

/// Time for which a token is accepted after its `exp` if the caller sets none, because clocks differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// Minimum time between two looks at the JWKS file.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Minimum number of bytes of a secret.
const MIN_SECRET: usize = 32;

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    iat: u64,
}

/// Accepts JSON Web Tokens that a secret signed (HS256), or a key whose public part is in a JWKS (EdDSA).
///
/// - The claim `sub` is the user's handle. The claims `exp` and `iat` are required. The claims `aud` and `iss` are
///   required and checked once [`audience`](Self::audience) and [`issuer`](Self::issuer) are set, else ignored.
/// - A token is accepted until 30 s after `exp`, or another [`leeway`](Self::leeway), because clocks differ. A session
///   ends at that time too.
/// - A token with the `kid` of a key of the JWKS is verified with that key only, every other token with the secret
///   only. The key determines the algorithm, never the token.
///
/// Without secret and JWKS it denies every token. It also denies the empty one: a server with
/// [`open_registration`](crate::ServerBuilder::open_registration) accepts that by itself.
#[derive(Clone)]
pub struct JwtAuthenticator {
    secret: Option<DecodingKey>,
    keys: Option<Arc<KeySet>>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
}

/// A JSON Web Key Set, and the file that it comes from.
struct KeySet {
    file: Option<PathBuf>,
    loaded: Mutex<LoadedKeys>,
}

struct LoadedKeys {
    keys: Arc<JwkSet>,
    /// Modification time of the file when it was read.
    modified: Option<SystemTime>,
    looked: Instant,
}

impl KeySet {
    fn parse(json: &str, file: Option<(PathBuf, Option<SystemTime>)>) -> Result<Self, ServerError> {
        let keys = serde_json::from_str(json).map_err(|e| ServerError::new(e.to_string()))?;
        let (file, modified) = file.map_or((None, None), |(file, modified)| (Some(file), modified));
        let loaded = LoadedKeys { keys: Arc::new(keys), modified, looked: Instant::now() };
        Ok(Self { file, loaded: Mutex::new(loaded) })
    }

    /// Returns the keys, read again if their file changed. A file that cannot be read changes nothing.
    fn current(&self) -> Arc<JwkSet> {
        let mut loaded = self.loaded.lock();
        if let Some(file) = &self.file
            && loaded.looked.elapsed() >= LOOK_EVERY
        {
            loaded.looked = Instant::now();
            let changed = modified(file);
            if changed != loaded.modified {
                let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
                match text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string())) {
                    Ok(keys) => (loaded.keys, loaded.modified) = (Arc::new(keys), changed),
                    Err(error) => {
                        tracing::warn!(%error, "failed to read the JWKS file; using the keys read before");
                    }
                }
            }
        }
        loaded.keys.clone()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

impl Default for JwtAuthenticator {
    fn default() -> Self {
        Self { secret: None, keys: None, audience: None, issuer: None, leeway: LEEWAY }
    }
}

impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthenticator").finish_non_exhaustive()
    }
}

impl JwtAuthenticator {
    /// Creates an authenticator without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts tokens that this secret signed.
    #[must_use]
    pub fn secret(mut self, secret: &JwtSecret) -> Self {
        self.secret = Some(DecodingKey::from_secret(&secret.0));
        self
    }

    /// Accepts tokens that a key of this JSON Web Key Set signed. Keys of other types than `OKP` are ignored.
    ///
    /// # Errors
    /// The text is not a key set.
    pub fn jwks(mut self, json: &str) -> Result<Self, ServerError> {
        self.keys = Some(Arc::new(KeySet::parse(json, None)?));
        Ok(self)
    }

    /// Accepts tokens that a key of this file signed, as [`jwks`](Self::jwks). The file is read again when it changes.
    ///
    /// # Errors
    /// The file cannot be read or is not a key set. The text names the file.
    pub fn jwks_file(mut self, path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        // Before the content: a change in between is then read again.
        let modified = modified(path);
        let text = std::fs::read_to_string(path).map_err(|error| failed(path, error))?;
        let keys =
            KeySet::parse(&text, Some((path.to_owned(), modified))).map_err(|error| failed(path, error))?;
        self.keys = Some(Arc::new(keys));
        Ok(self)
    }

    /// Accepts only tokens that name this audience in `aud`.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Accepts only tokens of this issuer, which they name in `iss`.
    #[must_use]
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// Sets the time for which a token is accepted after its `exp`: 30 s by default.
    #[must_use]
    pub const fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let header = decode_header(token).ok()?;
        let validation = |algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.leeway = self.leeway.as_secs();
            let mut required = vec!["exp", "sub"];
            validation.validate_aud = self.audience.is_some();
            if let Some(audience) = &self.audience {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            if let Some(issuer) = &self.issuer {
                validation.set_issuer(&[issuer]);
                required.push("iss");
            }
            validation.set_required_spec_claims(&required);
            validation
        };
        let keys = self.keys.as_ref().map(|keys| keys.current());
        if let Some(key) = header.kid.as_deref().and_then(|kid| keys.as_ref()?.find(kid)) {
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
impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, token: &str) -> chat_core::Result<Authenticated> {
        let denied = || Error::new(ErrorKind::Denied, "the token is not valid");
        let claims = self.claims(token).ok_or_else(denied)?;
        let user = Authenticated::user(Handle::new(&claims.sub).map_err(|_| denied())?);
        let user = match UNIX_EPOCH.checked_add(Duration::from_secs(claims.iat)) {
            Some(issued_at) => user.issued_at(issued_at),
            None => user,
        };
        // A time that `SystemTime` cannot hold is never reached.
        match UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp.saturating_add(self.leeway.as_secs()))) {
            Some(time) if time <= SystemTime::now() => Err(denied()),
            Some(time) => Ok(user.expires_at(time)),
            None => Ok(user),
        }
    }
}

/// Secret that signs and verifies HS256 tokens. Its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct JwtSecret(Zeroizing<Vec<u8>>);

impl fmt::Debug for JwtSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSecret").finish_non_exhaustive()
    }
}

impl JwtSecret {
    /// Takes a secret of at least 32 random bytes.
    ///
    /// # Errors
    /// The secret is shorter, or all its bytes are equal.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ServerError> {
        let is_weak = bytes.len() < MIN_SECRET || bytes.iter().all(|byte| *byte == bytes[0]);
        if is_weak {
            return Err(ServerError::new("a secret must have at least 32 random bytes"));
        }
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }

    /// Reads a secret from a file that holds it in hexadecimal.
    ///
    /// # Errors
    /// The file cannot be read, or its secret is weak (see [`from_bytes`](Self::from_bytes)). The text names the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| failed(path, error))?);
        let decoded =
            hex::decode(text.trim()).map_err(|_| failed(path, "a secret must be in hexadecimal"))?;
        let bytes = Zeroizing::new(decoded);
        Self::from_bytes(&bytes).map_err(|error| failed(path, error))
    }

    /// Reads a secret, after it created the file with random bytes if there is none. Only the owner can read a file
    /// that it created.
    ///
    /// # Errors
    /// As [`read`](Self::read), or the file cannot be created.
    pub fn read_or_create(path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        if !path.exists() {
            create(path)?;
        }
        Self::read(path)
    }

    /// Issues a token for a user that expires after `ttl`, rounded down to seconds.
    ///
    /// # Errors
    /// The system's clock is before 1970.
    pub fn issue(&self, user: &Handle, ttl: Duration) -> Result<String, ServerError> {
        let unusable = |error: String| ServerError::new(format!("failed to issue a token: {error}"));
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| unusable(e.to_string()))?.as_secs();
        let exp = now.saturating_add(ttl.as_secs());
        let claims = Claims { sub: user.as_str().to_owned(), exp, iat: now };
        let key = EncodingKey::from_secret(&self.0);
        encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(|e| unusable(e.to_string()))
    }
}

/// Creates a file with a random secret. Fails if another process creates it at the same time.
fn create(path: &Path) -> Result<(), ServerError> {
    let mut bytes = Zeroizing::new([0; MIN_SECRET]);
    getrandom::fill(&mut bytes[..]).map_err(|error| ServerError::new(error.to_string()))?;
    let text = Zeroizing::new(hex::encode(&bytes[..]));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| failed(path, error))?;
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: impl fmt::Display) -> ServerError {
    ServerError::new(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use chat_core::conformance::AuthenticatorFixture;
    use chat_core::conformance::cases::authenticator;

    use super::*;
    use crate::optional_token::OptionalToken;

    const MINUTE: Duration = Duration::from_secs(60);

    fn secret() -> JwtSecret {
        JwtSecret::from_bytes(b"a secret of the tests, 32 bytes at least").unwrap()
    }

    fn handle(name: &str) -> Handle {
        Handle::new(name).unwrap()
    }

    #[tokio::test]
    async fn only_a_valid_token_authenticates_its_user() {
        let tokens = JwtAuthenticator::new().secret(&secret());
        let now = SystemTime::now();
        let token = secret().issue(&handle("alice"), MINUTE).unwrap();
        let named = tokens.authenticate(&token).await.unwrap();
        assert_eq!(named.handle, Some(handle("alice")));
        let valid = named.expires_at.unwrap().duration_since(now).unwrap();
        assert!((85..=90).contains(&valid.as_secs()), "60 s, and the leeway: {valid:?}");
        assert!(tokens.authenticate("").await.is_err(), "no token");
        assert!(tokens.authenticate(&token[..token.len() - 2]).await.is_err(), "the signature is wrong");
        let none = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
        assert!(tokens.authenticate(&none).await.is_err(), "no signature");
        assert!(JwtAuthenticator::new().authenticate(&token).await.is_err(), "no secret");
        let key = EncodingKey::from_secret(&secret().0);
        let until = |exp| {
            let claims = Claims { sub: "alice".into(), exp, iat: 1 };
            encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        };
        assert!(tokens.authenticate(&until(1000)).await.is_err(), "expired");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(
            tokens.authenticate(&until(now - LEEWAY.as_secs() - 1)).await.is_err(),
            "expired, and the leeway passed"
        );
        assert!(tokens.authenticate(&until(now - LEEWAY.as_secs() + 10)).await.is_ok(), "clocks differ");
        assert_eq!(tokens.authenticate(&until(u64::MAX)).await.unwrap().expires_at, None, "never");
    }

    #[tokio::test]
    async fn audience_issuer_and_leeway_are_checked_once_they_are_set() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let token = |aud: Option<&str>, iss: Option<&str>, exp: u64| {
            let mut claims = serde_json::json!({ "sub": "alice", "exp": exp, "iat": 1 });
            for (name, value) in [("aud", aud), ("iss", iss)] {
                if let Some(value) = value {
                    claims[name] = value.into();
                }
            }
            let key = EncodingKey::from_secret(&secret().0);
            encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        };
        let any = JwtAuthenticator::new().secret(&secret());
        assert!(any.authenticate(&token(Some("other"), Some("other"), now + 60)).await.is_ok());
        let strict = any.audience("chat").issuer("login").leeway(Duration::from_secs(5));
        for (aud, iss, exp, accepted) in [
            (Some("chat"), Some("login"), now + 60, true),
            (Some("other"), Some("login"), now + 60, false),
            (Some("chat"), Some("other"), now + 60, false),
            (None, Some("login"), now + 60, false),
            (Some("chat"), None, now + 60, false),
            (Some("chat"), Some("login"), now - 10, false),
        ] {
            let outcome = strict.authenticate(&token(aud, iss, exp)).await;
            assert_eq!(outcome.is_ok(), accepted, "aud {aud:?}, iss {iss:?}, exp {exp}");
        }
    }

    #[tokio::test]
    async fn jwks_file_is_read_again_when_it_changes() {
        use base64::Engine as _;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("jwks.json");
        let pairs = [(); 2].map(|()| rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
        let write = |pair: &rcgen::KeyPair| {
            let x = base64(pair.public_key_raw());
            let key =
                serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": "one", "alg": "EdDSA", "x": x });
            std::fs::write(&file, serde_json::json!({ "keys": [key] }).to_string()).unwrap();
        };
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
        let token = |pair: &rcgen::KeyPair| {
            let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::EdDSA) };
            let claims = Claims { sub: "alice".into(), exp, iat: 1 };
            encode(&header, &claims, &EncodingKey::from_ed_der(&pair.serialize_der())).unwrap()
        };
        write(&pairs[0]);
        let tokens = JwtAuthenticator::new().jwks_file(&file).unwrap();
        assert!(tokens.authenticate(&token(&pairs[0])).await.is_ok());
        assert!(tokens.authenticate(&token(&pairs[1])).await.is_err());
        tokio::time::sleep(LOOK_EVERY).await;
        write(&pairs[1]);
        assert!(tokens.authenticate(&token(&pairs[1])).await.is_ok(), "the new key");
        assert!(tokens.authenticate(&token(&pairs[0])).await.is_err(), "the old key is gone");
        tokio::time::sleep(LOOK_EVERY).await;
        std::fs::write(&file, "no keys").unwrap();
        assert!(
            tokens.authenticate(&token(&pairs[1])).await.is_ok(),
            "a file that cannot be read changes nothing"
        );
    }

    #[tokio::test]
    async fn tokens_pass_the_suite() {
        let tokens = JwtAuthenticator::new().secret(&secret());
        let good =
            ["alice", "bob"].map(|name| (secret().issue(&handle(name), MINUTE).unwrap(), handle(name)));
        let closed: Arc<dyn Authenticator> = Arc::new(tokens.clone());
        let open: Arc<dyn Authenticator> = Arc::new(OptionalToken(closed.clone()));
        for (authenticator, open) in [(closed, false), (open, true)] {
            for case in self::authenticator() {
                let authenticator = authenticator.clone();
                let fixture = AuthenticatorFixture { authenticator, good: good.to_vec(), open };
                assert_eq!((case.run)(Arc::new(fixture)).await, Ok(()), "{}", case.name);
            }
        }
    }

    #[tokio::test]
    async fn jwks_key_is_valid_only_with_its_own_algorithm() {
        use base64::Engine as _;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let dir = tempfile::tempdir().unwrap();
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = pair.public_key_raw().to_vec();
        let jwks = serde_json::json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "one", "alg": "EdDSA", "use": "sig", "x": base64(&public) },
            { "kty": "oct", "kid": "weak", "k": base64(b"a shared secret that a file should not hold") },
        ]});
        let file = dir.path().join("jwks.json");
        std::fs::write(&file, jwks.to_string()).unwrap();
        let tokens = JwtAuthenticator::new().secret(&secret()).jwks_file(&file).unwrap();
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
        let claims = || Claims { sub: "alice".into(), exp, iat: 1 };
        let with = |algorithm, kid: &str| Header { kid: Some(kid.into()), ..Header::new(algorithm) };
        let signed = |header: Header, key: &EncodingKey| encode(&header, &claims(), key).unwrap();
        let key = EncodingKey::from_ed_der(&pair.serialize_der());

        let good = signed(with(Algorithm::EdDSA, "one"), &key);
        assert_eq!(tokens.authenticate(&good).await.unwrap().handle, Some(handle("alice")));
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
        let error = JwtAuthenticator::new().jwks_file(&file).unwrap_err().to_string();
        assert!(error.contains("jwks.json"), "the error names the file");
    }

    #[test]
    fn secret_file_is_readable_only_by_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data").join("secret");
        assert!(JwtSecret::read(&path).is_err() && !path.exists(), "only `read_or_create` creates it");
        let created = JwtSecret::read_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(JwtSecret::read_or_create(&path).unwrap().0, created.0, "read the second time");
        std::fs::write(&path, "00".repeat(32)).unwrap();
        assert!(JwtSecret::read_or_create(&path).is_err(), "a secret of equal bytes is rejected");
        std::fs::write(&path, "not hexadecimal").unwrap();
        let error = JwtSecret::read(&path).unwrap_err().to_string();
        assert!(error.contains("hexadecimal") && error.contains("secret"), "{error}");
    }

    #[test]
    fn secrets_and_keys_are_not_printed() {
        let shown = format!("{:?} {:?}", secret(), JwtAuthenticator::new().secret(&secret()));
        assert_eq!(shown, "JwtSecret { .. } JwtAuthenticator { .. }");
    }
}
