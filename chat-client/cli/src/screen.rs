//! The interactive screen: conversations on the left, messages on the right, an input line below.

mod actions;
mod entered;
mod talk;

use chat_client::{
    Client, Content, Conversation, ConversationId, ConversationKind, Event, GapReason, Message, Relation,
    User, UserId,
};
use crossterm::event::{
    DisableBracketedPaste, EnableBracketedPaste, Event as Input, EventStream, KeyCode, KeyEvent,
    KeyEventKind, KeyModifiers,
};
use futures_util::StreamExt;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, List, Paragraph};

use self::actions::{enter, load_older, read, refresh, select};
use self::talk::Talk;
use crate::event_json::{of_action, problem};
use crate::output::{Failure, printable};
use crate::{Arguments, text};

/// The name of a group of which this device does not know the name.
const GROUP: &str = "[group]";
/// Number of messages that are read from the history at once.
const PAGE: usize = 50;

/// The state of the screen.
struct Screen {
    own: String,
    online: bool,
    /// The newest conversation first.
    talks: Vec<Talk>,
    selected: Option<ConversationId>,
    input: String,
    note: String,
    /// Number of lines between the newest line and the bottom of the window.
    scroll: usize,
    /// Height of the window with messages, in lines.
    height: usize,
}

impl Screen {
    const fn new(own: String) -> Self {
        Self {
            own,
            online: false,
            talks: Vec::new(),
            selected: None,
            input: String::new(),
            note: String::new(),
            scroll: 0,
            height: 0,
        }
    }

    fn find(&mut self, id: ConversationId) -> Option<&mut Talk> {
        self.talks.iter_mut().find(|talk| talk.id == id)
    }

    /// Returns the conversation, and moves it to the top of the list.
    fn talk(&mut self, id: ConversationId, user: UserId, name: impl FnOnce() -> String) -> &mut Talk {
        let talk = match self.talks.iter().position(|talk| talk.id == id) {
            Some(at) => self.talks.remove(at),
            None => Talk::new(id, user, name()),
        };
        self.talks.insert(0, talk);
        &mut self.talks[0]
    }

    /// Adds a conversation of the local store at the end of the list.
    fn add(&mut self, conversation: &Conversation) {
        let mut talk = match (&conversation.peer, &conversation.last_message) {
            (Some(peer), _) => Talk::new(conversation.id, peer.id, peer.to_string()),
            // A group appears with its first message.
            (None, Some(last)) => Talk::new(conversation.id, last.sender.id, GROUP.to_owned()),
            (None, None) => return,
        };
        if talk.is_group() {
            talk.name = conversation.name.clone().unwrap_or(talk.name);
        }
        talk.unread = conversation.unread;
        talk.relation = conversation.relation;
        self.talks.push(talk);
    }

    fn message(&mut self, message: &Message, is_new: bool) {
        let own = message.sender.to_string() == self.own;
        let peer = if own { message.recipient.as_ref().unwrap_or(&message.sender) } else { &message.sender };
        let is_group = message.conversation.kind() == Ok(ConversationKind::Group);
        let name = || if is_group { GROUP.to_owned() } else { peer.to_string() };
        let talk = self.talk(message.conversation, peer.id, name);
        if let Content::GroupProfile(profile) = message.content() {
            talk.name.clone_from(&profile.name);
        }
        talk.add(message.seq, message.id, message.sender.to_string(), message.content(), own);
        talk.mark(message, own);
        if message.is_request {
            talk.relation = Relation::Stranger;
        }
        if !own && is_new {
            talk.unread += 1;
        }
    }

