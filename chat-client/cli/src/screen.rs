//! The interactive screen: conversations on the left, messages on the right, an input line below.

mod actions;
mod entered;
mod entry;

use std::collections::HashMap;
use std::time::SystemTime;

use chat_client::{
    Client, Conversation, ConversationId, ConversationKind, ConversationList, Event, GapReason, MessageId,
    Presence, Relation, Timeline, User, UserId,
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

use self::actions::{enter, leave, newer, newest, older, read, select};
use self::entry::{Entry, lines};
use crate::event_json::problem;
use crate::output::{Failure, printable};
use crate::presence::presence_text;
use crate::{Arguments, text};

/// The name of a group of which this device does not know the name.
const GROUP: &str = "[group]";
/// Number of messages that are read from the history at once.
const PAGE: usize = 50;
/// Notices that a conversation keeps.
const NOTICES: usize = 50;

/// A conversation in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chat {
    id: ConversationId,
    /// The other user of a direct conversation.
    peer: Option<UserId>,
    name: String,
    unread: u64,
    mentions: u64,
    relation: Relation,
    is_pinned: bool,
    is_muted: bool,
    is_archived: bool,
    draft: String,
}

impl Chat {
    fn of(one: &Conversation) -> Self {
        let peer = one.peer.as_ref();
        Self {
            id: one.id,
            peer: peer.map(|peer| peer.id),
            name: peer
                .map(ToString::to_string)
                .or_else(|| one.name.clone())
                .unwrap_or_else(|| GROUP.to_owned()),
            unread: one.unread,
            mentions: one.mentions,
            relation: one.relation,
            is_pinned: one.is_pinned,
            is_muted: one.muted_until.is_some_and(|until| until > SystemTime::now()),
            is_archived: one.is_archived,
            draft: one.draft.clone(),
        }
    }

    /// Returns a conversation that the list does not have yet: no message was sent in it.
    const fn new(id: ConversationId, peer: UserId, name: String) -> Self {
        Self {
            id,
            peer: Some(peer),
            name,
            unread: 0,
            mentions: 0,
            relation: Relation::Contact,
            is_pinned: false,
            is_muted: false,
            is_archived: false,
            draft: String::new(),
        }
    }

    fn is_group(&self) -> bool {
        self.id.has_roster()
    }

    /// Returns the name, so that a group is not taken for a user.
    fn full_name(&self) -> String {
        match self.id.kind() {
            Ok(ConversationKind::Group) => format!("group {}", self.name),
            Ok(ConversationKind::Channel) => format!("channel {}", self.name),
            _ => self.name.clone(),
        }
    }

    /// Returns the line in the list.
    fn line(&self) -> String {
        let relation = match self.relation {
            Relation::Stranger if !self.is_group() => "? ",
            Relation::Blocked => "× ",
            _ if self.is_pinned => "* ",
            _ => "",
        };
        let mentions = if self.mentions > 0 { format!(" @{}", self.mentions) } else { String::new() };
        let unread = if self.unread > 0 { format!(" ({}{mentions})", self.unread) } else { String::new() };
        let muted = if self.is_muted { " muted" } else { "" };
        format!("{relation}{}{unread}{muted}", printable(&self.name))
    }
}

/// A line of the client in a conversation, after the message that was the last one when it appeared.
#[derive(Debug)]
struct Notice {
    after: Option<MessageId>,
    text: String,
}

/// The state of the screen.
#[derive(Default)]
struct Screen {
    own: String,
    online: bool,
    list: Option<ConversationList>,
    /// The conversations of the list.
    chats: Vec<Chat>,
    open: Option<Chat>,
    timeline: Option<Timeline>,
    /// The messages and notices of the open conversation.
    entries: Vec<Entry>,
    notices: HashMap<ConversationId, Vec<Notice>>,
    /// The presence of the other user of the open conversation.
    presence: Option<Presence>,
    input: String,
    /// The draft of the open conversation, as it is on all devices.
    draft: String,
    note: String,
    /// Number of lines between the newest line and the bottom of the window.
    scroll: usize,
    /// Width and height of the window with messages, in columns and lines.
    width: usize,
    height: usize,
}

impl Screen {
    fn new(own: String) -> Self {
        Self { own, ..Self::default() }
    }

    /// Takes over the list of conversations.
    fn show_list(&mut self) {
        let Some(list) = &self.list else { return };
        self.chats = list.items().iter().map(Chat::of).collect();
        self.show_open();
    }

