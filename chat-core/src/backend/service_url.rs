//! The address of a shared service, with its login and TLS files.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::model::error::{Error, ErrorKind, Result};

/// The address of a service that several nodes share: `scheme://host:port,host:port/name?parameter=value`.
///
/// The parameters `user`, `password_file`, `tls`, `ca`, `cert` and `key` are read into [`ServiceAccess`]. An address holds
/// no secret, so it may be logged.
///
/// ```
/// use chat_core::backend::ServiceUrl;
/// let url = "redis://10.0.0.1:6379/0?user=chat&password_file=/etc/chat/redis&tls=true";
/// let url = ServiceUrl::parse(url, "redis").unwrap();
/// assert_eq!((url.nodes.as_slice(), url.name.as_str()), (&["10.0.0.1:6379".to_owned()][..], "0"));
/// assert!(url.access.tls.is_some());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ServiceUrl {
    /// At least one, each `host:port`.
    pub nodes: Vec<String>,
    /// The part after the nodes, for example a keyspace; may be empty.
    pub name: String,
    /// Login and TLS.
    pub access: ServiceAccess,
    /// The other parameters, in order.
    pub parameters: Vec<(String, String)>,
}

/// How a backend logs in to a shared service, and how it encrypts its connections. Holds names of files, no secrets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct ServiceAccess {
    /// `None`: the service requires no login.
    pub login: Option<ServiceLogin>,
    /// `None`: connections are not encrypted.
    pub tls: Option<ServiceTls>,
}

/// A user of a shared service.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ServiceLogin {
    pub user: String,
    /// A file that holds the password and nothing else. A line end behind the password is ignored.
    pub password_file: PathBuf,
}

/// Certificates of the connections to a shared service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct ServiceTls {
    /// PEM file of the authorities that sign the certificates of the service. `None`: the authorities of the operating
    /// system.
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate and key of this node, for a service that requires them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A password; its `Debug` form does not show it.
pub struct Password(String);

