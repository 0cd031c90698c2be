//! `apiproxy healthcheck`: whether the gateway of this machine is ready, for images without a
//! shell.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use natsway_boot::address;

/// How long each step may take: a container engine waits for seconds itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `healthcheck`.
#[derive(Args)]
pub struct HealthArgs {
    /// The gateway's admin address
    #[arg(
        long, env = "NATSWAY_ADMIN_LISTEN", value_name = "ADDRESS",
        default_value = "127.0.0.1:8081", value_parser = address
    )]
    admin_listen: SocketAddr,
}

impl HealthArgs {
    /// Asks, and says why it is not ready if it is not.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let address = reachable(self.admin_listen);
        let answer = ask(address).with_context(|| format!("admin address {address}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        print!("{body}");
        let ready = head.split(' ').nth(1) == Some("200");
        Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What listens on every address is asked on this machine's own.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_means_all_of_them_is_asked_here() {
        for (listen, asked) in [
            ("0.0.0.0:81", "127.0.0.1:81"),
            ("[::]:81", "[::1]:81"),
            ("192.0.2.1:81", "192.0.2.1:81"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