    /// Takes over the state of the open conversation from the list.
    fn show_open(&mut self) {
        if let Some(open) = &mut self.open
            && let Some(known) = self.chats.iter().find(|chat| chat.id == open.id)
        {
            open.clone_from(known);
            if open.draft != self.draft {
                // Another device changed it. A text that was written here meanwhile stays.
                if self.input == self.draft {
                    self.input.clone_from(&open.draft);
                }
                self.draft.clone_from(&open.draft);
            }
        }
    }

    /// Returns the number of lines of the open conversation.
    fn line_count(&self) -> usize {
        lines(&self.entries, self.width).len()
    }

    /// Takes over the timeline of the open conversation.
    fn show_timeline(&mut self) {
        let (Some(open), Some(timeline)) = (&self.open, &self.timeline) else {
            self.entries.clear();
            return;
        };
        let notices = self.notices.get(&open.id).map(Vec::as_slice).unwrap_or_default();
        let after = |id: Option<MessageId>| {
            let notices = notices.iter().filter(move |notice| notice.after == id);
            notices.map(|notice| Entry::notice(notice.text.clone()))
        };
        let mut entries: Vec<Entry> = after(None).collect();
        for item in timeline.items() {
            entries.push(Entry::of(item));
            entries.extend(after(Some(item.message.id)));
        }
        self.entries = entries;
    }

    /// Adds a notice to a conversation.
    fn notice_in(&mut self, id: ConversationId, text: String) {
        let is_open = self.open.as_ref().is_some_and(|open| open.id == id);
        let last = self.entries.iter().rev().find_map(|entry| entry.id);
        let notices = self.notices.entry(id).or_default();
        let before = notices.last().and_then(|notice| notice.after);
        notices.push(Notice { after: if is_open { last } else { before }, text });
        let excess = notices.len().saturating_sub(NOTICES);
        notices.drain(..excess);
        if is_open {
            self.show_timeline();
        } else {
            self.note = notices.last().map(|notice| notice.text.clone()).unwrap_or_default();
        }
    }

    /// Adds a notice to the conversation with a user.
    fn notice(&mut self, user: &User, text: String) {
        match self.chats.iter().find(|chat| chat.peer == Some(user.id)).map(|chat| chat.id) {
            Some(id) => self.notice_in(id, text),
            None => self.note = text,
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match event {
            Event::Connected => self.online = true,
            Event::Disconnected => (self.online, self.presence) = (false, None),
            Event::Refused { reason, .. } => self.note = format!("refused: {}", reason.name()),
            Event::IdentityChanged { user } => {
                self.notice(user, format!("the keys of {user} changed: compare safety numbers"));
            }
            Event::DeviceAdded { user, device } => {
                self.notice(user, format!("{user} added device {}", device.get()));
            }
            // Nothing reminds of a user that was blocked, and of what was meant to go.
            Event::Gap {
                reason: GapReason::Withheld | GapReason::Deleted | GapReason::Disappeared, ..
            } => {}
            Event::Gap { conversation, from_seq, to_seq, reason } => {
                let text = format!("messages {from_seq} to {to_seq} are missing: {}", reason.name());
                self.notice_in(*conversation, text);
            }
            Event::ServerRestored { conversation, after_seq } => {
                let text = format!(
                    "the server was restored from an older copy: it lost the messages after number {after_seq}, this device \
                     keeps them"
                );
                self.notice_in(*conversation, text);
            }
            Event::Integrity { conversation, violation, .. } => {
                let text =
                    format!("messages were dropped, swapped or replaced on the way: {}", violation.name());
                self.notice_in(*conversation, text);
            }
            Event::DeviceExcluded { user, device } => {
                let text = format!("device {} of {user} cannot receive messages now", device.get());
                self.notice(user, text);
            }
            Event::SessionDegraded { user, .. } => {
                self.notice(user, format!("a session with {user} began without a one-time prekey"));
            }
            Event::Slow => self.note = "the link is slow: messages arrive late".into(),
            Event::ClockWrong { ahead_ms } => {
                let (minutes, way) =
                    (ahead_ms.unsigned_abs() / 60_000, if *ahead_ms > 0 { "ahead" } else { "behind" });
                self.note =
                    format!("the clock of this device is {minutes} min {way}: using the server's time");
            }
            Event::Typing { user, .. } => self.note = format!("{user} is typing …"),
            Event::Presence { user, presence } => {
                if self.open.as_ref().is_some_and(|open| open.peer == Some(user.id)) {
                    self.presence = Some(*presence);
                }
            }
            Event::Throttled { retry_after } => {
                self.note =
                    format!("slowed by the server: sending continues in {} s", retry_after.as_secs() + 1);
            }
            // The list and the timeline show it.
            Event::Message(_) | Event::Recovered(_) => {}
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
        let names = self.listed().map(|chat| {
            let line = Line::from(chat.line());
            if self.open.as_ref().is_some_and(|open| open.id == chat.id) { line.bold() } else { line }
        });
        frame.render_widget(List::new(names).block(Block::bordered().title("chats")), left);
        self.draw_messages(frame, right);
        let help = match &self.open {
            Some(chat) if chat.relation == Relation::Stranger && !chat.is_group() => {
                format!("message request of {}: /accept, /block, /report, or answer", chat.name)
            }
            Some(chat) if chat.relation == Relation::Blocked => format!("{} is blocked: /unblock", chat.name),
            Some(chat) => {
                format!("to {} · enter sends · /to NAME · tab · page up · ctrl-c quits", chat.full_name())
            }
            None => "no recipient: /to NAME · tab next chat · ctrl-c quits".to_owned(),
        };
        // The end of a long line stays visible. A pasted newline is part of the message.
        let input = printable(&self.input);
        let width = usize::from(bottom.width.saturating_sub(3));
        let hidden = input.chars().count().saturating_sub(width);
        let shown: String = input.chars().skip(hidden).chain(['▏']).collect();
        let help = printable(&help);
        frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(help)), bottom);
    }

