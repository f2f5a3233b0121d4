//! Switches that break one rule each. Outside the `sim` feature none of them can be set, and the
//! compiler removes the questions.

/// A rule that a mutant breaks. The simulator must find a violation for every one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, clippy::exhaustive_enums)]
pub enum Mutant {
    AckBeforeSync,
    NoDedupe,
    AnyClientSeq,
    NoPrevLink,
    TrimOnPush,
    OldIncarnationAccepted,
    DedupeInMemory,
    CommitOnStoreError,
    StateBeforeRows,
    CursorBeforeMessage,
    NoGapCheck,
    NoRollbackDetection,
    AckMatchedByNumber,
    AckBeforeCommit,
    NewIdOnRetry,
    RepeatAboveNext,
    OwnRowFreesNumber,
    RollbackForgotten,
    GenerationNotRaised,
    StaleListAccepted,
    JoinIgnored,
    /// A record that was applied is decided again.
    ReplayDecidesAnew,
    /// What a later owner stored counts as found by one that is behind.
    FoundAheadOfState,
    /// A late write of an older state takes a newer one back.
    OlderStateWins,
    /// What is remembered of a shard's conversations outlives the ownership_epoch.
    StatesOutliveOwnership,
    /// A device's word that it never sent a message is believed, whatever its number.
    FirstIsEnough,
    /// What is encrypted anew is said to be sent for the first time.
    FirstInEveryIncarnation,
    /// A commit that was left half done stays so.
    HalfCommitStays,
    /// Records need not come again although what they make is not seen by every reader.
    VisibilityErrorIgnored,
    /// A heartbeat does not look for rows that nobody announced.
    HeartbeatIsBlind,
    /// A session goes on live although a push was dropped while it read.
    LiveThoughDropped,
    /// What was asked for again does not fill its placeholder.
    RecoveredDropped,
}

impl Mutant {
    /// Those the simulator must kill. The others need what one process does not have (a stale cache of
    /// another gateway) or are shadowed by another rule; unit tests beside the rules kill them.
    pub const SIMULATED: [Self; 26] = [
        Self::AckBeforeSync,
        Self::NoDedupe,
        Self::AnyClientSeq,
        Self::TrimOnPush,
        Self::DedupeInMemory,
        Self::CommitOnStoreError,
        Self::StateBeforeRows,
        Self::CursorBeforeMessage,
        Self::NoGapCheck,
        Self::NoRollbackDetection,
        Self::AckMatchedByNumber,
        Self::AckBeforeCommit,
        Self::NewIdOnRetry,
        Self::RepeatAboveNext,
        Self::GenerationNotRaised,
        Self::JoinIgnored,
        Self::RecoveredDropped,
        Self::ReplayDecidesAnew,
        Self::FoundAheadOfState,
        Self::OlderStateWins,
        Self::StatesOutliveOwnership,
        Self::HalfCommitStays,
        Self::VisibilityErrorIgnored,
        Self::HeartbeatIsBlind,
        Self::FirstIsEnough,
        Self::FirstInEveryIncarnation,
    ];
}

#[cfg(feature = "sim")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

impl Mutant {
    /// Whether this thread runs with the rule broken. Constant `false` without the `sim` feature.
    #[cfg(feature = "sim")]
    pub(crate) fn is_active(self) -> bool {
        ACTIVE.get() == Some(self)
    }

    /// Whether this thread runs with the rule broken: never.
    #[cfg(not(feature = "sim"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn is_active(self) -> bool {
        false
    }

    /// Runs a function on this thread with the rule broken.
    #[cfg(feature = "sim")]
    pub fn with<T>(mutant: Option<Self>, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Mutant>);
        impl Drop for Restore {
            fn drop(&mut self) {
                ACTIVE.set(self.0);
            }
        }
        let _restore = Restore(ACTIVE.replace(mutant));
        run()
    }
}
