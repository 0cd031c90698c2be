//! A client that sends exactly the bytes that a test wants sent.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any time-out of the gateways under test.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the answer is a status alone, as hyper gives it for what it cannot parse.
    pub fn is_bare(&self) -> bool {
        self.body.is_empty()
            && self.header("content-type").is_none()
            && self.header("x-request-id").is_none()
    }

    /// The `code` of a problem document.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(document["status"], self.status);
        assert_eq!(document["request_id"].as_str(), self.header("x-request-id"));
        document["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new() })
    }

    pub async fn get(&mut self, path: &str) -> io::Result<Reply> {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await?;
        self.reply(false).await
    }

    pub async fn post(&mut self, path: &str, body: &str) -> io::Result<Reply> {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await?;
        self.reply(false).await
    }

    pub async fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    /// Sends text and reads one reply.
    pub async fn exchange(&mut self, text: &str) -> io::Result<Reply> {
        self.send(text).await?;
        self.reply(text.starts_with("HEAD")).await
    }

    /// Reads one reply; `bodiless` for one to HEAD.
    pub async fn reply(&mut self, bodiless: bool) -> io::Result<Reply> {
        let head_end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let head: Vec<u8> = self.unread.drain(..head_end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.split("\r\n");
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        if bodiless || status < 200 || status == 204 || status == 304 {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = self.chunks().await?;
        } else {
            let length =
                reply.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            while self.unread.len() < length {
                self.read_more().await?;
            }
            reply.body = self.unread.drain(..length).collect();
        }
        Ok(reply)
    }

    /// The raw chunks and trailers of a chunked body, as text for a test to look into.
    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let end = loop {
            let last = self.unread.starts_with(b"0\r\n").then_some(0);
            let last = last.or_else(|| find(&self.unread, b"\r\n0\r\n").map(|at| at + 2));
            if let Some(end) = last
                .and_then(|last| find(&self.unread[last..], b"\r\n\r\n").map(|at| last + at + 4))
            {
                break end;
            }
            self.read_more().await?;
        };
        Ok(self.unread.drain(..end).collect())
    }

    /// Whether the server has closed its side, waiting for that if need be.
    pub async fn is_closed(&mut self) -> bool {
        loop {
            match self.read_more().await {
                Ok(()) => {}
                Err(error) => return error.kind() != io::ErrorKind::TimedOut,
            }
        }
    }

    async fn read_more(&mut self) -> io::Result<()> {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        match read.map_err(|_| io::ErrorKind::TimedOut)?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