    fn draw_messages(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.height = usize::from(area.height.saturating_sub(2));
        let title = match (&self.open, self.presence) {
            (None, _) => "no chat is open".to_owned(),
            (Some(chat), Some(presence)) => format!("{} — {}", chat.name, presence_text(presence)),
            (Some(chat), None) => chat.full_name(),
        };
        self.width = usize::from(area.width.saturating_sub(2));
        let lines = lines(&self.entries, self.width);
        self.scroll = self.scroll.min(lines.len().saturating_sub(self.height));
        let end = lines.len() - self.scroll;
        let shown: Vec<Line<'_>> = lines[end.saturating_sub(self.height)..end]
            .iter()
            .map(|line| Line::from(line.as_str()))
            .collect();
        let title = printable(&title);
        frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(title)), area);
    }

    /// Returns the conversations that the list shows: not the archived ones.
    fn listed(&self) -> impl Iterator<Item = &Chat> {
        let open = self.open.as_ref().map(|open| open.id);
        self.chats.iter().filter(move |chat| !chat.is_archived || Some(chat.id) == open)
    }

    /// Returns the conversation after the open one.
    fn next(&self) -> Option<Chat> {
        let listed: Vec<&Chat> = self.listed().collect();
        let at = listed.iter().position(|chat| self.open.as_ref().is_some_and(|open| open.id == chat.id));
        let next = at.map_or(0, |at| at + 1) % listed.len().max(1);
        listed.get(next).map(|chat| (*chat).clone())
    }
}

/// Waits for a change of the list of conversations. Returns `false` once the client is closed.
async fn list_changed(list: &mut Option<ConversationList>) -> chat_client::Result<bool> {
    match list {
        Some(list) => Ok(list.next().await?.is_some()),
        None => std::future::pending().await,
    }
}

