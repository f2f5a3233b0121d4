use std::sync::Arc;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::Presence;
use crate::model::id::{InstallationId, UserId};
use crate::model::limits::{HEARTBEAT_MS, IDLE_MS, LAST_SEEN_DAYS};
use crate::model::presence::UserPresence;

type Present = Arc<dyn Presence>;

/// Returns the conformance cases of [`Presence`]. The cases pass times of their own, which begin at a fixed
/// date. A backend that expires entries by its own clock must keep them for at least [`IDLE_MS`].
pub fn presence() -> Vec<Case<dyn Presence>> {
    list_cases![
        present_until_the_ttl,
        one_lost_heartbeat_shows_nothing,
        absent_after_leaving,
        a_user_is_present_by_any_device,
        last_seen_when_the_last_device_left,
        last_seen_at_the_last_beat,
        a_forgotten_user_was_never_seen,
        answers_come_in_order,
    ]
}

/// Start of the cases' clock, in milliseconds since 1970.
const START: u64 = 1_700_000_000_000;
const USER: UserId = UserId::from_bytes([1; 16]);
const PHONE: InstallationId = InstallationId::from_bytes([1; 16]);
const LAPTOP: InstallationId = InstallationId::from_bytes([2; 16]);

async fn read(present: &Present, after_ms: u64) -> Result<UserPresence, String> {
    let answers = present.query(&[USER], START + after_ms).await.map_err(failed)?;
    answers.first().copied().ok_or_else(|| "no answer".to_owned())
}

async fn is_present(present: &Present, after_ms: u64) -> Result<bool, String> {
    Ok(read(present, after_ms).await? == UserPresence::Online)
}

/// Returns the presence of a user that was last seen at this time.
const fn seen(after_ms: u64) -> UserPresence {
    UserPresence::Offline { last_seen_ms: Some(START + after_ms) }
}

async fn present_until_the_ttl(present: Present) -> Outcome {
    equal(is_present(&present, 0).await?, false, "before the first beat")?;
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    equal(is_present(&present, 0).await?, true, "at the time of the beat")?;
    equal(is_present(&present, IDLE_MS - 1).await?, true, "just before the TTL ends")?;
    equal(is_present(&present, IDLE_MS).await?, false, "when the TTL ends")
}

async fn one_lost_heartbeat_shows_nothing(present: Present) -> Outcome {
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    equal(is_present(&present, 2 * HEARTBEAT_MS).await?, true, "after one lost heartbeat")?;
    present.beat(USER, PHONE, true, START + 2 * HEARTBEAT_MS).await.map_err(failed)?;
    equal(is_present(&present, 2 * HEARTBEAT_MS + IDLE_MS - 1).await?, true, "the next beat restarts the TTL")
}

async fn absent_after_leaving(present: Present) -> Outcome {
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    present.beat(USER, PHONE, false, START + 1).await.map_err(failed)?;
    equal(is_present(&present, 2).await?, false, "after the device left")?;
    present.beat(USER, PHONE, false, START + 3).await.map_err(failed)?;
    equal(is_present(&present, 4).await?, false, "after the device left again")
}

async fn a_user_is_present_by_any_device(present: Present) -> Outcome {
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    present.beat(USER, LAPTOP, true, START).await.map_err(failed)?;
    present.beat(USER, PHONE, false, START + 1).await.map_err(failed)?;
    equal(is_present(&present, 2).await?, true, "the other device is present")?;
    present.beat(USER, LAPTOP, false, START + 3).await.map_err(failed)?;
    equal(is_present(&present, 4).await?, false, "no device is present")
}

async fn last_seen_when_the_last_device_left(present: Present) -> Outcome {
    equal(read(&present, 0).await?, UserPresence::HIDDEN, "before the first beat")?;
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    present.beat(USER, LAPTOP, true, START + 1).await.map_err(failed)?;
    present.beat(USER, LAPTOP, false, START + 5_000).await.map_err(failed)?;
    present.beat(USER, PHONE, false, START + 9_000).await.map_err(failed)?;
    equal(read(&present, 10_000).await?, seen(9_000), "after both devices left")?;
    present.beat(USER, PHONE, false, START + 20_000).await.map_err(failed)?;
    equal(read(&present, 21_000).await?, seen(9_000), "after a device left that was not there")?;
    let days_ms = LAST_SEEN_DAYS * 24 * 3_600_000;
    equal(read(&present, days_ms).await?, seen(9_000), "days later")
}

async fn last_seen_at_the_last_beat(present: Present) -> Outcome {
    present.beat(USER, PHONE, true, START).await.map_err(failed)?;
    present.beat(USER, LAPTOP, true, START + HEARTBEAT_MS).await.map_err(failed)?;
    equal(read(&present, HEARTBEAT_MS + IDLE_MS).await?, seen(HEARTBEAT_MS), "when no device was heard of")?;
    // A gateway with an earlier clock.
    present.beat(USER, LAPTOP, true, START + HEARTBEAT_MS - 1).await.map_err(failed)?;
    equal(read(&present, HEARTBEAT_MS + IDLE_MS).await?, seen(HEARTBEAT_MS), "the latest beat")
}

async fn a_forgotten_user_was_never_seen(present: Present) -> Outcome {
    let other = UserId::from_bytes([2; 16]);
    for user in [USER, other] {
        present.beat(user, PHONE, true, START).await.map_err(failed)?;
        present.beat(user, PHONE, false, START + 1).await.map_err(failed)?;
    }
    present.beat(USER, LAPTOP, true, START + 2).await.map_err(failed)?;
    present.forget(USER).await.map_err(failed)?;
    present.beat(USER, LAPTOP, false, START + 3).await.map_err(failed)?;
    equal(read(&present, 4).await?, UserPresence::HIDDEN, "the forgotten user")?;
    equal(present.query(&[other], START + 4).await.map_err(failed)?, vec![seen(1)], "another user")?;
    present.forget(USER).await.map_err(failed)
}

async fn answers_come_in_order(present: Present) -> Outcome {
    let users: Vec<UserId> = (1..=5).map(|n| UserId::from_bytes([n; 16])).collect();
    for user in users.iter().step_by(2) {
        present.beat(*user, PHONE, true, START).await.map_err(failed)?;
    }
    let answers = present.query(&users, START).await.map_err(failed)?;
    let (on, off) = (UserPresence::Online, UserPresence::HIDDEN);
    equal(answers, vec![on, off, on, off, on], "the answers")?;
    equal(present.query(&[], START).await.map_err(failed)?, vec![], "the answers for no users")
}
