//! Somebody with a role's credentials and no good intentions: a client of the broker that sends
//! what none of our programs would. It speaks the broker's protocol itself, so that no client
//! library stands between an attack and the broker.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::played::{PlayError, Played};

/// An answer of a broker on this machine; what does not come in this time does not come.
const ANSWER: Duration = Duration::from_secs(5);
/// How long one look for bytes takes.
const LOOK: Duration = Duration::from_millis(50);

/// A message that came.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// Where it came.
    pub(super) subject: String,
    /// Where its answer should go; empty without.
    pub(super) reply: String,
    /// What it says, without headers.
    pub(super) payload: Vec<u8>,
}

impl Heard {
    /// What it says, as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// What it says, as a document; null when it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    /// Whether JetStream says in it that it did not do what it was asked.
    pub(super) fn is_error(&self) -> bool {
        self.text().contains("\"error\"")
    }
}

/// What the broker objects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// A message's subject.
    Publish,
    /// A message's reply subject.
    Reply,
    /// A subscription.
    Subscribe,
}

/// A connection with a user's name and password. Everything is asked of the broker at once, and
/// [`settle`](Self::settle) waits for its verdicts.
#[derive(Debug)]
pub(super) struct Intruder {
    stream: TcpStream,
    buffer: Vec<u8>,
    is_greeted: bool,
    pongs: u64,
    next_sid: u64,
    listens: bool,
    /// Where it hears answers.
    pub(super) inbox: String,
    /// What came, until somebody takes it.
    pub(super) heard: Vec<Heard>,
    /// What the broker has refused.
    pub(super) refused: Vec<(Verb, String)>,
}

/// A number of random bytes in hexadecimal.
pub(super) fn hexadecimal(bytes: usize) -> String {
    (0..bytes).map(|_| format!("{:02x}", fastrand::u8(..))).collect()
}

/// Something that no message has had.
pub(super) fn mark() -> String {
    hexadecimal(6)
}

