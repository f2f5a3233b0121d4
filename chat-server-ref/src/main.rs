//! The `chat-server-ref` command: reads the settings, then runs one of `serve`, `check`, `migrate`,
//! `migrate-data`, `explain`, `revoke`, `token`, `verify`.

mod commands;
mod settings;

use std::process::ExitCode;

use clap::Parser;
use settings::{Arguments, Command};

/// The allocator of the program. glibc's takes more of the CPU per message (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Data and secrets are readable by their owner only.
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat-server-ref: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout)] // the commands print their results
fn run(arguments: Arguments) -> Result<(), String> {
    let settings = arguments.settings()?;
    if arguments.print_config {
        print!("{}", settings.to_toml()?);
        return Ok(());
    }
    settings.check()?;
    commands::check_build(&settings)?;
    match arguments.command {
        None | Some(Command::Serve { .. }) => commands::serve(&settings)?,
        Some(Command::Check) => {
            let (found, wrong): (Vec<_>, Vec<_>) =
                commands::check(&settings)?.into_iter().partition(Result::is_ok);
            found.into_iter().flatten().for_each(|line| println!("{line}"));
            if !wrong.is_empty() {
                let lines: Vec<String> = wrong.into_iter().filter_map(Result::err).collect();
                return Err(lines.join("\nchat-server-ref: "));
            }
        }
        Some(Command::Migrate { new_log, restored }) => {
            commands::migrate(&settings, new_log, restored)?.iter().for_each(|line| println!("{line}"));
        }
        Some(Command::MigrateData { from, to }) => {
            println!("migrated: {}", commands::migrate_data(&from, &to, |line| println!("{line}"))?);
        }
        Some(Command::Explain { message_id, mut node }) => {
            if node.is_empty() {
                node.push(settings.admin_listen.to_string());
            }
            chat_server::explain::explain(&message_id, &node)?.iter().for_each(|line| println!("{line}"));
        }
        Some(Command::Revoke { user, node }) => {
            let node = node.unwrap_or_else(|| settings.admin_listen.to_string());
            println!("{}", chat_server::revocation::revoke(&user, &node)?);
        }
        Some(Command::Token { user, ttl }) => println!("{}", commands::token(&settings, &user, ttl)?),
        Some(Command::Verify) => println!("verified: {}", commands::verify(&settings)?),
    }
    Ok(())
}
