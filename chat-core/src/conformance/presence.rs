use std::sync::Arc;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::Presence;
use crate::model::id::{InstallationId, UserId};
use crate::model::limits::{HEARTBEAT_MS, IDLE_MS};

type Present = Arc<dyn Presence>;

/// Returns the conformance cases of [`Presence`]. The cases pass times of their own, which begin at a fixed
/// date. A backend that expires entries by its own clock must keep them for at least [`IDLE_MS`].
pub fn presence() -> Vec<Case<dyn Presence>> {
    list_cases![
        present_until_the_ttl,
        one_lost_heartbeat_shows_nothing,
        absent_after_leaving,
        a_user_is_present_by_any_device,
        answers_come_in_order,
    ]
}

/// Start of the cases' clock, in milliseconds since 1970.
const START: u64 = 1_700_000_000_000;
const USER: UserId = UserId::from_bytes([1; 16]);
const PHONE: InstallationId = InstallationId::from_bytes([1; 16]);
const LAPTOP: InstallationId = InstallationId::from_bytes([2; 16]);

async fn is_present(present: &Present, after_ms: u64) -> Result<bool, String> {
    let answers = present.query(&[USER], START + after_ms).await.map_err(failed)?;
    answers.first().copied().ok_or_else(|| "no answer".to_owned())
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

async fn answers_come_in_order(present: Present) -> Outcome {
    let users: Vec<UserId> = (1..=5).map(|n| UserId::from_bytes([n; 16])).collect();
    for user in users.iter().step_by(2) {
        present.beat(*user, PHONE, true, START).await.map_err(failed)?;
    }
    let answers = present.query(&users, START).await.map_err(failed)?;
    equal(answers, vec![true, false, true, false, true], "the answers")?;
    equal(present.query(&[], START).await.map_err(failed)?, vec![], "the answers for no users")
}
