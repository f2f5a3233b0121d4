use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chat_core::backend::ReportSink;
use chat_core::report::VerifiedReport;
use chat_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde_json::json;

/// Maximum size of the file. Above it, reports are refused until the operator moves the file away.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// A [`ReportSink`] that appends reports to a file of JSON lines, which only its owner can read.
///
/// A line holds the bodies as stored, and the keys that decrypt them: `chat open-reports` prints their texts. Fields:
/// `reported_at` (milliseconds since 1970), `reported_by`, `user` and `conversation` (ids in hexadecimal), `note`, and
/// `messages`, each with `seq`, `id`, `device`, `sent_at`, `body` and `body_key` (hexadecimal).
#[derive(Debug, Clone)]
pub struct ReportLog {
    path: PathBuf,
    /// One report is written at a time.
    writing: Arc<Mutex<()>>,
}

impl ReportLog {
    /// Returns a log in this file. The first report creates the file.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), writing: Arc::default() }
    }

    fn append(&self, line: &[u8]) -> std::io::Result<()> {
        let _guard = self.writing.lock();
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&self.path)?;
        let before = file.metadata()?.len();
        if before + line.len() as u64 > MAX_BYTES {
            return Err(std::io::Error::other("the report log is full: move the file away"));
        }
        let written = file.write_all(line).and_then(|()| file.sync_data());
        if written.is_err() {
            // A part of a line would spoil the next one.
            let _ = file.set_len(before);
        } else if before == 0
            && let Some(directory) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty())
        {
            File::open(directory)?.sync_all()?;
        }
        written
    }
}

fn line(report: &VerifiedReport) -> String {
    let messages = report.messages.iter().map(|(seq, message, key)| {
        json!({
            "seq": seq,
            "id": message.id.to_hex(),
            "device": message.sender.device.get(),
            "sent_at": message.sent_at,
            "body": hex::encode(&message.body),
            "body_key": hex::encode(key),
        })
    });
    let report = json!({
        "reported_at": report.reported_at,
        "reported_by": report.reported_by.to_hex(),
        "user": report.user.to_hex(),
        "conversation": report.conversation.to_hex(),
        "note": report.note,
        "messages": messages.collect::<Vec<_>>(),
    });
    format!("{report}\n")
}

#[async_trait]
impl ReportSink for ReportLog {
    async fn submit(&self, report: VerifiedReport) -> Result<()> {
        let log = self.clone();
        let append = tokio::task::spawn_blocking(move || log.append(line(&report).as_bytes()));
        let failed = |error: std::io::Error| {
            tracing::error!(%error, "failed to write a report: the reporting user is asked to try again");
            Error::new(ErrorKind::Unavailable, "the report was not written").caused_by(error)
        };
        append.await.map_err(std::io::Error::other).and_then(|outcome| outcome).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat_core::{ConversationId, UserId};

    #[tokio::test]
    async fn reports_are_lines_of_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reports.jsonl");
        let log = ReportLog::new(&path);
        let user = |n| UserId::from_bytes([n; 16]);
        let report = VerifiedReport {
            conversation: ConversationId::direct(user(1), user(2)),
            reported_by: user(1),
            user: user(2),
            reported_at: 5,
            messages: Vec::new(),
            note: "two\nlines".into(),
        };
        log.submit(report.clone()).await.unwrap();
        log.submit(report).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), lines[0]["note"].as_str()), (2, Some("two\nlines")));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let missing = ReportLog::new(dir.path().join("none").join("file"));
        let refused = missing.submit(VerifiedReport {
            conversation: ConversationId::direct(user(1), user(2)),
            reported_by: user(1),
            user: user(2),
            reported_at: 5,
            messages: Vec::new(),
            note: String::new(),
        });
        assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
