//! A test of any package gets the binaries of all packages, and the programs of others.

use std::process::Command;

use natsway_testkit::{TestBroker, nats_cli, repository_root, workspace_binary};

#[test]
fn binaries_of_other_packages_are_built_for_the_profile_of_the_test() {
    for name in ["apiproxy", "worker"] {
        let binary = workspace_binary(name);
        let own = std::env::current_exe().unwrap();
        assert_eq!(binary.parent(), own.parent().unwrap().parent());
        let told = Command::new(&binary).arg("--version").output().unwrap();
        assert!(
            String::from_utf8_lossy(&told.stdout).contains(env!("CARGO_PKG_VERSION")),
            "{told:?}"
        );
    }
}

#[test]
#[should_panic(expected = "no-such-binary")]
fn a_binary_that_does_not_exist_is_told() {
    workspace_binary("no-such-binary");
}

#[test]
fn the_root_of_the_checkout_has_the_workspace() {
    assert!(repository_root().join("rust-toolchain.toml").exists());
}

#[tokio::test]
async fn the_nats_command_line_talks_to_the_broker() {
    let Some(nats) = nats_cli() else { return };
    let broker = TestBroker::start().await;
    let output = Command::new(nats)
        .args(["--server", &broker.url(), "server", "check", "connection"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
