//! A report of a sender's metrics that can be read is written again, in as many messages as it
//! takes, and reads the same.

use natsway_routes::report::Report;

/// See the module.
pub fn check(data: &[u8]) {
    let Some(report) = Report::read(data) else { return };
    let messages = report.messages();
    let read: Vec<Report> =
        messages.iter().map(|message| Report::read(message).expect("it is ours")).collect();
    assert!(read.iter().all(|part| part.id == report.id));
    let versions: Vec<_> = read.iter().flat_map(|part| part.versions.clone()).collect();
    assert_eq!(versions, report.versions);
    let last = read.len() - 1;
    assert!(read.iter().enumerate().all(|(place, part)| part.more == (place < last)));
}
