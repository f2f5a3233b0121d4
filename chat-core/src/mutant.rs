//! Switches that break one rule each. Without the `sim` feature no switch can be set, and the compiler
//! removes the checks.

/// A rule that a mutant breaks. The simulator or a unit test must detect every mutant.
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
    /// An owner decides an applied record again.
    ReplayDecidesAnew,
    /// An owner that is behind treats a message that a later owner stored as a duplicate.
    FoundAheadOfState,
    /// A late write of an older state replaces a newer one.
    OlderStateWins,
    /// Cached conversation states of a shard outlive the ownership epoch.
    StatesOutliveOwnership,
    /// The shard accepts the `first` flag of a publish with any `client_seq`.
    FirstIsEnough,
    /// The device sets `first` on messages that it encrypts again.
    FirstInEveryIncarnation,
    /// A partly written commit is never finished.
    HalfCommitStays,
    /// The log position is committed although readers cannot see all rows of the commits.
    VisibilityErrorIgnored,
    /// A heartbeat does not check the inbox for rows without an event.
    HeartbeatIsBlind,
    /// A session becomes live although an event was dropped while it read the inbox.
    LiveThoughDropped,
    /// Recovered content does not fill its placeholder.
    RecoveredDropped,
    /// A row that may end the process is opened together with others.
    IsolationIgnored,
    /// An owner decides on parts of two states of a conversation.
    StatesMixed,
    /// A device does not check the numbers of a sender's messages.
    ChainIgnored,
    /// A device does not check the message that a sender saw.
    ViewIgnored,
    /// A deletion erases nothing on the server.
    DeletionKept,
    /// A device takes an erased message for one that the server dropped.
    ErasureUnexcused,
    /// A device does not notice that the server uses a seq again.
    ReusedSeqIgnored,
    /// A device does not read the messages that a device sent before it was unlinked.
    EarlierListIgnored,
    /// A gateway delivers the messages of a blocked user.
    BlockIgnored,
    /// A gateway shows the activity of a user to strangers and blocked users.
    ActivityShownToAll,
    /// A gateway shows the presence of a user to others than the audience of that user.
    AudienceIgnored,
    /// A session passes typing notifications of every group on.
    TypingToAll,
    /// A roster is changed by a member whose role does not allow it.
    RoleIgnored,
    /// A user joins a group without an invitation or the link.
    JoinUnchecked,
    /// A shard lets a device read a channel without the proof of its link.
    SubscribeUnchecked,
    /// A device that joins a channel gets no row for the seqs before.
    JoinRowMissing,
    /// A user that is removed from a channel continues to read it.
    RemovedReaderStays,
    /// A gateway lets a user add users to a group that do not know it.
    StrangerAdded,
    /// The key epoch of a group does not rise when a member or a device is removed.
    KeyEpochStays,
    /// A device encrypts with a sender key of an earlier key epoch.
    SenderKeyKept,
    /// A device encrypts with a sender key that it distributed in a message for another roster.
    StaleKeyKept,
    /// No message brings a later device list into the rosters of groups.
    ListUpdateForgotten,
    /// Devices do not read the message after the one with which their group becomes a feed.
    SwitchLosesSeq,
    /// A device that is removed from a feed still reads it.
    LeaverStillFed,
    /// A device answers a request that it cannot open in a session that the other device has lost.
    LostSessionKept,
    /// A restored device takes the ciphertexts that it has for those that its other copy sent.
    OwnCopyTrusted,
    /// A reader gets the end of a feed that another one read before the last delivery.
    EndOfFeedKept,
}

impl Mutant {
    /// The mutants that the simulator must detect. The others need conditions that a single process does not
    /// have (a stale cache of another gateway), or another rule hides them. Unit tests next to those rules
    /// detect them.
    pub const SIMULATED: [Self; 45] = [
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
        Self::LostSessionKept,
        Self::OwnCopyTrusted,
        Self::ReplayDecidesAnew,
        Self::FoundAheadOfState,
        Self::OlderStateWins,
        Self::StatesOutliveOwnership,
        Self::HalfCommitStays,
        Self::VisibilityErrorIgnored,
        Self::HeartbeatIsBlind,
        Self::FirstIsEnough,
        Self::FirstInEveryIncarnation,
        Self::IsolationIgnored,
        Self::StatesMixed,
        Self::ReusedSeqIgnored,
        Self::BlockIgnored,
        Self::EarlierListIgnored,
        Self::RoleIgnored,
        Self::JoinUnchecked,
        Self::StrangerAdded,
        Self::KeyEpochStays,
        Self::SenderKeyKept,
        Self::ListUpdateForgotten,
        Self::SwitchLosesSeq,
        Self::LeaverStillFed,
        Self::JoinRowMissing,
        Self::RemovedReaderStays,
        Self::DeletionKept,
        Self::ErasureUnexcused,
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
