//! The published walk-throughs, step by step, on a broker of their own: static, then elastic.
//! `make demo-groups` runs it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use natsway_testkit::{Process, TestBroker, workspace_binary};
use tokio::time::{Instant, sleep};

struct Demo {
    broker: TestBroker,
    cg: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let demo = Demo {
        broker: TestBroker::builder().jetstream().start().await,
        cg: workspace_binary("cg"),
    };
    demo.fixed().await?;
    demo.elastic().await?;
    println!("\nBoth walk-throughs are done.");
    Ok(())
}

impl Demo {
    async fn fixed(&self) -> Result<()> {
        println!(
            "\n=== Static: a stream that partitions over 10 partitions, a message every 10 ms"
        );
        self.cg("static setup foo").await?;
        self.cg("static create balanced foo cg 10 > m1 m2").await?;
        let traffic = self.start("traffic", "traffic foo --every 10ms");
        let mut first = self.start("m1", "static consume foo cg m1 --sleep 25ms");
        let second = self.start("m2", "static consume foo cg m2 --sleep 25ms");
        show(&first, "m1", 3).await?;
        show(&second, "m2", 3).await?;
        println!(
            "\n--- A second instance of m1 waits; the active one is killed, and the other takes \
             over"
        );
        let standby = self.start("m1 again", "static consume foo cg m1 --sleep 25ms");
        sleep(Duration::from_secs(1)).await;
        let left = Instant::now();
        first.kill9();
        show(&standby, "m1 again", 3).await?;
        println!(
            "(within {:.1} s of the kill, at an ack wait of 2 s)",
            left.elapsed().as_secs_f64()
        );
        self.cg("static info foo cg").await?;
        drop((traffic, second, standby));
        self.cg("static delete foo cg --force").await
    }

    async fn elastic(&self) -> Result<()> {
        println!("\n=== Elastic: any stream, members that come and go");
        self.cg("elastic setup bar").await?;
        self.cg("elastic create bar cg 10 --filter bar.* --wildcards 1").await?;
        let traffic = self.start("traffic", "traffic bar --every 10ms");
        let members = ["m1", "m2", "m3"]
            .map(|m| self.start(m, &format!("elastic consume bar cg {m} --sleep 5ms")));
        println!("(m1, m2 and m3 run; none is a member yet, so none gets anything)");
        self.cg("elastic add bar cg m1 m2").await?;
        show(&members[0], "m1", 3).await?;
        show(&members[1], "m2", 3).await?;
        self.cg("elastic drop bar cg m1").await?;
        self.cg("elastic add bar cg m3").await?;
        show(&members[2], "m3", 3).await?;
        self.cg("elastic info bar cg").await?;
        drop((traffic, members));
        self.cg("elastic delete bar cg --force").await
    }

    fn start(&self, name: &str, line: &str) -> Process {
        println!("$ cg {line} &");
        let process = Process::builder(&self.cg)
            .name(name)
            .args(line.split(' '))
            .env("NATS_URL", self.broker.url());
        process.start()
    }

    async fn cg(&self, line: &str) -> Result<()> {
        println!("$ cg {line}");
        let mut command = tokio::process::Command::new(&self.cg);
        let output =
            command.args(line.split(' ')).env("NATS_URL", self.broker.url()).output().await?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        if !output.status.success() {
            bail!("cg {line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// Prints the first messages that a consumer handles.
async fn show(process: &Process, name: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = process.stdout();
        let lines: Vec<&str> = output.lines().filter(|line| line.contains("subject=")).collect();
        if lines.len() >= count {
            lines.iter().take(count).for_each(|line| println!("    {line}"));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{name} got nothing in half a minute: {}", process.stderr());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
