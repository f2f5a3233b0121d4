//! What a read may have to pass over, as Cassandra itself counts it.

use scylla::statement::Statement;

use super::*;

/// A read of an inbox, as the store does it.
const READ: &str = "SELECT row FROM @inbox WHERE installation = ? AND day = ? AND (time_us, conversation, seq) > (?, ?, ?) LIMIT 64";

impl Keyspace {
    async fn run(&self, cql: &str, values: impl scylla::serialize::row::SerializeRow) {
        let cql = cql.replace('@', &format!("{}.", self.name()));
        self.session.query_unpaged(cql, values).await.unwrap();
    }

    /// How many tombstones a read of an inbox passes over, from a time on.
    async fn tombstones(&self, device: InstallationId, from_us: u64, to_us: u64) -> u64 {
        let day_of = |time_us| i32::try_from(time_us / (24 * 60 * MINUTE_US)).unwrap();
        let mut passed = 0;
        for day in day_of(from_us)..=day_of(to_us) {
            let mut read = Statement::new(READ.replace('@', &format!("{}.", self.name())));
            read.set_tracing(true);
            let key = (&device.as_bytes()[..], day, from_us as i64, &b""[..], 0i64);
            let traced = self.session.query_unpaged(read, key).await.unwrap().tracing_id().unwrap();
            let trace = self.session.get_tracing_info(&traced).await.unwrap();
            let said = trace.events.iter().filter_map(|event| event.activity.as_deref());
            // "Read 3 live rows and 12 tombstone cells", and perhaps that this is many.
            let counts =
                said.filter_map(|text| Some(text.strip_prefix("Read ")?.split_once(" tombstone cells")?.0));
            passed +=
                counts.map(|text| text.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
        }
        passed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_acknowledged_is_soon_not_read_over_any_more() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let (bob, now) = (device(2).installation, now_us());
    let began = now - 120 * MINUTE_US;
    // Two thousand rows of the last two hours, which lie where they were written then.
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    for n in 0..2000 {
        let written = talk.next(began + n * 3_000_000);
        for (_, row) in written.inbox.iter().filter(|(owner, _)| *owner == bob) {
            let day = i32::try_from(row.time_us / (24 * 60 * MINUTE_US)).unwrap();
            let (time, bytes) = (row.time_us as i64, chat_core::wire::encode_row(row));
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
        store.ack(bob, 1, &[AckOf { conversation: talk.id(), seq }]).await.unwrap();
    }
    assert_eq!(drain(&store, bob).await, Vec::new());
    let floor = format!("SELECT floor FROM {}.cells WHERE installation = ? LIMIT 1", keyspace.name());
    let rows = keyspace.session.query_unpaged(floor, (&bob.as_bytes()[..],)).await.unwrap();
    let (floor,) = rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap();
    let (all, passed) =
        (keyspace.tombstones(bob, began - 1, now).await, keyspace.tombstones(bob, floor as u64, now).await);
    println!("a read passes over {passed} tombstones of {all}");
    assert!(all > 1900, "the test can fail: {all}");
    assert!(passed <= 8 * 64, "{passed}");
    keyspace.remove().await;
}