    fn notice(&mut self, user: &User, notice: String) {
        let name = user.to_string();
        match self.talks.iter_mut().find(|talk| talk.name == name) {
            Some(talk) => talk.note(notice),
            None => self.note = notice,
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match event {
            Event::Connected => self.online = true,
            Event::Disconnected => self.online = false,
            Event::Message(message) => self.message(message, true),
            Event::Recovered(message) => self.message(message, false),
            Event::GroupChanged { group, user, action, .. } => {
                let talk = self.talk(*group, user.id, || GROUP.to_owned());
                talk.note(format!("{user} changed the group: {}", of_action(action).0));
            }
            Event::Stored { message, conversation, seq, .. } => {
                if let Some(talk) = self.find(*conversation) {
                    talk.stored(*message, *seq);
                }
            }
            Event::Refused { message, reason, .. } => {
                self.note = format!("refused: {}", reason.name());
                self.talks.iter_mut().for_each(|talk| talk.refused(*message, reason.name()));
            }
            Event::Delivered { conversation, seq, .. } => {
                if let Some(talk) = self.find(*conversation) {
                    talk.receipt(*seq, 0);
                }
            }
            Event::Read { conversation, seq, user } if user.to_string() != self.own => {
                if let Some(talk) = self.find(*conversation) {
                    talk.receipt(0, *seq);
                }
            }
            Event::IdentityChanged { user } => {
                self.notice(user, format!("the keys of {user} changed: compare safety numbers"));
            }
            Event::DeviceAdded { user, device } => {
                self.notice(user, format!("{user} added device {}", device.get()));
            }
            // Nothing reminds of a user that was blocked.
            Event::Gap { reason: GapReason::Withheld, .. } => {}
            Event::RelationChanged { user, relation } => {
                if let Some(talk) = self.talks.iter_mut().find(|talk| talk.user == user.id) {
                    talk.relation = *relation;
                }
            }
            Event::Gap { conversation, from_seq, to_seq, reason } => {
                let notice = format!("messages {from_seq} to {to_seq} are missing: {}", reason.name());
                match self.find(*conversation) {
                    Some(talk) => talk.note(notice),
                    None => self.note = notice,
                }
            }
            Event::ServerRestored { conversation, after_seq } => {
                let notice = format!(
                    "the server was restored from an older copy: it lost the messages after number {after_seq}, this device \
                     keeps them"
                );
                match self.find(*conversation) {
                    Some(talk) => talk.note(notice),
                    None => self.note = notice,
                }
            }
            Event::Integrity { conversation, violation, .. } => {
                let notice =
                    format!("messages were dropped, swapped or replaced on the way: {}", violation.name());
                match self.find(*conversation) {
                    Some(talk) => talk.note(notice),
                    None => self.note = notice,
                }
            }
            Event::DeviceExcluded { user, device } => {
                let notice = format!("device {} of {user} cannot receive messages now", device.get());
                self.notice(user, notice);
            }
            Event::Slow => self.note = "the link is slow: messages arrive late".into(),
            Event::ClockWrong { ahead_ms } => {
                let (minutes, way) =
                    (ahead_ms.unsigned_abs() / 60_000, if *ahead_ms > 0 { "ahead" } else { "behind" });
                self.note =
                    format!("the clock of this device is {minutes} min {way}: using the server's time");
            }
            Event::SessionDegraded { user, .. } => {
                self.notice(user, format!("a session with {user} began without a one-time prekey"));
            }
            Event::Typing { user, .. } => self.note = format!("{user} is typing …"),
            Event::Throttled { retry_after } => {
                self.note =
                    format!("slowed by the server: sending continues in {} s", retry_after.as_secs() + 1);
            }
            event => {
                if let Some((_, message)) = problem(event) {
                    self.note = message;
                }
            }
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(3)])
                .areas(frame.area());
        let [left, right] = Layout::horizontal([Constraint::Length(20), Constraint::Min(10)]).areas(middle);
        let state = if self.online { "online" } else { "offline" };
        let status = format!(" {} — {state}   {}", self.own, printable(&self.note));
        frame.render_widget(Paragraph::new(status).style(Style::new().reversed()), top);
        let names = self.talks.iter().map(|talk| {
            let unread = if talk.unread > 0 { format!(" ({})", talk.unread) } else { String::new() };
            let mark = match talk.relation {
                Relation::Stranger => "? ",
                Relation::Blocked => "× ",
                _ => "",
            };
            let line = Line::from(format!("{mark}{}{unread}", talk.name));
            if Some(talk.id) == self.selected { line.bold() } else { line }
        });
        frame.render_widget(List::new(names).block(Block::bordered().title("chats")), left);
        self.draw_messages(frame, right);
        let help = match self.selected_talk() {
            Some(talk) if talk.relation == Relation::Stranger => {
                format!("message request of {}: /accept, /block, /report, or answer", talk.name)
            }
            Some(talk) if talk.relation == Relation::Blocked => format!("{} is blocked: /unblock", talk.name),
            Some(talk) => format!("to {} · enter sends · /to NAME · tab · page up · ctrl-c quits", talk.name),
            None => "no recipient: /to NAME · tab next chat · ctrl-c quits".to_owned(),
        };
        // The end of a long line stays visible. A pasted newline is part of the message.
        let input = printable(&self.input);
        let width = usize::from(bottom.width.saturating_sub(3));
        let hidden = input.chars().count().saturating_sub(width);
        let shown: String = input.chars().skip(hidden).chain(['▏']).collect();
        frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(help)), bottom);
    }

    fn draw_messages(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.height = usize::from(area.height.saturating_sub(2));
        let (title, lines) = match self.selected_talk() {
            Some(talk) => (talk.name.clone(), talk.lines(usize::from(area.width.saturating_sub(2)))),
            None => ("no chat is open".to_owned(), Vec::new()),
        };
        self.scroll = self.scroll.min(lines.len().saturating_sub(self.height));
        let end = lines.len() - self.scroll;
        let shown: Vec<Line<'_>> = lines[end.saturating_sub(self.height)..end]
            .iter()
            .map(|line| Line::from(line.as_str()))
            .collect();
        frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(title)), area);
    }

    fn selected_talk(&self) -> Option<&Talk> {
        self.talks.iter().find(|talk| Some(talk.id) == self.selected)
    }

    /// Returns the conversation after the selected one.
    fn next(&self) -> Option<ConversationId> {
        let at = self.talks.iter().position(|talk| Some(talk.id) == self.selected);
        let next = at.map_or(0, |at| at + 1) % self.talks.len().max(1);
        self.talks.get(next).map(|talk| talk.id)
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let mut events = client.events_after(Some(client.last_event()));
    let mut screen = Screen::new(client.handle().as_str().to_owned());
    client.conversations().await.map_err(text)?.iter().for_each(|conversation| screen.add(conversation));
    let mut terminal =
        ratatui::try_init().map_err(|e| format!("failed to open the terminal: {e}; try `chat --json`"))?;
    keep_terminal_on_contained_panics();
    let _ = crossterm::execute!(std::io::stdout(), EnableBracketedPaste);
    let mut keys = EventStream::new();
    let mut terminated = std::pin::pin!(terminated());
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(Failure::of_output(&error));
        }
        tokio::select! {
            next = events.next() => match next {
                Ok(Some(next)) => {
                    screen.handle_event(&next.event);
                    if let Event::MessageChanged { message, .. } = &next.event {
                        refresh(&client, &mut screen, message.conversation).await;
                    }
                    read(&client, &mut screen).await;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(text(error).into()),
            },
            () = &mut terminated => break Ok(()),
            input = keys.next() => match input {
                Some(Ok(Input::Key(key))) if key.kind == KeyEventKind::Press => {
                    if !press(&client, &mut screen, key).await {
                        break Ok(());
                    }
                }
                Some(Ok(Input::Paste(pasted))) => screen.input.push_str(&pasted.replace('\r', "\n")),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break Ok(()),
            },
        }
    };
    let _ = crossterm::execute!(std::io::stdout(), DisableBracketedPaste);
    ratatui::restore();
    client.close().await;
    ended
}