impl Password {
    /// Returns the password.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

const fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

impl ServiceUrl {
    /// Parses an address with this scheme.
    ///
    /// # Errors
    /// `Invalid`: the scheme is another one, there is no node, a password is in the address, or the parameters of login
    /// and TLS do not fit together. The text names the fault.
    pub fn parse(url: &str, scheme: &str) -> Result<Self> {
        let rest = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
        let rest = rest.ok_or_else(|| invalid("the address has another scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (nodes, name) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') {
            return Err(invalid(
                "an address holds no login: write ?user=NAME&password_file=FILE behind the address",
            ));
        }
        let nodes: Vec<String> = nodes.split(',').map(str::to_owned).collect();
        if nodes.iter().any(String::is_empty) {
            return Err(invalid("the address names no host"));
        }
        let mut parameters = Vec::new();
        let mut access = AccessParameters::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| invalid("a parameter of the address has the form name=value"))?;
            if !access.set(key, value)? {
                parameters.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(Self { nodes, name: name.to_owned(), access: access.finish()?, parameters })
    }
}

/// The parameters of an address that belong to login and TLS.
#[derive(Default)]
struct AccessParameters {
    user: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<bool>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl AccessParameters {
    /// Takes a parameter, and returns whether it is one of these.
    fn set(&mut self, key: &str, value: &str) -> Result<bool> {
        if matches!(key, "user" | "password_file" | "ca" | "cert" | "key") && value.is_empty() {
            return Err(invalid("a parameter of login or TLS has no value"));
        }
        match key {
            "user" => self.user = Some(value.to_owned()),
            "password_file" => self.password_file = Some(value.into()),
            "ca" => self.ca = Some(value.into()),
            "cert" => self.cert = Some(value.into()),
            "key" => self.key = Some(value.into()),
            "tls" => {
                self.tls = match value {
                    "true" => Some(true),
                    "false" => Some(false),
                    _ => return Err(invalid("the parameter tls is true or false")),
                };
            }
            "password" => {
                return Err(invalid("an address holds no password: name a file, ?password_file=FILE"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<ServiceAccess> {
        let login = match (self.user, self.password_file) {
            (None, None) => None,
            (Some(user), Some(password_file)) => Some(ServiceLogin { user, password_file }),
            _ => return Err(invalid("the parameters user and password_file need each other")),
        };
        let identity = match (self.cert, self.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => return Err(invalid("the parameters cert and key need each other")),
        };
        if login.is_some() && self.tls.is_none() {
            return Err(invalid("a login needs tls=true; tls=false sends it without encryption"));
        }
        let is_encrypted = self.tls == Some(true);
        if !is_encrypted && (self.ca.is_some() || identity.is_some()) {
            return Err(invalid("the parameters ca, cert and key need tls=true"));
        }
        let tls = is_encrypted.then_some(ServiceTls { ca: self.ca, identity });
        Ok(ServiceAccess { login, tls })
    }
}

impl ServiceLogin {
    /// Reads the password.
    ///
    /// # Errors
    /// `Invalid`: the file cannot be read or is empty.
    pub fn password(&self) -> Result<Password> {
        let text = String::from_utf8(read(&self.password_file)?)
            .map_err(|error| invalid("the file with the password is not UTF-8").caused_by(error))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(invalid("the file with the password is empty"));
        }
        Ok(Password(password.to_owned()))
    }
}

impl ServiceTls {
    /// Reads the certificates of the authorities, in PEM.
    ///
    /// # Errors
    /// `Invalid`: the file cannot be read.
    pub fn read_ca(&self) -> Result<Option<Vec<u8>>> {
        self.ca.as_deref().map(read).transpose()
    }

    /// Reads the certificate and the key of this node, in PEM.
    ///
    /// # Errors
    /// `Invalid`: a file cannot be read.
    pub fn read_identity(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        self.identity.as_ref().map(|(cert, key)| Ok((read(cert)?, read(key)?))).transpose()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let error = std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        invalid("a file of the login or TLS of a service cannot be read").caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(url: &str) -> String {
        ServiceUrl::parse(url, "redis").unwrap_err().to_string()
    }

    #[test]
    fn login_and_tls_are_read_beside_other_parameters() {
        let url = "kafka://a:1,b:2/chat?user=u&partitions=3&password_file=/p&tls=true&ca=/ca&cert=/c&key=/k";
        let url = ServiceUrl::parse(url, "kafka").unwrap();
        assert_eq!((url.nodes, url.name.as_str()), (vec!["a:1".to_owned(), "b:2".to_owned()], "chat"));
        assert_eq!(url.parameters, [("partitions".to_owned(), "3".to_owned())]);
        let login = ServiceLogin { user: "u".to_owned(), password_file: "/p".into() };
        let tls = ServiceTls { ca: Some("/ca".into()), identity: Some(("/c".into(), "/k".into())) };
        assert_eq!(url.access, ServiceAccess { login: Some(login), tls: Some(tls) });
        let plain = ServiceUrl::parse("redis://a:1?tls=false", "redis").unwrap();
        assert_eq!((plain.access, plain.name.as_str()), (ServiceAccess::default(), ""));
    }

    #[test]
    fn faults_are_named() {
        for (url, text) in [
            ("kafka://a:1", "scheme"),
            ("redis:a:1", "scheme"),
            ("redis://", "no host"),
            ("redis://a:1,,b:2", "no host"),
            ("redis://u:p@a:1", "password_file"),
            ("redis://u:p/w@a:1", "password_file"),
            ("redis://a:1?password=p", "password_file"),
            ("redis://a:1?user=u", "need each other"),
            ("redis://a:1?password_file=/p", "need each other"),
            ("redis://a:1?user=u&password_file=/p", "tls=false"),
            ("redis://a:1?user=&password_file=/p", "no value"),
            ("redis://a:1?tls=yes", "true or false"),
            ("redis://a:1?ca=/ca", "tls=true"),
            ("redis://a:1?tls=true&cert=/c", "need each other"),
            ("redis://a:1?tls", "name=value"),
        ] {
            assert!(fault(url).contains(text), "{url}: {}", fault(url));
        }
    }

    #[test]
    fn password_is_read_without_its_line_end_and_never_shown() {
        let file = std::env::temp_dir().join(format!("chat-password-{}", std::process::id()));
        let login = ServiceLogin { user: "u".to_owned(), password_file: file.clone() };
        assert_eq!(login.password().unwrap_err().kind(), ErrorKind::Invalid, "there is no file");
        std::fs::write(&file, "pass word\r\n").unwrap();
        let password = login.password().unwrap();
        assert_eq!((password.as_str(), format!("{password:?}").as_str()), ("pass word", "Password"));
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(login.password().unwrap_err().kind(), ErrorKind::Invalid, "it is empty");
        std::fs::remove_file(file).unwrap();
    }
}
