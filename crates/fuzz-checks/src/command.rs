//! A command that can be read is written again and reads the same.

use natsway_wire::control::WorkerCommand;

/// See the module.
pub fn check(data: &[u8]) {
    if let Ok(command) = WorkerCommand::decode(data) {
        assert_eq!(WorkerCommand::decode(&command.encode()), Ok(command));
    }
}
