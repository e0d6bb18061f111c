//! A build for a person: its progress on standard error, its result on standard output.
//!
//! On a terminal, `screen` draws what runs now. Elsewhere each event is a plain line. Strangers' control characters have no effect,
//! and a closed terminal or pipe fails nothing.

mod result;
mod screen;

use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Listener;
use crate::event::Event;
use crate::text;

pub use result::print_report;
use screen::Screen;

/// How often the screen is drawn.
const TICK: Duration = Duration::from_millis(100);

/// What a person's terminal wants.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Colors, where a terminal shows them.
    pub colors: bool,
    /// Rows that are drawn again, where a terminal shows them.
    pub redrawing: bool,
}

/// Progress on standard error.
#[derive(Debug)]
pub struct Terminal {
    /// `None`: plain lines.
    screen: Option<Arc<Mutex<Screen>>>,
}

impl Terminal {
    /// Draws a screen if standard error is a terminal that wants it, and writes plain lines otherwise.
    pub fn new(wishes: Wishes) -> Self {
        let is_drawn = wishes.redrawing && std::io::stderr().is_terminal();
        let screen = is_drawn.then(|| Arc::new(Mutex::new(Screen::new(wishes.colors))));
        screen.iter().for_each(keep_drawing);
        Self { screen }
    }
}

impl Listener for Terminal {
    fn on_event(&self, event: &Event) {
        let Some(screen) = &self.screen else {
            return plain(event).into_iter().for_each(|line| write(&format!("{line}\n")));
        };
        let mut screen = lock(screen);
        screen.take_in(event, Instant::now());
        if screen.is_idle() {
            // What the command prints next stands below it.
            write(&screen.redrawn(Instant::now(), screen::size()));
        }
    }
}

/// Draws the screen until its terminal is dropped.
fn keep_drawing(screen: &Arc<Mutex<Screen>>) {
    let screen = Arc::downgrade(screen);
    let draw = move || {
        while let Some(screen) = screen.upgrade() {
            let mut drawn = lock(&screen);
            write(&drawn.redrawn(Instant::now(), screen::size()));
            drop(drawn);
            drop(screen);
            std::thread::sleep(TICK);
        }
    };
    // Without the thread, the screen is drawn when a phase ends.
    drop(std::thread::Builder::new().name("terminal".into()).spawn(draw));
}

fn lock(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A closed terminal must not fail a build.
fn write(text: &str) {
    if !text.is_empty() {
        drop(std::io::stderr().lock().write_all(text.as_bytes()));
    }
}

/// An event as plain lines.
fn plain(event: &Event) -> Option<String> {
    let line = match event {
        Event::PhaseEnded(phase, took) => format!("{} {}", phase.name(), seconds(*took)),
        Event::StepEnded { step, is_cached, took, error } => {
            let result = match (error, is_cached) {
                (Some(error), _) => format!("failed: {error}"),
                (None, true) => "cached".into(),
                (None, false) => seconds(*took),
            };
            format!("{} {result}", step.title())
        }
        Event::StepOutput { step, lines } => {
            let label = step.label();
            lines.iter().map(|line| format!("{label} | {line}")).collect::<Vec<_>>().join("\n")
        }
        Event::Warning(warning) => warning.to_string(),
        Event::Notice(notice) => note(notice),
        Event::PhaseStarted(_)
        | Event::Fetching { .. }
        | Event::StepStarted(_)
        | Event::Targets(_)
        | Event::TargetDone(_)
        | Event::TargetEnded(_)
        | Event::Caching { .. }
        | Event::CachesMoved { .. }
        | Event::BuildId(_)
        | Event::Commit { .. }
        | Event::Placed(_)
        | Event::Superseded(_)
        | Event::Coalesced(_)
        | Event::ContextSent { .. }
        | Event::PodLost { .. }
        | Event::NoticeLeftOut
        | Event::Ended { .. } => return None,
    };
    Some(text::plain(&line).into_owned())
}

fn note(notice: &str) -> String {
    format!("note: {notice}")
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// A color of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Color {
    Red,
    Green,
    Yellow,
    Blue,
    Gray,
}

impl Color {
    /// A plain text in this color.
    fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Blue => 34,
            Self::Gray => 90,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
