//! nginx as a proxy, and what it answers to a case of HTTP/1.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use natsway_testkit::{Process, eventually, free_port};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::stand::DEADLINE;

/// The case with the longest wait has a body that does not go on.
const ANSWER: Duration = Duration::from_secs(4);

/// How long more answers than are expected are waited for.
const MORE: Duration = Duration::from_millis(150);

/// The bounds that the test of the gateway gives it.
const CONFIG: &str = r#"
daemon off;
master_process off;
pid HOME/nginx.pid;
error_log HOME/error.log;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path HOME/body;
    proxy_temp_path HOME/proxy;
    fastcgi_temp_path HOME/fastcgi;
    uwsgi_temp_path HOME/uwsgi;
    scgi_temp_path HOME/scgi;
    client_header_buffer_size 512;
    large_client_header_buffers 4 2k;
    client_max_body_size 1000;
    client_body_timeout 1s;
    lingering_timeout 1s;
    server {
        listen 127.0.0.1:PORT;
        location / {
            proxy_pass http://127.0.0.1:UPSTREAM;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
        }
    }
}
"#;

/// What stands for so many times the letter x.
const FILL: char = '\u{2026}';

/// A line of the file of cases, as far as nginx is asked.
#[derive(Debug, Deserialize)]
pub(super) struct Case {
    /// The section that rules it.
    pub(super) rfc: String,
    pub(super) name: String,
    send: String,
    expect: Vec<String>,
    #[serde(default)]
    fill: usize,
    #[serde(default)]
    shut: bool,
    /// What nginx answers, where that is something else.
    pub(super) nginx: Option<Vec<u16>>,
}

impl Case {
    /// Reads a line.
    ///
    /// # Errors
    /// It is no case.
    pub(super) fn read(line: &str) -> anyhow::Result<Self> {
        serde_json::from_str(line).with_context(|| line.to_owned())
    }

    /// Lists the statuses of the answers that are expected.
    pub(super) fn expected(&self) -> Vec<u16> {
        let status = |answer: &String| answer.split(' ').next()?.parse().ok();
        self.expect.iter().filter_map(status).collect()
    }

    /// Gives what is sent: each character is the byte of its number.
    fn bytes(&self) -> Vec<u8> {
        let fill = "x".repeat(self.fill);
        self.send
            .replace(FILL, &fill)
            .chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?'))
            .collect()
    }

    /// Gives the line with what nginx answers at its end, if that is something else.
    pub(super) fn line_with(&self, line: &str, answer: &[u16]) -> String {
        let without = match line.split_once(", \"nginx\": [") {
            Some((before, _)) => before,
            None => line.strip_suffix('}').unwrap_or(line),
        };
        if answer == self.expected() {
            return format!("{without}}}");
        }
        let statuses: Vec<String> = answer.iter().map(u16::to_string).collect();
        format!("{without}, \"nginx\": [{}]}}", statuses.join(", "))
    }
}

/// Finds the program.
pub(super) fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NATSWAY_NGINX") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nginx")).find(|program| program.is_file())
}

/// Asks every case, one after the other, and gives the statuses that come back.
///
/// # Errors
/// The system's.
pub(super) async fn ask_all(
    program: &Path,
    cases: &[Case],
    home: &Path,
) -> anyhow::Result<Vec<Vec<u16>>> {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (port, upstream_port) = (free_port(), upstream.local_addr()?.port());
    let _upstream = AbortOnDropHandle::new(tokio::spawn(answer_all(upstream)));
    let (config, errors) = (home.join("nginx.conf"), home.join("error.log"));
    let text =
        CONFIG.replace("HOME", &home.display().to_string()).replace("PORT", &port.to_string());
    std::fs::write(&config, text.replace("UPSTREAM", &upstream_port.to_string()))?;
    let _nginx = Process::builder(program)
        .arg("-p")
        .arg(home)
        .arg("-c")
        .arg(&config)
        .arg("-e")
        .arg(&errors)
        .start();
    eventually(DEADLINE, async || {
        let log = || std::fs::read_to_string(&errors).unwrap_or_default();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|error| format!("{error}: {}", log()))
    })
    .await;
    let mut answers = Vec::new();
    for case in cases {
        answers.push(ask(port, case).await?);
    }
    Ok(answers)
}

/// Answers 200 to whatever nginx lets through. It is no server of HTTP that would judge what comes:
/// that is nginx's part.
async fn answer_all(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move { answer(stream).await.ok() });
    }
}

/// Reads a request, whatever is in it, answers it and closes, as nginx asks for.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut received, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while !is_whole(&received) {
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            count => received.extend_from_slice(&chunk[..count]),
        }
    }
    let body = if received.starts_with(b"HEAD ") { "" } else { "ok" };
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}

/// Whether a request's head is there, and as much behind it as it says.
fn is_whole(received: &[u8]) -> bool {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    received.len() >= end + 4 + length.unwrap_or(0)
}

async fn ask(port: u16, case: &Case) -> anyhow::Result<Vec<u16>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    // Refused before all was sent: the answer says so.
    if stream.write_all(&case.bytes()).await.is_ok() && case.shut {
        stream.shutdown().await.ok();
    }
    let ends = Instant::now() + ANSWER;
    let (mut received, mut found) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let deadline = if found.len() >= case.expect.len() { Instant::now() + MORE } else { ends };
        match timeout_at(deadline, stream.read(&mut chunk)).await {
            Ok(Ok(count)) if count > 0 => received.extend_from_slice(&chunk[..count]),
            _ => return Ok(found),
        }
        found = statuses(&received);
    }
}

/// Finds the status of every answer: `HTTP/1.1 200`.
fn statuses(received: &[u8]) -> Vec<u16> {
    let status = |window: &[u8]| {
        let text = std::str::from_utf8(window).ok()?;
        let rest = text.strip_prefix("HTTP/1.0 ").or_else(|| text.strip_prefix("HTTP/1.1 "))?;
        rest.parse().ok()
    };
    received.windows("HTTP/1.1 200".len()).filter_map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"rfc": "9112 2.3", "name": "n", "send": "GET \u2026\u00ff", "fill": 3, "expect": ["400"], "end": "close", "nginx": [200, 505]}"#;

    #[test]
    fn a_case_is_sent_by_its_bytes() {
        let case = Case::read(LINE).unwrap();
        assert_eq!(case.bytes(), b"GET xxx\xff");
        assert_eq!((case.expected(), case.nginx), (vec![400], Some(vec![200, 505])));
    }

    #[test]
    fn what_nginx_answers_is_written_at_the_end_of_the_line_and_nothing_else_changes() {
        let case = Case::read(LINE).unwrap();
        assert_eq!(case.line_with(LINE, &[200, 505]), LINE);
        let same = case.line_with(LINE, &[400]);
        assert_eq!(same, LINE.replace(", \"nginx\": [200, 505]", ""));
        assert_eq!(case.line_with(&same, &[505]), LINE.replace("200, 505", "505"));
    }

    #[test]
    fn a_request_is_whole_with_as_much_body_as_it_says() {
        assert!(!is_whole(b"GET / HTTP/1.1\r\nHost: a\r\n"));
        assert!(is_whole(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"));
        let post = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        assert!(is_whole(post) && !is_whole(&post[..post.len() - 1]));
    }

    #[test]
    fn every_answer_has_a_status() {
        assert_eq!(
            statuses(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nokHTTP/1.0 404 No"),
            [100, 200, 404]
        );
    }
}
