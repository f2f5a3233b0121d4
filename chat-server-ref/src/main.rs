//! `chat-server-ref`: settings, then one of `serve`, `check`, `migrate`, `migrate-data`, `explain`, `token`,
//! `verify`.

use std::process::ExitCode;

use chat_server_ref::settings::{Action, Arguments};
use chat_server_ref::{explain, serve, tokens};
use clap::Parser;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat-server-ref: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout)] // what the commands are for
fn run(arguments: Arguments) -> Result<(), String> {
    let (action, settings) = arguments.resolve()?;
    match action {
        Action::PrintConfig => print!("{}", settings.to_toml()?),
        Action::Serve => serve::run(settings)?,
        Action::Check => {
            let findings = serve::check(&settings)?;
            findings.found.iter().for_each(|line| println!("{line}"));
            if !findings.wrong.is_empty() {
                return Err(findings.wrong.join("\nchat-server-ref: "));
            }
        }
        Action::Migrate(new_log) => {
            serve::migrate(settings, new_log)?.iter().for_each(|line| println!("{line}"));
        }
        Action::MigrateData { from, to } => {
            println!("migrated: {}", serve::migrate_data(&from, &to, |line| println!("{line}"))?)
        }
        Action::Explain { message_id, nodes } => {
            explain::explain(&message_id, &nodes)?.iter().for_each(|line| println!("{line}"));
        }
        Action::Token { user, ttl } => println!("{}", tokens::issue(&settings, &user, ttl)?),
        Action::Verify => println!("verified: {}", serve::verify(&settings)?),
    }
    Ok(())
}
