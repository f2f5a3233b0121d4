//! The catalogue of metrics, the dashboard and the code have the same metric names.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Returns every word of a text that looks like one of our metric names.
fn names(text: &str) -> BTreeSet<String> {
    const ENDS: [&str; 9] = [
        "_total",
        "_seconds",
        "_records",
        "_messages",
        "_conversations",
        "_bytes",
        "_sessions",
        "_owned",
        "_writes",
    ];
    let other = |c: char| !(c.is_ascii_lowercase() || c == '_');
    let named = |name: &&str| name.starts_with("chat_") && ENDS.iter().any(|end| name.ends_with(end));
    text.split(other).filter(named).map(str::to_owned).collect()
}

/// Adds the metric names in all source files below a directory.
fn add_names(directory: &Path, made: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_names(&path, made);
        } else if path.extension().is_some_and(|end| end == "rs") {
            made.extend(names(&std::fs::read_to_string(path).unwrap()));
        }
    }
}

#[test]
fn every_metric_is_in_the_catalogue() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut made = BTreeSet::new();
    for member in ["chat-core", "chat-store", "chat-transport", "chat-server"] {
        add_names(&root.join(member).join("src"), &mut made);
    }
    let catalogue = names(&read("docs/operations.md"));
    assert!(made.len() > 20, "{made:?}");
    assert_eq!(made, catalogue);
}

#[test]
fn dashboard_shows_only_catalogued_metrics() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana.json")).unwrap();
    assert_eq!(dashboard["title"], "chat");
    let trimmed = dashboard.to_string().replace("_bucket", "").replace("_sum", "").replace("_count", "");
    let shown = names(&trimmed);
    assert!(shown.len() >= 10 && shown.is_subset(&names(&read("docs/operations.md"))), "{shown:?}");
}
