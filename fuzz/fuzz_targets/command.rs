//! A command that can be read is written again and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use natsway_wire::control::WorkerCommand;

fuzz_target!(|data: &[u8]| {
    if let Ok(command) = WorkerCommand::decode(data) {
        assert_eq!(WorkerCommand::decode(&command.encode()), Ok(command));
    }
});
