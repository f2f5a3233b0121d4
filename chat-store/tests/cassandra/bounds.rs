//! Tests of the number of tombstones that a read skips, as Cassandra counts them.

use scylla::response::query_result::QueryResult;
use scylla::statement::Statement;

use super::*;

/// Reads an inbox from the beginning of a day.
const READ: &str = "SELECT row FROM @inbox WHERE installation = ? AND day = ?";

impl Keyspace {
    async fn run(&self, cql: &str, values: impl scylla::serialize::row::SerializeRow) {
        let cql = cql.replace('@', &format!("{}.", self.name()));
        self.session.query_unpaged(cql, values).await.unwrap();
    }

    /// Returns the number of tombstones that a read of the days between two times skips.
    async fn tombstones(&self, device: InstallationId, from_us: u64, to_us: u64) -> u64 {
        let day_of = |time_us| i32::try_from(time_us / (24 * 60 * MINUTE_US)).unwrap();
        let mut passed = 0;
        for day in day_of(from_us)..=day_of(to_us) {
            let mut read = Statement::new(READ.replace('@', &format!("{}.", self.name())));
            read.set_tracing(true);
            let answer = self.session.query_unpaged(read, (&device.as_bytes()[..], day)).await.unwrap();
            passed += self.traced(&answer).await;
        }
        passed
    }

    /// Returns the number of tombstones in the trace of a read. Waits for the trace, which is written after
    /// the answer.
    async fn traced(&self, answer: &QueryResult) -> u64 {
        let id = answer.tracing_id().unwrap();
        for _ in 0..100 {
            let trace = self.session.get_tracing_info(&id).await.unwrap();
            let said = trace.events.iter().filter_map(|event| event.activity.as_deref());
            // "Read 3 live rows and 12 tombstone cells", possibly followed by a warning that these are many.
            let mut counts =
                said.filter_map(|text| text.strip_prefix("Read ")?.split_once(" tombstone cells"));
            if let Some((text, _)) = counts.next() {
                return text.rsplit(' ').next().unwrap().parse().unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        unreachable!("the trace has no count of tombstones")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_skip_acknowledged_rows_after_a_trim() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let (bob, now) = (device(2).installation, now_us());
    let began = now - 120 * MINUTE_US;
    // 2000 rows of the last two hours, in the day partitions in which a timely commit writes them.
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    for n in 0..2000 {
        let written = talk.next(began + n * 3_000_000);
        for (_, row) in written.inbox.iter().filter(|(owner, _)| *owner == bob) {
            let day = i32::try_from(row.time_us / (24 * 60 * MINUTE_US)).unwrap();
            let (time, bytes) = (row.time_us as i64, chat_core::codec::encode_row(row));
            let key = (&bob.as_bytes()[..], day, time, &row.conversation.as_bytes()[..], row.seq as i64);
            let values = (key.0, key.1, key.2, key.3, key.4, bytes, time);
            let put = "INSERT INTO @inbox (installation, day, time_us, conversation, seq, size, row) \
                       VALUES (?, ?, ?, ?, ?, 100, ?) USING TIMESTAMP ?";
            keyspace.run(put, values).await;
        }
    }
    let born = (began as i64, &bob.as_bytes()[..]);
    keyspace.run("UPDATE @cells SET born = ? WHERE installation = ?", born).await;
    let last = talk.next(now);
    commit(&store, last).await;
    assert_eq!(drain(&store, bob).await.len(), 2001);
    for seq in (64..2001).step_by(64).chain([2001]) {
        store.ack(bob, 1, &[AckUpTo { conversation: talk.id(), seq }]).await.unwrap();
    }
    assert_eq!(drain(&store, bob).await, Vec::new());
    let passed = keyspace.tombstones(bob, began, now).await;
    println!("a read skips {passed} tombstones of 2001 rows");
    assert!(passed <= 8 * 64, "{passed}");
    keyspace.remove().await;
}
