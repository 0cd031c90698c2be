//! Small operations of the hot paths, each by itself. One list serves both readings of it:
//! criterion's [`time`] and valgrind's [`count`] of instructions, which does not care who else uses
//! the machine.

pub mod count;
mod decide;
mod envelope;
mod route;
mod ship;
pub mod time;

/// An operation, set up when it is asked for.
pub struct Micro {
    /// Such as `envelope/encode/get/natsway`.
    pub name: String,
    make: Box<dyn Fn() -> Operation>,
}

/// An operation that is ready: each call does it once.
pub type Operation = Box<dyn FnMut()>;

impl Micro {
    fn new(name: impl Into<String>, make: impl Fn() -> Operation + 'static) -> Self {
        Self { name: name.into(), make: Box::new(make) }
    }

    /// Sets it up; what that takes is not part of it.
    pub fn make(&self) -> Operation {
        (self.make)()
    }
}

/// Every operation, in the order of the report.
pub fn all() -> Vec<Micro> {
    [envelope::all(), route::all(), decide::all(), ship::all()].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_runs_and_has_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for micro in all() {
            let mut operation = micro.make();
            operation();
            operation();
            assert!(names.insert(micro.name.clone()), "{} is there twice", micro.name);
        }
        assert!(names.len() > 15);
    }
}
