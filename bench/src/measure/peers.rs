//! What people would use instead, found on this machine or built from sources in `bench/peers`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use natsway_testkit::{Process, ProcessBuilder, repository_root};

/// A proxy to one upstream over kept connections, no log; the rest is as nginx has it by default.
const NGINX_CONFIG: &str = "\
daemon off;
worker_processes auto;
pid @directory@/nginx.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path @directory@/nginx-body;
    proxy_temp_path @directory@/nginx-proxy;
    fastcgi_temp_path @directory@/nginx-fastcgi;
    uwsgi_temp_path @directory@/nginx-uwsgi;
    scgi_temp_path @directory@/nginx-scgi;
    upstream service {
        server 127.0.0.1:@service@;
        keepalive 256;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:@listen@;
        location / {
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }
    }
}
";

/// The installed nginx and its version.
///
/// # Errors
/// It is not installed.
pub fn find_nginx() -> anyhow::Result<(PathBuf, String)> {
    // Where Debian has it is not in everybody's PATH.
    for program in ["nginx", "/usr/sbin/nginx"] {
        if let Ok(output) = Command::new(program).arg("-v").output() {
            let text = String::from_utf8_lossy(&output.stderr);
            let version = text.trim().trim_start_matches("nginx version: ").replace("nginx/", "nginx ");
            return Ok((program.into(), version));
        }
    }
    anyhow::bail!("nginx is not installed: install the package nginx")
}

/// An nginx that forwards to a port; its files go to `directory`.
///
/// # Errors
/// It is not installed, or its configuration cannot be written.
pub fn nginx(listen: u16, service: u16, directory: &Path) -> anyhow::Result<ProcessBuilder> {
    let (program, _) = find_nginx()?;
    let path = directory.join("nginx.conf");
    let config = NGINX_CONFIG
        .replace("@directory@", &directory.display().to_string())
        .replace("@listen@", &listen.to_string())
        .replace("@service@", &service.to_string());
    fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    Ok(Process::builder(program).arg("-p").arg(directory).arg("-c").arg(path))
}

/// The Go peer, built once; and the version of its compiler.
///
/// # Errors
/// Go is not installed, or does not compile it.
pub fn build_go() -> anyhow::Result<(PathBuf, String)> {
    static BUILT: OnceLock<(PathBuf, String)> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built.clone());
    }
    let version =
        Command::new("go").arg("version").output().context("go is not installed: https://go.dev/dl")?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.split_whitespace().nth(2).unwrap_or("go").to_owned();
    let program = repository_root().join("target/bench/go-gateway");
    let output = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(repository_root().join("bench/peers/go-gateway"))
        .output()?;
    ensure!(output.status.success(), "go build failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(BUILT.get_or_init(|| (program, version)).clone())
}

/// The Go peer in one of its roles.
///
/// # Errors
/// As [`build_go`].
pub fn go(role: &str) -> anyhow::Result<ProcessBuilder> {
    let (program, _) = build_go()?;
    Ok(Process::builder(program).name(format!("go {role}")).arg(role))
}