/// Restores the terminal only when this program panics, and not when the client contains a panic of its own thread.
fn keep_terminal_on_contained_panics() {
    let restore = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some("chat-client") {
            restore(info);
        }
    }));
}

/// Waits for a signal that ends the program, so that the terminal is restored.
async fn terminated() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
        if let (Ok(mut terminate), Ok(mut hangup)) = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            return;
        }
    }
    std::future::pending().await
}

/// Carries out a key. Returns `false` if the program ends.
async fn press(client: &Client, screen: &mut Screen, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char(c) => screen.input.push(c),
        KeyCode::Backspace => {
            screen.input.pop();
        }
        KeyCode::Esc => screen.input.clear(),
        KeyCode::Tab => {
            if let Some(next) = screen.next() {
                select(client, screen, next).await;
            }
        }
        KeyCode::PageUp => {
            screen.scroll += screen.height.max(1);
            load_older(client, screen).await;
        }
        KeyCode::PageDown => screen.scroll = screen.scroll.saturating_sub(screen.height.max(1)),
        KeyCode::End => screen.scroll = 0,
        KeyCode::Enter => enter(client, screen).await,
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use chat_client::MessageId;

    use super::entered::{Change, Entered};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn commands_and_empty_lines_are_not_sent() {
        assert_eq!(Entered::read("  "), Entered::Nothing);
        assert_eq!(Entered::read("/to Bob "), Entered::To("Bob"));
        assert_eq!(Entered::read("/tp bob"), Entered::UnknownCommand("tp"));
        assert_eq!(Entered::read("/edit see you"), Entered::Change(Change::Edit("see you")));
        assert_eq!(Entered::read("/react 👍"), Entered::Change(Change::React("👍")));
        assert_eq!(Entered::read("/delete"), Entered::Change(Change::Delete));
        assert_eq!(Entered::read("/join"), Entered::Join(None));
        assert_eq!(Entered::read("/join chat:join#x "), Entered::Join(Some("chat:join#x")));
        assert_eq!(Entered::read("/to"), Entered::UnknownCommand("to"));
        assert_eq!(Entered::read("//shrug"), Entered::Text("/shrug"));
        assert_eq!(Entered::read(" hi "), Entered::Text(" hi "));
    }

    #[test]
    fn screen_names_the_recipient_and_scrolls_back() {
        let mut screen = Screen::new("alice".into());
        let user = UserId::from_bytes([1; 16]);
        let id = ConversationId::own(user);
        let mut terminal = Terminal::new(TestBackend::new(60, 10)).unwrap();
        let mut shown = |screen: &mut Screen| {
            terminal.draw(|frame| screen.draw(frame)).unwrap();
            terminal.backend().to_string()
        };
        assert!(shown(&mut screen).contains("no recipient: /to NAME"));
        let talk = screen.talk(id, user, || "bob".into());
        for n in 1..=9 {
            let content = chat_client::Content::Text(format!("line {n}"));
            talk.add(n, MessageId::from_bytes([n as u8; 16]), "bob".into(), &content, false);
        }
        screen.selected = Some(id);
        let bottom = shown(&mut screen);
        assert!(
            bottom.contains("to bob") && bottom.contains("line 9") && !bottom.contains("line 5"),
            "{bottom}"
        );
        screen.scroll = 100;
        let top = shown(&mut screen);
        assert!(top.contains("line 1") && !top.contains("line 9"), "{top}");
        assert_eq!(screen.next(), Some(id));
    }
}
