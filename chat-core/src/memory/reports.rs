use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::ReportSink;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::report::VerifiedReport;

/// Maximum number of reports that are kept.
const MAX_REPORTS: usize = 1000;

/// A [`ReportSink`] in memory, for tests. It takes 1000 reports.
#[derive(Debug, Default)]
pub struct MemoryReports(Mutex<Vec<VerifiedReport>>);

impl MemoryReports {
    /// Removes and returns the reports.
    pub fn take(&self) -> Vec<VerifiedReport> {
        std::mem::take(&mut self.0.lock())
    }
}

#[async_trait]
impl ReportSink for MemoryReports {
    async fn submit(&self, report: VerifiedReport) -> Result<()> {
        let mut reports = self.0.lock();
        if reports.len() >= MAX_REPORTS {
            return Err(Error::new(ErrorKind::Unavailable, "too many reports are in memory"));
        }
        reports.push(report);
        Ok(())
    }
}

/// A [`ReportSink`] that takes no reports.
#[derive(Debug, Default, Clone, Copy)]
#[allow(clippy::exhaustive_structs)]
pub struct NoReports;

#[async_trait]
impl ReportSink for NoReports {
    async fn submit(&self, _: VerifiedReport) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "this server takes no reports"))
    }
}
