//! Receives reports of abusive messages.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::report::VerifiedReport;

/// Receives reports of abusive messages, for the people who moderate a service.
#[async_trait]
pub trait ReportSink: fmt::Debug + Send + Sync + 'static {
    /// Takes a report, durably where the sink is durable. The reporting user is answered after that.
    ///
    /// # Errors
    /// `Unsupported` if this server takes no reports, `Unavailable` if the report was not taken.
    async fn submit(&self, report: VerifiedReport) -> Result<()>;
}
