//! The subcommands for presence: online, last seen, and the users that learn it.

use std::time::{Duration, SystemTime};

use chat_client::{Event, Presence, PresenceAudience, UserId};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error, StrDeserializer};

use crate::commands::{REQUEST_TIMEOUT, ready, retry};
use crate::output::{Failure, line};
use crate::{Arguments, text};

/// Returns the audience with a name, as `chat --json` writes it.
pub(crate) fn parse_audience(name: &str) -> Result<PresenceAudience, String> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    let unknown =
        |_| format!("the audience is one of {}", PresenceAudience::ALL.map(audience_name).join(", "));
    PresenceAudience::deserialize(name).map_err(unknown)
}

const fn audience_name(audience: PresenceAudience) -> &'static str {
    match audience {
        PresenceAudience::Nobody => "nobody",
        PresenceAudience::All => "all",
        _ => "contacts",
    }
}

/// Returns a presence in words.
pub(crate) fn presence_text(presence: Presence) -> String {
    match presence {
        Presence::Online => "online".to_owned(),
        Presence::Offline { last_seen: Some(at) } => {
            let since = SystemTime::now().duration_since(at).unwrap_or_default();
            format!("last seen {}", ago(since))
        }
        _ => "offline".to_owned(),
    }
}

/// Returns a time in words, in one unit.
fn ago(since: Duration) -> String {
    let seconds = since.as_secs();
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(|| "just now".to_owned(), |(length, unit)| format!("{}{unit} ago", seconds / length))
}

/// Prints whether each of these users is online.
pub(crate) async fn show(arguments: &Arguments, names: &[String]) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    let mut events = client.events_after(None);
    let mut users: Vec<UserId> = Vec::new();
    for name in names {
        users.push(retry(|| client.resolve(name)).await?);
    }
    client.watch_presence(users.clone()).await.map_err(text)?;
    let mut known = vec![None; users.len()];
    let all = async {
        while known.contains(&None) {
            let Some(record) = events.next().await? else { break };
            let Event::Presence { user, presence } = record.event else { continue };
            for (_, known) in users.iter().zip(&mut known).filter(|(watched, _)| **watched == user.id) {
                *known = Some(presence);
            }
        }
        chat_client::Result::Ok(())
    };
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, all).await;
    answered.map_err(|_| "the server did not answer".to_owned())?.map_err(text)?;
    for (name, presence) in names.iter().zip(known) {
        line(format!("{name} {}", presence.map_or_else(|| "unknown".to_owned(), presence_text)))?;
    }
    client.close().await;
    Ok(())
}

/// Sets the audience, if one is given, and prints it.
pub(crate) async fn audience(
    arguments: &Arguments,
    audience: Option<PresenceAudience>,
) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    if let Some(audience) = audience {
        retry(|| client.set_presence_audience(audience)).await?;
    }
    line(audience_name(client.presence_audience().await.map_err(text)?))?;
    client.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_read_as_they_are_written() {
        for audience in PresenceAudience::ALL {
            assert_eq!(parse_audience(audience_name(audience)), Ok(audience));
        }
        assert!(parse_audience("everybody").is_err());
    }

    #[test]
    fn last_seen_has_one_unit() {
        let texts = [0, 59, 60, 3599, 3600, 86_399, 86_400, 30 * 86_400];
        let texts = texts.map(|seconds| ago(Duration::from_secs(seconds)));
        assert_eq!(
            texts,
            ["just now", "just now", "1m ago", "59m ago", "1h ago", "23h ago", "1d ago", "30d ago"]
        );
    }
}
