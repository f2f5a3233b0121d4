//! The interactive screen: conversations on the left, messages on the right, an input line below.

mod talk;

use chat_client::{
    Client, Content, Conversation, ConversationId, ConversationKind, Event, GapReason, Handle, Message,
    MessageId, Recipient, Relation, SendRequest, User, UserId,
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

use self::talk::Talk;
use crate::contacts::{Decision, newest};
use crate::event_json::{of_action, problem};
use crate::output::{Failure, printable};
use crate::{Arguments, text};

/// Number of messages that are read from the history at once.
/// The name of a group of which this device does not know the name.
const GROUP: &str = "[group]";

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

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
enum Entered<'a> {
    Nothing,
    To(&'a str),
    Decide(Decision),
    Report(&'a str),
    /// Change or answer the newest message.
    Change(Change<'a>),
    /// Join a group: with a link, or by the newest invitation in the open conversation.
    Join(Option<&'a str>),
    UnknownCommand(&'a str),
    Text(&'a str),
}

/// A change of, or an answer to, the newest message of the open conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change<'a> {
    /// Replace the text of the newest own message.
    Edit(&'a str),
    /// Delete the newest own message.
    Delete,
    /// React to the newest message of another user.
    React(&'a str),
    /// Answer the newest message of another user.
    Reply(&'a str),
}

impl<'a> Entered<'a> {
    fn read(input: &'a str) -> Self {
        let trimmed = input.trim();
        match trimmed.strip_prefix('/') {
            _ if trimmed.is_empty() => Self::Nothing,
            // A text may begin with a slash that is written twice.
            Some(escaped) if escaped.starts_with('/') => Self::Text(escaped),
            Some("accept") => Self::Decide(Decision::Accept),
            Some("block") => Self::Decide(Decision::Block),
            Some("unblock") => Self::Decide(Decision::Unblock),
            Some("report") => Self::Report(""),
            Some("join") => Self::Join(None),
            Some("delete") => Self::Change(Change::Delete),
            Some(command) => match command.split_once(' ') {
                Some(("to", name)) => Self::To(name.trim()),
                Some(("edit", text)) => Self::Change(Change::Edit(text.trim())),
                Some(("react", emoji)) => Self::Change(Change::React(emoji.trim())),
                Some(("reply", text)) => Self::Change(Change::Reply(text.trim())),
                Some(("join", link)) => Self::Join(Some(link.trim())),
                Some(("report", note)) => Self::Report(note.trim()),
                _ => Self::UnknownCommand(command.split(' ').next().unwrap_or_default()),
            },
            None => Self::Text(input),
        }
    }
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
        if let Content::GroupName(name) = message.content() {
            talk.name.clone_from(name);
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

async fn enter(client: &Client, screen: &mut Screen) {
    let input = std::mem::take(&mut screen.input);
    screen.note.clear();
    match Entered::read(&input) {
        Entered::Nothing => {}
        Entered::To(name) => open_talk(client, screen, name).await,
        Entered::Decide(decision) => decide(client, screen, decision).await,
        Entered::Report(note) => report(client, screen, note).await,
        Entered::Change(change) => {
            if let Err(error) = change_newest(client, screen, change).await {
                screen.note = text(error);
                screen.input = input;
            }
        }
        Entered::Join(link) => screen.note = join(client, screen, link).await.unwrap_or_else(text),
        Entered::UnknownCommand(name) => {
            screen.note = format!("unknown command /{name}; a text may begin with //");
            screen.input = input;
        }
        Entered::Text(content) => {
            let Some((id, user)) = screen.selected_talk().map(|talk| (talk.id, talk.user)) else {
                screen.note = "choose a recipient first: /to NAME".into();
                screen.input = input;
                return;
            };
            let to = if id.kind() == Ok(ConversationKind::Group) { Recipient::from(id) } else { user.into() };
            match client.send(to, content).await {
                Ok(ticket) => sent(screen, id, ticket.message(), content),
                Err(error) => {
                    screen.note = text(error);
                    screen.input = input;
                }
            }
        }
    }
}

async fn decide(client: &Client, screen: &mut Screen, decision: Decision) {
    let talk = screen.selected_talk().filter(|talk| !talk.is_group());
    let Some((user, name)) = talk.map(|talk| (talk.user, talk.name.clone())) else {
        screen.note = "open the chat of the user first: /to NAME".into();
        return;
    };
    screen.note = match decision.make(client, user).await {
        Ok(()) => format!("{} {name}", decision.done()),
        Err(error) => text(error),
    };
}

/// Changes or answers the newest message of the open conversation.
async fn change_newest(client: &Client, screen: &mut Screen, change: Change<'_>) -> chat_client::Result<()> {
    let is_own = matches!(change, Change::Edit(_) | Change::Delete);
    let Some(message) = screen.selected_talk().and_then(|talk| talk.newest_message(is_own)) else {
        screen.note = "there is no such message in this conversation".into();
        return Ok(());
    };
    match change {
        Change::Edit(content) => drop(client.edit(message, content).await?),
        Change::Delete => drop(client.delete(message).await?),
        Change::React(emoji) => drop(client.react(message, emoji).await?),
        Change::Reply(content) => {
            let request = SendRequest::text(content).reply_to(message);
            let ticket = client.send(message.conversation, request).await?;
            sent(screen, message.conversation, ticket.message(), content);
        }
    }
    Ok(())
}

/// Reads the newest page of a conversation again, after messages were changed.
async fn refresh(client: &Client, screen: &mut Screen, conversation: ConversationId) {
    let own = screen.own.clone();
    let Some(talk) = screen.find(conversation) else { return };
    let Ok(messages) = client.history(conversation, None, PAGE).await else { return };
    for message in messages.iter().filter(|message| !message.archived) {
        let author = message.sender.to_string();
        let is_own = author == own;
        talk.add(message.seq, message.id, author, message.content(), is_own);
        talk.mark(message, is_own);
    }
}

/// Queues that this user joins a group. Returns the line to show.
async fn join(client: &Client, screen: &Screen, link: Option<&str>) -> chat_client::Result<String> {
    let invitation = match link {
        Some(link) => Some(link.parse()?),
        None => screen.selected_talk().and_then(Talk::invitation),
    };
    let Some(invitation) = invitation else {
        return Ok("there is no invitation in this conversation; /join LINK uses a link".into());
    };
    client.join_group(&invitation).await?;
    Ok("joining the group: it appears with its first message".into())
}

/// Reports the newest messages of the selected user.
async fn report(client: &Client, screen: &mut Screen, note: &str) {
    const REPORTED: usize = 5;
    let talk = screen.selected_talk().filter(|talk| !talk.is_group());
    let Some((user, name)) = talk.map(|talk| (talk.user, talk.name.clone())) else {
        screen.note = "open the chat of the user first: /to NAME".into();
        return;
    };
    let reported = async {
        let messages = newest(client, user, REPORTED).await?;
        client.report(&messages, note).await.map(|()| messages.len())
    };
    screen.note = match reported.await {
        Ok(count) => format!("reported {count} messages of {name}; /block ends them"),
        Err(error) => text(error),
    };
}

fn sent(screen: &mut Screen, selected: ConversationId, id: MessageId, content: &str) {
    screen.scroll = 0;
    let own = screen.own.clone();
    if let Some(talk) = screen.find(selected) {
        talk.queue(id, own, content.to_owned());
    }
}

/// Opens the conversation with a user. No conversation is selected while the user is unknown.
async fn open_talk(client: &Client, screen: &mut Screen, name: &str) {
    screen.selected = None;
    // Handles have no capital letters.
    let name = name.to_lowercase();
    if Handle::new(&name).is_err() {
        screen.note = format!("{name} is not a handle");
        return;
    }
    match client.resolve(&name).await {
        Ok(user) => {
            let id = client.conversation_with(user);
            screen.talk(id, user, || name);
            select(client, screen, id).await;
        }
        Err(error) => screen.note = format!("{name}: {}", text(error)),
    }
}

async fn select(client: &Client, screen: &mut Screen, id: ConversationId) {
    screen.selected = Some(id);
    screen.scroll = 0;
    // The server sends typing notifications of a group only while it is open.
    let _ = client.open_conversation(Some(id)).await;
    if screen.find(id).is_some_and(|talk| talk.oldest().is_none_or(|oldest| oldest > 1)) {
        load_older(client, screen).await;
    }
    read(client, screen).await;
}

/// Reads a page of the history below the oldest message on the screen.
async fn load_older(client: &Client, screen: &mut Screen) {
    let own = screen.own.clone();
    let Some(selected) = screen.selected else { return };
    let Some(talk) = screen.find(selected).filter(|talk| !talk.is_complete) else { return };
    let Ok(messages) = client.history(selected, talk.oldest(), PAGE).await else { return };
    talk.is_complete = messages.len() < PAGE;
    for message in messages {
        let author = message.sender.to_string();
        let is_own = author == own;
        if message.archived {
            talk.add_archived(message.seq, message.id, author, message.content());
        } else {
            talk.add(message.seq, message.id, author, message.content(), is_own);
        }
        talk.mark(&message, is_own);
    }
}

/// Reports the open conversation as read while its newest line is visible.
async fn read(client: &Client, screen: &mut Screen) {
    let (Some(selected), 0) = (screen.selected, screen.scroll) else { return };
    if let Some(talk) = screen.find(selected).filter(|talk| talk.unread > 0) {
        talk.unread = 0;
        let newest = talk.newest();
        let _ = client.read(selected, newest).await;
    }
}

#[cfg(test)]
mod tests {
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