/// Waits for a change of the open conversation. Returns `false` once the client is closed.
async fn timeline_changed(timeline: &mut Option<Timeline>) -> chat_client::Result<bool> {
    match timeline {
        Some(timeline) => Ok(timeline.next().await?.is_some()),
        None => std::future::pending().await,
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.open().await?;
    let mut events = client.events_after(Some(client.last_event()));
    let mut screen = Screen::new(client.handle().as_str().to_owned());
    screen.list = Some(client.conversation_list().await.map_err(text)?);
    screen.show_list();
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
        let Screen { list, timeline, .. } = &mut screen;
        let wakeup = tokio::select! {
            next = events.next() => next.map(|next| next.map(|next| Wakeup::Event(Box::new(next.event)))),
            changed = list_changed(list) => changed.map(|is_open| is_open.then_some(Wakeup::List)),
            changed = timeline_changed(timeline) => changed.map(|is_open| is_open.then_some(Wakeup::Timeline)),
            () = &mut terminated => Ok(None),
            input = keys.next() => Ok(input.and_then(std::result::Result::ok).map(Wakeup::Input)),
        };
        match wakeup {
            Ok(Some(wakeup)) => {
                if !handle(&client, &mut screen, wakeup).await {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(text(error).into()),
        }
    };
    let _ = crossterm::execute!(std::io::stdout(), DisableBracketedPaste);
    ratatui::restore();
    // A text that was not sent is kept.
    let left = leave(&client, &mut screen).await.map_err(|error| text(error).into());
    client.close().await;
    ended.and(left)
}

/// The reason why the screen is drawn again.
enum Wakeup {
    Event(Box<Event>),
    List,
    Timeline,
    Input(Input),
}

/// Carries out what happened. Returns `false` if the program ends.
async fn handle(client: &Client, screen: &mut Screen, wakeup: Wakeup) -> bool {
    match wakeup {
        Wakeup::Event(event) => screen.handle_event(&event),
        Wakeup::List => {
            screen.show_list();
            read(client, screen).await;
        }
        Wakeup::Timeline => {
            screen.show_timeline();
            read(client, screen).await;
        }
        Wakeup::Input(Input::Key(key)) if key.kind == KeyEventKind::Press => {
            return press(client, screen, key).await;
        }
        Wakeup::Input(Input::Paste(pasted)) => screen.input.push_str(&pasted.replace('\r', "\n")),
        Wakeup::Input(_) => {}
    }
    true
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
            if let Some(next) = screen.next()
                && let Err(error) = select(client, screen, next).await
            {
                screen.note = text(error);
            }
        }
        KeyCode::PageUp => older(client, screen).await,
        KeyCode::PageDown => newer(client, screen).await,
        KeyCode::End => newest(client, screen).await,
        KeyCode::Enter => enter(client, screen).await,
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::entered::{Change, Entered};
    use super::entry::tests::entry;
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
        screen.entries = (1..=9).map(|n| entry(n, &format!("line {n}"))).collect();
        screen.chats = vec![Chat::new(id, user, "bob".into())];
        screen.open = screen.next();
        let bottom = shown(&mut screen);
        assert!(
            bottom.contains("to bob") && bottom.contains("line 9") && !bottom.contains("line 5"),
            "{bottom}"
        );
        screen.scroll = 100;
        let top = shown(&mut screen);
        assert!(top.contains("line 1") && !top.contains("line 9"), "{top}");
        assert_eq!(screen.next().map(|chat| chat.id), Some(id));
    }

    #[test]
    fn draft_of_another_device_replaces_only_an_unchanged_input() {
        let mut screen = Screen::new("alice".into());
        let user = UserId::from_bytes([1; 16]);
        let chat = |draft: &str| Chat {
            draft: draft.into(),
            ..Chat::new(ConversationId::own(user), user, "bob".into())
        };
        let listed = |screen: &mut Screen, draft: &str| {
            screen.chats = vec![chat(draft)];
            screen.show_open();
            screen.input.clone()
        };
        screen.open = Some(chat(""));
        assert_eq!(listed(&mut screen, "from the phone"), "from the phone");
        assert_eq!(listed(&mut screen, "longer"), "longer");
        screen.input.push_str(" and here");
        assert_eq!(listed(&mut screen, ""), "longer and here", "a text that was written here stays");
    }

    #[test]
    fn list_marks_what_matters_and_hides_archived_chats() {
        let mut screen = Screen::new("alice".into());
        let chat = |n: u8, name: &str| {
            let user = UserId::from_bytes([n; 16]);
            Chat::new(ConversationId::own(user), user, name.into())
        };
        let bob = Chat { unread: 3, mentions: 1, is_muted: true, is_pinned: true, ..chat(1, "bob") };
        let carol = Chat { is_archived: true, ..chat(2, "carol") };
        let dave = Chat { relation: Relation::Stranger, ..chat(3, "da\u{202e}ve") };
        screen.chats = vec![bob, carol, dave];
        let lines: Vec<String> = screen.listed().map(Chat::line).collect();
        assert_eq!(lines, ["* bob (3 @1) muted", "? da\u{fffd}ve"]);
        screen.open = Some(screen.chats[1].clone());
        assert_eq!(screen.listed().count(), 3, "the open one is shown");
    }
}
