//! The clients: each asks random things of random sandboxes, whether or not the daemon is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sandkeeper::spec::ProcessSpec;
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::generated::{ListRequest, exec_response};
use sandkeeper::{Error, ErrorKind};
use tokio::sync::RwLock;

use crate::book::{Book, Kind, Page, Wrong, add};
use crate::dice::Dice;
use crate::model::{Outcome, Stage, Step, Verb};

/// A call that has not come back by then is stuck: every verb has a shorter deadline of its own, however slow the machine.
const STUCK: Duration = Duration::from_secs(75);

/// What all clients share.
pub(crate) struct Crowd {
    pub(crate) book: Arc<Book>,
    pub(crate) socket: std::path::PathBuf,
    /// Held for reading during each call; whoever holds it for writing has all of them wait.
    pub(crate) gate: Arc<RwLock<()>>,
    pub(crate) over: AtomicBool,
}

struct Asker {
    number: usize,
    clients: usize,
    crowd: Arc<Crowd>,
    dice: Dice,
    line: Option<Client>,
}

/// Asks until it is over.
pub(crate) async fn ask(crowd: Arc<Crowd>, number: usize, clients: usize, dice: Dice) {
    let mut asker = Asker { number, clients, crowd: Arc::clone(&crowd), dice, line: None };
    while !crowd.over.load(Ordering::Acquire) {
        let gate = Arc::clone(&crowd.gate).read_owned().await;
        if asker.line.is_none() {
            asker.line = Client::connect(&crowd.socket).await.ok();
        }
        let Some(mut line) = asker.line.clone() else {
            drop(gate);
            tokio::time::sleep(Duration::from_millis(3)).await;
            continue;
        };
        if tokio::time::timeout(STUCK, asker.turn(&mut line)).await.is_err() {
            let found = format!("a call of client {number} has not come back in {STUCK:?}");
            crowd.book.fault(Wrong::Stuck, found, None);
        }
        drop(gate);
        if asker.dice.percent(30) {
            tokio::time::sleep(asker.dice.time(Duration::from_millis(10))).await;
        }
    }
}

impl Asker {
    async fn turn(&mut self, line: &mut Client) {
        let crowd = Arc::clone(&self.crowd);
        let book = &crowd.book;
        let own = self.number;
        let clients = self.clients;
        let mine: Vec<&Page> = (0..book.pages.len())
            .filter(|index| book.pages[*index].shared || index % clients == own)
            .map(|index| &book.pages[index])
            .collect();
        if mine.is_empty() {
            return;
        }
        let page = *self.dice.choose(&mine);
        match self.dice.below(100) {
            0..72 => self.command(line, page).await,
            72..84 => self.look(line, page).await,
            84..88 => self.wait(line, page).await,
            88..92 => self.list(line).await,
            _ => self.program(line, page).await,
        }
    }

    async fn command(&mut self, line: &mut Client, page: &Page) {
        use Verb::*;
        let verbs = [
            Run, Run, Run, Run, Run, Start, Start, Stop, Stop, Shutdown, Shutdown, Pause, Pause, Pause,
            Resume, Resume, Resume, Define, Define, Prepare, Create,
        ];
        let verb = *self.dice.choose(&verbs);
        let graces = [Duration::ZERO, Duration::ZERO, Duration::from_millis(40), Duration::from_millis(400)];
        let grace = Some(*self.dice.choose(&graces));
        let (key, spec) = (&page.key, &page.spec);
        let called = self.crowd.book.moment();
        let answer = match verb {
            Define => line.define(key, spec).await.map(|()| None),
            Prepare => line.create(key, Some(spec)).await.map(|()| None),
            Create => line.create(key, None).await.map(|()| None),
            Run => line.start(key, Some(spec)).await.map(Some),
            Start => line.start(key, None).await.map(Some),
            Pause => line.pause(key).await.map(|()| None),
            Resume => line.resume(key).await.map(|()| None),
            Stop => line.stop(key, grace).await.map(|()| None),
            Shutdown => line.shutdown(key, grace).await.map(|()| None),
        };
        let answered = self.crowd.book.moment();
        let outcome = match answer {
            Ok(started) => Outcome::Done(started.map(|started| (started.life, started.pid))),
            Err(error) => self.judge(page, verb, &error),
        };
        if matches!(outcome, Outcome::Lost(_)) {
            self.line = None;
        }
        self.crowd.book.enter(page, self.number, Step { verb, outcome, called, answered });
    }

