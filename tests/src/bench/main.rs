//! Benchmarks. `make bench` compares our server with the baseline in one run on one machine. `bench cluster`
//! measures gateways and a router together with the services that they use. `bench group N` compares a group of N members
//! with a bare broadcaster, and `bench channel N` a channel with N readers. `bench members N D` prints the cost of a group of N members
//! with D devices each.
//!
//! The *baseline* does only what every durable chat server must do: it frames, appends to a file, shares one
//! `fdatasync` among waiting clients, answers and forwards. It has no users, order, inboxes or encryption.
//! The figures are ratios to the baseline, because absolute figures depend on the machine and the ratio does
//! not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod baseline;
mod cluster;
mod group;
mod load;
mod members;
mod process;
mod thin_frame;

use load::{Kind, Load, Way, idle, run};
use process::Process;
use std::time::Duration;

/// Returns how long each measurement takes.
fn seconds() -> u64 {
    std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8)
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, members, devices] = arguments.as_slice()
        && mode == "members"
    {
        return members::run(members.parse().unwrap(), devices.parse().unwrap()).await;
    }
    if let [_, role, port, file] = arguments.as_slice()
        && role == "baseline"
    {
        return baseline::serve(port.parse().unwrap(), file.into()).await;
    }
    if let [_, role, port] = arguments.as_slice()
        && role == "broadcast"
    {
        return group::broadcast(port.parse().unwrap()).await;
    }
    if let [_, mode, count] = arguments.as_slice()
        && mode == "group"
    {
        return group::run_group(count.parse().unwrap(), seconds()).await;
    }
    if let [_, mode, count] = arguments.as_slice()
        && mode == "channel"
    {
        return group::run_channel(count.parse().unwrap(), seconds()).await;
    }
    if let [_, mode] = arguments.as_slice()
        && mode == "cluster"
    {
        return cluster::run_cluster().await;
    }
    let seconds = seconds();
    let duration = Duration::from_secs(seconds);
    println!("256 B bodies, 100 connections (50 senders, 50 receivers), {seconds} s each");
    let loads = [
        ("16 outstanding", Load { outstanding: 16, rate: None }),
        ("1 outstanding", Load { outstanding: 1, rate: None }),
        ("light, 200/s", Load { outstanding: 16, rate: Some(200) }),
    ];
    for (name, load) in loads {
        let mut results = Vec::new();
        for kind in [Kind::Baseline, Kind::Ours] {
            let process = Process::start(kind);
            results.push(run(Way::through(&process), 50, load, duration, || vec![process.cpu()]).await);
        }
        let (baseline, ours) = (&results[0], &results[1]);
        println!("{name}");
        println!("  baseline {baseline}");
        println!("  ours  {ours}");
        println!(
            "  messages/s {:.3} × baseline; p50 {:+.3} ms, p99 {:+.3} ms beside it; server CPU {:.1} × baseline",
            ours.rate / baseline.rate,
            ours.p50 - baseline.p50,
            ours.p99 - baseline.p99,
            ours.cpu_us[0] / baseline.cpu_us[0]
        );
    }
    let count: usize = std::env::var("BENCH_IDLE").ok().and_then(|s| s.parse().ok()).unwrap_or(5000);
    let mut kib = Vec::new();
    for kind in [Kind::Baseline, Kind::Ours, Kind::Tls] {
        let process = Process::start(kind);
        kib.push(idle(&process, count).await);
    }
    println!("idle, {count} authenticated connections");
    println!(
        "  baseline {:.2} KiB a connection, ours {:.2} KiB: {:+.2} KiB",
        kib[0],
        kib[1],
        kib[1] - kib[0]
    );
    println!("  ours by wss {:.2} KiB a connection", kib[2]);
}
