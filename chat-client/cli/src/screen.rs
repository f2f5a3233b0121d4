//! The interactive screen: conversations on the left, messages on the right, an input line below.

use std::collections::BTreeMap;

use chat_client::{Client, Event, Handle, Message};
use crossterm::event::{Event as Key, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, List, Paragraph};

use crate::commands::shown;
use crate::event_json::problem;
use crate::{Arguments, text};

/// Maximum number of lines kept for each conversation.
const LINES: usize = 500;

/// The state of the screen.
struct Screen {
    own: String,
    online: bool,
    /// The lines of each conversation, by the other user's handle.
    talks: BTreeMap<String, Vec<String>>,
    with: Option<String>,
    input: String,
    note: String,
}

impl Screen {
    fn say(&mut self, with: &str, line: String) {
        let talk = self.talks.entry(with.to_owned()).or_default();
        talk.push(line);
        if talk.len() > LINES {
            talk.remove(0);
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connected => self.online = true,
            Event::Disconnected => self.online = false,
            Event::Message(message) => {
                let with = message.sender.to_string();
                self.say(&with, format!("{with}: {}", printable(&message)));
                self.with.get_or_insert(with);
            }
            Event::Recovered(message) => {
                let with = message.sender.to_string();
                self.say(&with, format!("{with} (earlier): {}", printable(&message)));
            }
            Event::IdentityChanged { user } => {
                let line = format!("* the keys of {user} changed: compare safety numbers");
                self.say(&user.to_string(), line);
            }
            Event::DeviceAdded { user, device } => {
                self.say(&user.to_string(), format!("* {user} added device {}", device.get()));
            }
            Event::Typing { user, .. } => self.note = format!("{user} is typing …"),
            Event::Refused { reason, .. } => self.note = format!("refused: {}", reason.name()),
            Event::Delivered { user, .. } => self.note = format!("delivered to {user}"),
            Event::Read { user, .. } => self.note = format!("read by {user}"),
            Event::Throttled { retry_after } => {
                self.note =
                    format!("too many messages: sending continues in {} s", retry_after.as_secs() + 1);
            }
            event => {
                if let Some((_, message)) = problem(&event) {
                    self.note = message;
                }
            }
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(3)])
                .areas(frame.area());
        let [left, right] = Layout::horizontal([Constraint::Length(20), Constraint::Min(10)]).areas(middle);
        let state = if self.online { "online" } else { "offline" };
        let status = format!(" {} — {state}   {}", self.own, self.note);
        frame.render_widget(Paragraph::new(status).style(Style::new().reversed()), top);
        let names = self.talks.keys().map(|name| {
            let line = Line::from(name.clone());
            if Some(name) == self.with.as_ref() { line.bold() } else { line }
        });
        frame.render_widget(List::new(names).block(Block::bordered().title("chats")), left);
        let title = self.with.clone().unwrap_or_else(|| "no chat yet: /to NAME".into());
        let empty = Vec::new();
        let talk = self.with.as_ref().and_then(|with| self.talks.get(with)).unwrap_or(&empty);
        let room = usize::from(right.height.saturating_sub(2));
        let shown: Vec<Line<'_>> =
            talk.iter().skip(talk.len().saturating_sub(room)).map(|line| Line::from(line.as_str())).collect();
        frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(title)), right);
        let help = "enter sends · /to NAME · tab next chat · ctrl-c quits";
        frame.render_widget(Paragraph::new(self.input.as_str()).block(Block::bordered().title(help)), bottom);
    }

    fn next_talk(&mut self) {
        let after = self.talks.keys().find(|name| self.with.as_ref().is_none_or(|with| *name > with));
        self.with = after.or_else(|| self.talks.keys().next()).cloned();
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), String> {
    let client = arguments.open().await?;
    let mut events = client.events_after(None);
    let mut screen = Screen {
        own: client.handle().as_str().to_owned(),
        online: false,
        talks: BTreeMap::new(),
        with: None,
        input: String::new(),
        note: String::new(),
    };
    let mut terminal =
        ratatui::try_init().map_err(|e| format!("failed to open the terminal: {e}; try `chat --json`"))?;
    let mut keys = EventStream::new();
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(error.to_string());
        }
        tokio::select! {
            next = events.next() => match next {
                Ok(Some(next)) => screen.handle_event(next.event),
                Ok(None) => break Ok(()),
                Err(error) => break Err(text(error)),
            },
            key = keys.next() => match key {
                Some(Ok(Key::Key(key))) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => break Ok(()),
                    KeyCode::Char(c) => screen.input.push(c),
                    KeyCode::Backspace => { screen.input.pop(); }
                    KeyCode::Tab => screen.next_talk(),
                    KeyCode::Enter => enter(&client, &mut screen).await,
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break Ok(()),
            },
        }
    };
    ratatui::restore();
    client.close().await;
    ended
}

async fn enter(client: &Client, screen: &mut Screen) {
    let input = std::mem::take(&mut screen.input);
    if let Some(name) = input.strip_prefix("/to ") {
        open_talk(client, screen, name.trim()).await;
        return;
    }
    let Some(with) = screen.with.clone() else {
        screen.note = "choose a user first: /to NAME".into();
        return;
    };
    let Ok(handle) = Handle::new(&with) else { return };
    match client.send(handle, input.as_str()).await {
        Ok(_) => {
            let line = format!("{}: {input}", screen.own);
            screen.say(&with, line);
        }
        Err(error) => screen.note = text(error),
    }
}

async fn open_talk(client: &Client, screen: &mut Screen, name: &str) {
    if Handle::new(name).is_err() {
        screen.note = "this is not a valid handle".into();
        return;
    }
    screen.with = Some(name.to_owned());
    if screen.talks.contains_key(name) {
        return;
    }
    screen.talks.insert(name.to_owned(), Vec::new());
    let Ok(user) = client.resolve(name).await else {
        return;
    };
    let messages = client.history(client.conversation_with(user), None, 50).await.unwrap_or_default();
    for message in messages.into_iter().rev() {
        screen.say(name, format!("{}: {}", message.sender, printable(&message)));
    }
}

/// Returns the content of a message without control characters, which could change the terminal.
fn printable(message: &Message) -> String {
    shown(message.content()).chars().filter(|c| !c.is_control() || *c == '\n').collect()
}
