//! What a producer makes of the files that it is told to ship.

use std::fs;

use natsway_testkit::{eventually, free_port};

use crate::support::{Bench, SOON, numbered, page, write};

async fn status(bench: &Bench) -> serde_json::Value {
    let mut status = bench.producer("web1", &bench.path("none")).args(["status", "--json"]).start();
    assert!(status.wait_exit(SOON).await.success());
    serde_json::from_str(&status.stdout()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_as_good_as_another_stops_only_its_own_file() {
    let bench = Bench::jetstream().await;
    let glob = bench.path("logs/*");
    write(&bench.path("logs/ok_log"), &numbered(0..10));
    let port = free_port();
    let producer = || {
        let producer = bench.producer("web1", &glob);
        producer.env("SHIPPER_METRICS", format!("127.0.0.1:{port}")).start()
    };
    let _consumer = bench.consumer("out").env("SHIPPER_OUTPUT", "%%{file}").start();
    let mut running = producer();
    running.wait_for_line("Publishing", SOON).await;
    let arrived = async |file: &str, lines: u32| {
        let text: String = numbered(0..lines).into_iter().map(|line| line + "\n").collect();
        eventually(SOON, async || {
            let found =
                fs::read_to_string(bench.path(&format!("out/web1/%{file}"))).unwrap_or_default();
            if found == text { Ok(()) } else { Err(found) }
        })
        .await;
    };
    arrived("ok_log", 10).await;
    // It comes first in every listing.
    write(&bench.path("logs/ok.log"), &numbered(100..110));
    write(&bench.path("logs/new.log"), &numbered(0..5));
    let told = running.wait_for_line("is not shipped", SOON).await;
    assert!(told.contains("ok.log") && told.contains("ok_log"), "{told}");
    arrived("new_log", 5).await;
    eventually(SOON, async || page(port).contains("shipper_refused_files 1\n")).await;
    running.terminate();
    assert!(running.wait_exit(SOON).await.success());
    // After a restart the file that was shipped before is shipped on.
    let mut running = producer();
    running.wait_for_line("is not shipped", SOON).await;
    write(&bench.path("logs/ok_log"), &numbered(10..20));
    write(&bench.path("logs/new.log"), &numbered(5..7));
    arrived("ok_log", 20).await;
    arrived("new_log", 7).await;
    let report = status(&bench).await;
    let problems: Vec<_> =
        report.as_array().unwrap().iter().filter(|row| row["mode"].is_null()).collect();
    assert_eq!(problems.len(), 1, "{report:#}");
    assert!(
        problems[0]["status"]["last_error"].as_str().unwrap().contains("is not shipped"),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_saved_is_waited_for() {
    for jetstream in [true, false] {
        let bench = if jetstream { Bench::jetstream().await } else { Bench::core().await };
        let file = bench.path("a.log");
        let port = free_port();
        write(&file, &numbered(0..10));
        let mut consumer = bench.consumer("out").start();
        consumer.wait_for_line("shipper.p4.>", SOON).await;
        // As if the disk were full: the next checkpoint cannot be written beside the present one.
        let beside = bench.path("state/shipper/web1.tmp");
        fs::create_dir_all(&beside).unwrap();
        let producer =
            bench.producer("web1", &file).env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
        let mut producer = producer.start();
        producer.wait_for_line("reading nothing until it can be", SOON).await;
        eventually(SOON, async || page(port).contains("shipper_stopped 1\n")).await;
        fs::remove_dir(&beside).unwrap();
        bench.expect("out", "web1", &numbered(0..10)).await;
        eventually(SOON, async || page(port).contains("shipper_stopped 0\n")).await;
        // While it ships as well.
        fs::create_dir_all(&beside).unwrap();
        write(&file, &numbered(10..20));
        producer.wait_for_line("reading nothing until it can be", SOON).await;
        fs::remove_dir(&beside).unwrap();
        write(&file, &numbered(20..30));
        bench.expect("out", "web1", &numbered(0..30)).await;
        producer.terminate();
        assert!(producer.wait_exit(SOON).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_there_are_told_of() {
    let bench = Bench::jetstream().await;
    let (named, glob) = (bench.path("named.log"), bench.path("logs/*.log"));
    let port = free_port();
    let producer =
        bench.producer("web1", &named).env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
    let both = format!("{},{}", named.display(), glob.display());
    let mut producer = producer.env("SHIPPER_FILE", both).start();
    let told = producer.wait_for_line("does not exist", SOON).await;
    assert!(told.contains("named.log"), "{told}");
    let told = producer.wait_for_line("no file matches", SOON).await;
    assert!(told.contains("logs/*.log"), "{told}");
    eventually(SOON, async || page(port).contains("shipper_missing_files 2\n")).await;
    assert_eq!(status(&bench).await.as_array().unwrap().len(), 2);
    write(&named, &numbered(0..10));
    write(&bench.path("logs/a.log"), &numbered(0..10));
    eventually(SOON, async || page(port).contains("shipper_missing_files 0\n")).await;
    eventually(SOON, async || {
        let report = status(&bench).await;
        let shipped = report.as_array().unwrap().iter().filter(|row| row["offset"] == 70);
        if shipped.count() == 2 { Ok(()) } else { Err(report) }
    })
    .await;
    fs::remove_file(&named).unwrap();
    producer.wait_for_line("the file is gone", SOON).await;
    eventually(SOON, async || page(port).contains("shipper_missing_files 1\n")).await;
    eventually(SOON, async || {
        let report = status(&bench).await;
        report.as_array().unwrap().iter().any(|row| row["status"]["gone"] == true)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_is_told_and_counts_no_bytes_that_nobody_wrote() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let port = free_port();
    write(&file, &numbered(0..10));
    let producer =
        bench.producer("web1", &file).env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
    let mut producer = producer.start();
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..10)).await;
    // Offsets are not used again after a break, and so many are passed over then.
    producer.kill9();
    fs::write(&file, "").unwrap();
    write(&file, &numbered(10..12));
    let producer =
        bench.producer("web1", &file).env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
    let mut producer = producer.start();
    producer.wait_for_line("the file was truncated or rewritten", SOON).await;
    bench.expect("out", "web1", &numbered(0..12)).await;
    let page = eventually(SOON, async || {
        let page = page(port);
        if page.contains("shipper_bytes_total 16\n") { Ok(page) } else { Err(page) }
    })
    .await;
    assert!(page.contains("shipper_truncations_total 1\n"), "{page}");
    let mut status = bench.consumer("out").args(["status", "--json"]).start();
    assert!(status.wait_exit(SOON).await.success());
    let report: serde_json::Value = serde_json::from_str(&status.stdout()).unwrap();
    assert_eq!(
        report["sources"][0]["missing_bytes"], 0,
        "all had arrived before the crash, {report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_rewritten_while_the_producer_was_away_is_shipped_from_its_beginning() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..300));
    let mut producer = bench.producer("web1", &file).start();
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..300)).await;
    producer.terminate();
    assert!(producer.wait_exit(SOON).await.success());
    // It begins with the same KiB, and more.
    let rewritten: Vec<String> =
        numbered(0..200).into_iter().chain((200..600).map(|n| format!("another {n}"))).collect();
    let text: String = rewritten.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&file, text).unwrap();
    let mut producer = bench.producer("web1", &file).start();
    producer.wait_for_line("the file was truncated or rewritten", SOON).await;
    let all: Vec<String> = numbered(0..300).into_iter().chain(rewritten).collect();
    bench.expect("out", "web1", &all).await;
}
