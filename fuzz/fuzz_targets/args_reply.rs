#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| natsway_fuzz_checks::args_reply::check(data));
