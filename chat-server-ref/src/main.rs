//! The `chat-server-ref` command: reads the settings, then runs one of `serve`, `check`, `migrate`,
//! `migrate-data`, `explain`, `token`, `verify`.

mod commands;
mod settings;
mod tokens;

use std::process::ExitCode;

use clap::Parser;
use settings::{Action, Arguments};

fn main() -> ExitCode {
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
    let (action, settings) = arguments.resolve()?;
    if !matches!(action, Action::PrintConfig) {
        settings.check()?;
    }
    match action {
        Action::PrintConfig => print!("{}", settings.to_toml()?),
        Action::Serve => commands::serve(&settings)?,
        Action::Check => {
            let (found, wrong): (Vec<_>, Vec<_>) =
                commands::check(&settings)?.into_iter().partition(Result::is_ok);
            found.into_iter().flatten().for_each(|line| println!("{line}"));
            if !wrong.is_empty() {
                let lines: Vec<String> = wrong.into_iter().filter_map(Result::err).collect();
                return Err(lines.join("\nchat-server-ref: "));
            }
        }
        Action::Migrate(new_log) => {
            commands::migrate(&settings, new_log)?.iter().for_each(|line| println!("{line}"));
        }
        Action::MigrateData { from, to } => {
            println!("migrated: {}", commands::migrate_data(&from, &to, |line| println!("{line}"))?)
        }
        Action::Explain { message_id, nodes } => {
            chat_server::explain::explain(&message_id, &nodes)?.iter().for_each(|line| println!("{line}"));
        }
        Action::Token { user, ttl } => println!("{}", tokens::issue(&settings, &user, ttl)?),
        Action::Verify => println!("verified: {}", commands::verify(&settings)?),
    }
    Ok(())
}
