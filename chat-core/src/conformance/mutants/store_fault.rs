//! The rules that a faulty store breaks.

/// Declares the faults and a list of all of them.
macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident),+ $(,)?) => {
        /// A rule of the [`MessageStore`](crate::backend::MessageStore) contract that a [`FaultyStore`](super::FaultyStore) breaks.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub enum StoreFault {
            $($(#[$doc])* $fault),+
        }

        impl StoreFault {
            /// All faults.
            pub const ALL: &[Self] = &[$(Self::$fault),+];
        }
    };
}

faults! {
    // Commit
    /// Ids are findable for the last ten messages only.
    IdsForgottenAfterTen,
    FindIgnoresSender,
    FindIgnoresConversation,
    FindSeesAboveHead,
    FindReturnsHead,
    /// Of a call with several commits only the first is applied.
    OnlyFirstCommitOfCall,
    /// Of a commit with several messages only the last row of each inbox is kept.
    OnlyLastInboxRowOfCommit,
    LastHistoryRowLost,
    OwnRowLost,
    SecondDeviceOfUserLost,
    IdsOfCommitLostButFirst,
    StateWithoutRows,
    RowsWithoutState,
    OlderStateComesBack,
    OlderTailComesBack,
    RepeatedCommitDuplicatesRows,
    RepeatedCommitMovesRows,
    AckedRowComesBack,
    ExpiredRowComesBack,
    LateRowReplacesGap,
    JoinIgnored,
    JoinOnEveryCommit,
    HistoryKeptForMailboxes,
    MailboxRowsWithoutBody,
    BoxKeptInHistory,
    GenerationOfCommitIgnored,
    GenerationGoesBackOnCommit,
    OutcomeMissing,
    /// A commit writes back all tables as it read them: concurrent calls lose each other's writes.
    ConcurrentCommitsOverwrite,
    SendersOfStateLost,
    MembersOfStateLost,
    PositionOfStateLost,
    RosterOfGroupLost,
    RulesOfStateLost,
    UnchangedMembersLost,
    UnchangedSendersLost,
    SenderFilterIgnored,
    /// A read returns only the first of the named senders.
    OneSenderRead,
    AudienceLost,
    SkipReadsAsExpired,
    LargeBodyCut,
    ThirtyTwoBitSeq,
    ThirtyTwoBitTime,
    /// A generation is stored as a floating-point number.
    GenerationAsFloat,
    // Ack
    GenerationGoesBackOnAck,
    RejectedAckRaisesGeneration,
    RejectedAckHasEffects,
    AckAboveTailAccepted,
    AckAboveTailClamped,
    AckOfUnknownConversationAccepted,
    AckGoesBack,
    AckOfOneDeviceCountsForAll,
    AckCountsForAllConversations,
    AckRemovesOneRowOnly,
    AckKeepsItsOwnRow,
    AckWithoutCursor,
    SecondAckOfCallIgnored,
    LowerAckOfSameCallCounts,
    // Inbox
    InboxBySeq,
    InboxNewestFirst,
    TiesLostAtPageBoundary,
    PageRepeatsItsStart,
    InboxByteLimitIgnored,
    InboxRowLimitIgnored,
    PageEndsEarly,
    LargeRowEndsPage,
    InboxShowsAboveHead,
    /// Rows that are older than an acknowledged row of any conversation are not read.
    RowsBelowAckHidden,
    /// Rows that are older than a row that was read are not read any more.
    RowsBelowReadHidden,
    // History
    HistoryOldestFirst,
    HistoryIncludesItsStart,
    HistoryByteLimitIgnored,
    HistoryAboveHead,
    HistoryStartZeroIsEmpty,
    OptionsLost,
    GroupPartLost,
    // Erased history
    HistoryExpiryIncludesItsTime,
    HistoryExpiryIgnoresLimit,
    HistoryExpiryDropsRows,
    HistoryExpiryForgetsIds,
    NewestHistoryExpiresFirst,
    ErasedHistoryCountsAgain,
    ErasedRowsHaveOneReason,
    ClearingOfOneMemberErases,
    ClearedHistoryStays,
    ClearingGoesBack,
    ClearingCountsAboveHead,
    ClearingCountsForAllUsers,
    ClearingErasesOtherConversations,
    ErasedContentComesBack,
    WaitingRowsKeepErasedContent,
    // Deleted and disappearing messages
    DeletionIgnored,
    DeletionErasesEarlierMessages,
    DeletionErasesInOtherConversations,
    DeletionRemovesRows,
    DeletionBringsBackAckedRows,
    DisappearingIgnored,
    DisappearingExcludesItsTime,
    DisappearsAtOnce,
    DisappearingCountsAgain,
    // Retention
    ExpiryWithoutGap,
    GapHidesOtherConversations,
    GapForgetsItsStart,
    GapForgetsJoin,
    GapsCountAsRemoved,
    ExpiryIgnoresLimit,
    ExpiryIncludesItsTime,
    NewestExpireFirst,
    // Deleted accounts
    ErasedInboxStays,
    ErasedCursorsStay,
    ErasedGenerationStays,
    EraseHidesOtherDevices,
    EraseDropsHistory,
    ExpiryOfHistory,
    ExpiryMovesCursor,
    // Device
    WaitingRowsNeverFall,
    WaitingBytesUnknown,
    CursorFilterIgnored,
    CursorOfOneConversationOnly,
    // Feeds
    FeedOfStateLost,
    FeedChangesIgnored,
    FeedLeaveIgnored,
    FeedChangeAboveHeadCounts,
    FeedAckRefused,
    FeedAckAboveHeadAccepted,
    FeedAckForgotten,
    FeedAckKeepsTail,
    FeedsOfOtherDevices,
    ErasedFeedsStay,
    HistoryAfterIncludesItsStart,
    HistoryAfterNewestFirst,
    HistoryAfterAboveHead,
    HistoryAfterIgnoresLimit,
    HistoryAfterOfAllConversations,
    // Calls that are dropped at an `await`
    /// Half of the inbox rows are written after the state, and a repeat finds the state and writes nothing.
    InterruptedCommitStaysHalf,
    /// A commit is noted as done before it is written, and a repeat writes nothing.
    InterruptedCommitIsLost,
    /// The head is written before the senders.
    InterruptedStateIsPart,
    /// An ack deletes rows after it raised the cursor, and a repeat finds the cursor and deletes nothing.
    InterruptedAckKeepsRows,
    /// Expired rows are deleted before their gap is written.
    InterruptedExpiryLosesRows,
    /// A commit that is dropped keeps its lock.
    InterruptedCommitBlocksTheStore,
}
