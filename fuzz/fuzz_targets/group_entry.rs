//! The entry of a consumer group that can be read is written again and reads the same; so is an
//! entry that is edited in place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use natsway_partitioned_consumer::{ElasticConfig, StaticConfig, fuzzing};

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = ElasticConfig::from_json(data) {
        assert_eq!(ElasticConfig::from_json(&config.to_json()).expect("it is ours"), config);
    }
    if let Ok(config) = StaticConfig::from_json(data) {
        assert_eq!(StaticConfig::from_json(&config.to_json()).expect("it is ours"), config);
    }
    fuzzing::group_document(data);
    fuzzing::group_settings(data);
});