    /// What an error says of the command.
    fn judge(&self, page: &Page, verb: Verb, error: &Error) -> Outcome {
        let text = format!("{:?}: {error}", error.kind());
        match error.kind() {
            // Refused by a daemon that is not ready for it, which says when to try again.
            // What it is to be was noted before what was to be made of it was refused.
            ErrorKind::Unavailable if error.retry_hint().is_some() && verb == Verb::Prepare => {
                Outcome::Failed(text)
            }
            ErrorKind::Unavailable if error.retry_hint().is_some() => Outcome::Refused(text),
            ErrorKind::NotFound | ErrorKind::ResourceExhausted => Outcome::Refused(text),
            // It was thawed, or about to be frozen, and ended.
            ErrorKind::FailedPrecondition if text.contains("its instance ended") => Outcome::Failed(text),
            ErrorKind::FailedPrecondition if matches!(verb, Verb::Pause | Verb::Resume) => {
                Outcome::Refused(text)
            }
            ErrorKind::FailedPrecondition | ErrorKind::Aborted => Outcome::Failed(text),
            ErrorKind::Internal
            | ErrorKind::AlreadyExists
            | ErrorKind::InvalidArgument
            | ErrorKind::PermissionDenied
            | ErrorKind::Unimplemented => {
                self.crowd.book.fault(Wrong::Answer, format!("{} {verb:?}: {text}", page.key), Some(page));
                Outcome::Lost(text)
            }
            ErrorKind::DeadlineExceeded => {
                *self
                    .crowd
                    .book
                    .errors
                    .lock()
                    .expect("no panic")
                    .entry(format!("{verb:?}: deadline"))
                    .or_default() += 1;
                Outcome::Lost(text)
            }
            _ => Outcome::Lost(text),
        }
    }

    /// Asks how it is, and compares where that is certain.
    async fn look(&mut self, line: &mut Client, page: &Page) {
        let certain = page.certain();
        add(&self.crowd.book.counts.looks);
        let found = if self.dice.percent(50) {
            match line.status(&page.key).await {
                Ok(status) if status.marks.iter().any(|mark| mark == "recovering") => return,
                Ok(status) => {
                    let life = status.life;
                    (Stage::of_phase(&status.phase), Some(life), format!("{} life {life}", status.phase))
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    (Some(Stage::Gone), None, error.to_string())
                }
                Err(_) => return self.line = None,
            }
        } else {
            match line.ping(&page.key).await {
                Ok(pong) if pong.marks.iter().any(|mark| mark == "recovering") => return,
                Ok(pong) => {
                    (Stage::of_phase(&pong.phase), Some(pong.life), format!("{} at a ping", pong.phase))
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    (Some(Stage::Gone), None, error.to_string())
                }
                // It is there, and does not run.
                Err(error) if error.kind() == ErrorKind::FailedPrecondition => return,
                Err(_) => return self.line = None,
            }
        };
        let Some(certain) = certain else { return };
        let (stage, life, text) = found;
        let Some(stage) = stage else {
            let found = format!("{}: nothing is under way, and it is {text}", page.key);
            if page.kind != Kind::Mortal {
                self.crowd.book.fault(Wrong::Answer, found, Some(page));
            }
            return;
        };
        if crate::model::matching(&certain, stage, life.unwrap_or(0)).is_empty() {
            let found = format!("{}: it must be one of {certain:?}, and it is {text}", page.key);
            self.crowd.book.fault(Wrong::Lost, found, Some(page));
        }
    }

    /// Waits for its end, not for long.
    async fn wait(&mut self, line: &mut Client, page: &Page) {
        let limit = self.dice.time(Duration::from_millis(60));
        let Ok(Ok(exit)) = tokio::time::timeout(limit, line.wait(&page.key)).await else { return };
        if exit.status == 0 && exit.reason != "exited" && page.kind != Kind::Sleeper {
            let found = format!("{}: an end of status 0, and for the reason {}", page.key, exit.reason);
            self.crowd.book.fault(Wrong::Answer, found, Some(page));
        }
    }

    async fn list(&mut self, line: &mut Client) {
        if line.list(ListRequest::default()).await.is_err() {
            self.line = None;
        }
    }

    /// Runs a program inside; sometimes goes away before it ends.
    async fn program(&mut self, line: &mut Client, page: &Page) {
        if !page.kind.has_heart() {
            return;
        }
        let seconds = if self.dice.percent(40) { "30" } else { "0" };
        let process = ProcessSpec::new(["/bin/sleep", seconds]);
        let limit = self.dice.time(Duration::from_millis(80));
        let _gone_away = tokio::time::timeout(limit, async {
            let mut output = line.exec(&page.key, &process, false, None).await?;
            while let Some(part) = output.next().await? {
                if let Some(exec_response::Message::Exit(exit)) = part.message {
                    let is_killed = exit.status >= 128;
                    if exit.status != 0 && !is_killed {
                        let found = format!("{}: a program ended with {}", page.key, exit.status);
                        self.crowd.book.fault(Wrong::Answer, found, Some(page));
                    }
                    add(&self.crowd.book.counts.programs);
                }
            }
            Ok::<(), Error>(())
        })
        .await;
    }
}