impl Intruder {
    /// Connects as a user, who hears answers below `inbox`.
    pub(super) fn connect(port: u16, user: &str, password: &str, inbox: &str) -> Played<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut one = Self {
            stream,
            buffer: Vec::new(),
            is_greeted: false,
            pongs: 0,
            next_sid: 0,
            listens: false,
            inbox: format!("{inbox}.{}", hexadecimal(8)),
            heard: Vec::new(),
            refused: Vec::new(),
        };
        one.must(|one| one.is_greeted, "the broker's greeting")?;
        let options = json!({
            "verbose": false, "user": user, "pass": password, "headers": true,
            "no_responders": true, "protocol": 1,
        });
        one.send(format!("CONNECT {options}\r\n").as_bytes())?;
        one.settle()?;
        Ok(one)
    }

    /// Sends a message, perhaps with a reply subject of its own choice; none when that is empty.
    pub(super) fn publish(&mut self, subject: &str, payload: &[u8], reply: &str) -> Played<()> {
        let space = if reply.is_empty() { "" } else { " " };
        let mut whole = format!("PUB {subject} {reply}{space}{}\r\n", payload.len()).into_bytes();
        whole.extend(payload);
        whole.extend(b"\r\n");
        self.send(&whole)
    }

    /// Asks to hear a subject, in a queue group unless that is empty.
    pub(super) fn subscribe(&mut self, subject: &str, queue: &str) -> Played<()> {
        self.next_sid += 1;
        let space = if queue.is_empty() { "" } else { " " };
        self.send(format!("SUB {subject} {queue}{space}{}\r\n", self.next_sid).as_bytes())
    }

    /// Waits until the broker has done all that was asked before: its objections and what it
    /// delivers are here then.
    pub(super) fn settle(&mut self) -> Played<()> {
        let wanted = self.pongs + 1;
        self.send(b"PING\r\n")?;
        self.must(|one| one.pongs >= wanted, "the broker's PONG")
    }

    /// Asks to hear a subject, and waits until that is so.
    pub(super) fn listen(&mut self, subject: &str) -> Played<()> {
        self.subscribe(subject, "")?;
        self.settle()
    }

    /// Sends a message, and says whether the broker took it.
    pub(super) fn may_publish(
        &mut self,
        subject: &str,
        payload: &[u8],
        reply: &str,
    ) -> Played<bool> {
        self.publish(subject, payload, reply)?;
        self.settle()?;
        Ok(!self.is_refused(Verb::Publish, subject))
    }

    /// Whether the broker has refused something.
    pub(super) fn is_refused(&self, verb: Verb, subject: &str) -> bool {
        self.refused.iter().any(|(of, refused)| *of == verb && refused == subject)
    }

    /// Sends a request and gives its answer, if one comes and the broker lets it be asked.
    pub(super) fn ask(&mut self, subject: &str, question: &[u8]) -> Played<Option<Heard>> {
        if !self.listens {
            self.subscribe(&format!("{}.*", self.inbox.clone()), "")?;
            self.listens = true;
        }
        let reply = format!("{}.{}", self.inbox, hexadecimal(4));
        if !self.may_publish(subject, question, &reply)? {
            return Ok(None);
        }
        let is_it = |heard: &Heard| heard.subject == reply;
        self.until(|one| one.heard.iter().any(is_it), ANSWER)?;
        Ok(self.heard.iter().find(|heard| is_it(heard)).cloned())
    }

    /// The same with a document, and it has to be answered.
    pub(super) fn ask_for(&mut self, subject: &str, question: &Value) -> Played<Value> {
        let answer = self.ask(subject, question.to_string().as_bytes())?;
        let unanswered = || PlayError::Failed(format!("nobody answers {subject}"));
        Ok(answer.ok_or_else(unanswered)?.json())
    }

    /// Listens until something holds, and says whether it came to that.
    pub(super) fn until(
        &mut self,
        holds: impl Fn(&Self) -> bool,
        within: Duration,
    ) -> Played<bool> {
        let deadline = Instant::now() + within;
        while !holds(self) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            self.receive()?;
        }
        Ok(true)
    }

    fn must(&mut self, holds: impl Fn(&Self) -> bool, what: &str) -> Played<()> {
        match self.until(holds, ANSWER)? {
            true => Ok(()),
            false => Err(PlayError::Failed(format!("{what} did not come"))),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Played<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    fn receive(&mut self) -> Played<()> {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(PlayError::Failed("the broker has closed the connection".into())),
            Ok(count) => self.buffer.extend(&chunk[..count]),
            Err(error) if is_late(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        while let Some(after) = self.read_operation(rest)? {
            rest = after;
        }
        self.buffer = rest.to_vec();
        Ok(())
    }

    /// Reads what the broker says first, and gives what follows; `None` while it is not there
    /// whole.
    fn read_operation<'b>(&mut self, bytes: &'b [u8]) -> Played<Option<&'b [u8]>> {
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let rest = &bytes[end + 2..];
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "MSG" | "HMSG" => {
                let length = |word: &str| word.parse::<usize>().expect("the broker says lengths");
                let whole = length(words[words.len() - 1]);
                if rest.len() < whole + 2 {
                    return Ok(None);
                }
                // MSG subject sid [reply] bytes, HMSG subject sid [reply] head bytes
                let is_headed = words[0] == "HMSG";
                let head = if is_headed { length(words[words.len() - 2]) } else { 0 };
                let has_reply = words.len() == if is_headed { 6 } else { 5 };
                self.heard.push(Heard {
                    subject: words[1].to_owned(),
                    reply: if has_reply { words[3].to_owned() } else { String::new() },
                    payload: rest[head..whole].to_vec(),
                });
                return Ok(Some(&rest[whole + 2..]));
            }
            "-ERR" => self.object(&line)?,
            "INFO" => self.is_greeted = true,
            "PONG" => self.pongs += 1,
            "PING" => self.send(b"PONG\r\n")?,
            _ => {}
        }
        Ok(Some(rest))
    }

    /// Reads `-ERR 'Permissions Violation for Publish to "subject"'`; anything else that the broker
    /// objects to is an end.
    fn object(&mut self, line: &str) -> Played<()> {
        let verbs = [
            ("Publish to", Verb::Publish),
            ("Publish with Reply of", Verb::Reply),
            ("Subscription to", Verb::Subscribe),
        ];
        for (words, verb) in verbs {
            let begin = format!("Permissions Violation for {words} \"");
            if let Some((subject, _)) =
                line.split_once(&begin).and_then(|(_, rest)| rest.split_once('"'))
            {
                self.refused.push((verb, subject.to_owned()));
                return Ok(());
            }
        }
        Err(PlayError::Failed(line.to_owned()))
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
