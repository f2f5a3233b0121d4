//! The conformance suites find every mutant, and the model-based test alone finds 90 % of the stores.
#![cfg(feature = "conformance")]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use chat_core::conformance::mutants::{
    ContactFault, DirectoryFault, StoreFault, contacts_killed_by_a_case, directory_killed_by_a_case,
    faultless_contacts_pass, faultless_directory_passes, faultless_store_passes, killed_by_a_case,
    killed_by_injected_faults, killed_by_the_model,
};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Drives a future that waits for nothing but its own other parts.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    for _ in 0..10_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    unreachable!("the future waits for something else")
}

#[test]
fn suites_kill_every_mutant() {
    let (mut survivors, mut by_case, mut by_model, mut by_faults_only) = (Vec::new(), 0, 0, 0);
    for fault in StoreFault::ALL {
        let (case, plain) = (ready(killed_by_a_case(*fault)), ready(killed_by_the_model(*fault)));
        let with_faults = ready(killed_by_injected_faults(*fault));
        by_faults_only += usize::from(case.is_none() && plain.is_none() && with_faults.is_some());
        let seed = plain.or(with_faults);
        by_case += usize::from(case.is_some());
        by_model += usize::from(seed.is_some());
        println!(
            "{fault:?}: case {}, seed {}, seed with injected faults {}",
            case.unwrap_or("none"),
            plain.map_or("none".into(), |seed| seed.to_string()),
            with_faults.map_or("none".into(), |seed| seed.to_string())
        );
        if case.is_none() && seed.is_none() {
            survivors.push(format!("{fault:?}"));
        }
    }
    let stores = StoreFault::ALL.len();
    for fault in DirectoryFault::ALL {
        match ready(directory_killed_by_a_case(fault)) {
            Some(case) => println!("{fault:?}: case {case}"),
            None => survivors.push(format!("{fault:?}")),
        }
    }
    for fault in ContactFault::ALL {
        match ready(contacts_killed_by_a_case(fault)) {
            Some(case) => println!("{fault:?}: case {case}"),
            None => survivors.push(format!("{fault:?}")),
        }
    }
    println!(
        "{} mutants of MessageStore: {by_case} killed by a named case, {by_model} by the model-based test alone, \
         {by_faults_only} only with injected faults; {} mutants of KeyDirectory, {} of ContactStore",
        stores,
        DirectoryFault::ALL.len(),
        ContactFault::ALL.len()
    );
    assert!(survivors.is_empty(), "these survived: {survivors:?}");
    assert!(stores + DirectoryFault::ALL.len() >= 60);
    assert!(by_faults_only >= 6, "injected faults alone kill {by_faults_only}");
    assert!(by_model * 10 >= stores * 9, "the model-based test alone kills {by_model} of {stores}");
}

#[test]
fn backends_without_a_fault_pass() {
    assert_eq!(ready(faultless_store_passes()), Ok(()));
    assert_eq!(ready(faultless_directory_passes()), Ok(()));
    assert_eq!(ready(faultless_contacts_pass()), Ok(()));
}
